"""What a full queue does: reject, drop-lru, shed-low-priority, batch seats, ageing, rate limits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord import mapping
from orchestratord.config import PoolSettings
from orchestratord.domain import forecast
from orchestratord.domain.errors import AdmissionReject, QueueFull
from orchestratord.domain.facts import Admitted, Finished
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.queue import FullPolicy, QueueSpec
from orchestratord.domain.ratelimit import RateLimit
from orchestratord.domain.task import Task
from orchestratord.testing.live import mock_pool
from tests.domain.test_core import Boom
from tests.domain.world import World


def busy(policy: FullPolicy, capacity: int = 2, **spec: object) -> World:
    """One slot, taken."""
    world = World(slots=1, queue=QueueSpec(capacity, policy, **spec))  # type: ignore[arg-type]
    world.admit()
    world.dispatch()
    return world


def test_drop_lru_ends_the_oldest_waiting_batch_task_for_the_newcomer() -> None:
    """ORCH-3005: the victim's stream ends with QUEUE_FULL_DROP_LRU, the newcomer has its seat."""
    world = busy("drop-lru")
    oldest, other = world.admit(priority="batch"), world.admit(priority="batch")
    newcomer = world.admit(priority="batch")
    assert oldest.failure is not None
    assert oldest.failure.code == "QUEUE_FULL_DROP_LRU"
    assert world.visible(oldest)[-1][1] == "error"
    assert list(world.core.pools["home"].queue) == [other, newcomer]


def test_drop_lru_never_drops_interactive_work_not_even_for_interactive_work() -> None:
    world = busy("drop-lru")
    waiting = [world.admit(), world.admit()]
    for priority in ("interactive", "batch"):
        with pytest.raises(QueueFull) as refused:
            world.admit(priority=priority)
        assert refused.value.code == "QUEUE_FULL_DROP_LRU"
        assert refused.value.retry_after_ms
    assert list(world.core.pools["home"].queue) == waiting


def test_a_victim_keeps_its_place_until_the_newcomer_is_durable() -> None:
    """SPEC 2: only marked until then; a failed commit of the newcomer leaves the victim as it was."""
    world = busy("drop-lru", capacity=1)
    victim = world.admit(priority="batch")
    world.auto = False
    world.admit(priority="batch")
    assert victim.state is TaskState.QUEUED
    with pytest.raises(QueueFull):  # its seat is promised once, not twice
        world.admit(priority="batch")
    world.tickets[-1].resolve(Boom())
    assert victim.state is TaskState.QUEUED
    assert list(world.core.pools["home"].queue) == [victim]
    world.auto = True
    world.admit(priority="batch")
    assert victim.state is TaskState.FAILED


def test_a_victim_that_was_dispatched_meanwhile_runs_on() -> None:
    world = busy("drop-lru", capacity=1)
    (lease,) = world.core.pools["home"].leases
    victim = world.admit(priority="batch")
    world.auto = False
    world.admit(priority="batch")
    world.finish(lease)
    assert [le.task for le in world.dispatch()] == [victim]
    world.commit()
    assert victim.state is TaskState.STARTING


def test_a_victim_of_a_newcomer_that_needs_no_seat_any_more_stays() -> None:
    """ORCH-3005: the newcomer was cancelled before its admission was durable; its seat is free for another one."""
    world = busy("drop-lru", capacity=1)
    victim = world.admit(priority="batch")
    world.auto = False
    newcomer = world.admit(priority="batch")
    world.cancel(newcomer)
    assert not world.core.pools["home"].queue.is_marked(victim)
    other = world.admit(priority="batch")
    assert world.core.pools["home"].queue.is_marked(victim), "the one seat goes to the newest"
    world.commit()
    assert (newcomer.state, victim.state, other.state) == (TaskState.CANCELED, TaskState.FAILED, TaskState.QUEUED)
    assert list(world.core.pools["home"].queue) == [other]


def test_shedding_refuses_batch_from_four_fifths_and_interactive_only_at_the_brim() -> None:
    """ORCH-3005."""
    world = busy("shed-low-priority", capacity=5)
    for _ in range(4):
        world.admit(priority="batch")
    with pytest.raises(AdmissionReject) as refused:
        world.admit(priority="batch")
    assert refused.value.policy_label == "shed-low-priority"
    world.admit()
    with pytest.raises(AdmissionReject):
        world.admit()


def test_batch_has_its_own_seats_where_that_is_configured() -> None:
    world = busy("reject", capacity=4, batch_capacity=1)
    world.admit(priority="batch")
    with pytest.raises(AdmissionReject):
        world.admit(priority="batch")
    world.admit()


def told(world: World, priority: str) -> int:
    with pytest.raises(AdmissionReject) as refused:
        world.admit(priority=priority)
    assert refused.value.retry_after_ms is not None
    return refused.value.retry_after_ms


def test_a_refusal_says_when_there_is_room_for_such_work_not_for_any() -> None:
    """OC-CTRL-2011: as many have to leave first as it takes, at 260 ms each by the prior, one of them half over."""
    world = busy("shed-low-priority", capacity=5)
    for _ in range(5):
        world.admit()
    assert told(world, "interactive") == 130
    assert told(world, "batch") == 130 + 260  # from 5 of 5 down to 3 of 5: the second to leave makes room
    world = busy("reject", capacity=8, batch_capacity=1)
    world.admit(priority="batch")
    for _ in range(3):
        world.admit()
    assert told(world, "batch") == 130 + 3 * 260


def test_ageing_bounds_the_wait_of_batch_work() -> None:
    """ORCH-3004: strict order unless an ageing bound is set; then the aged batch task takes the next slot."""
    for age_s, first in ((0.0, "interactive"), (60.0, "batch")):
        world = busy("reject", capacity=8, batch_age_s=age_s)
        (lease,) = world.core.pools["home"].leases
        world.admit(priority="batch")
        world.now += 60
        world.admit()
        world.finish(lease)
        assert [le.task.request.priority for le in world.dispatch()] == [first]


def test_the_ageing_bound_is_the_configured_one() -> None:
    """ORCH-3004: to the millisecond, from the setting to the slot."""
    pool = msgspec.convert(mock_pool(queue={"batch_age_ms": 60_000}), PoolSettings)
    spec = mapping.pool_spec(pool, {}).queue
    for waited, first in ((59.999, "interactive"), (60.0, "batch")):
        world = World(slots=1, queue=spec)
        world.admit()
        (lease,) = world.dispatch()
        world.admit(priority="batch")
        world.now += waited
        world.admit()
        world.finish(lease)
        assert [le.task.request.priority for le in world.dispatch()] == [first], waited


def test_what_has_aged_counts_as_ahead() -> None:
    """OC-CTRL-2010: the place says what would really be dispatched before, and so does the estimate."""
    world = busy("reject", capacity=8, batch_age_s=60.0)
    pool = world.core.pools["home"]
    aged = world.admit(priority="batch")
    world.now += 60
    young = world.admit(priority="batch")
    first = world.admit()
    assert first.admitted.admission.queue_position == 1
    assert first.admitted.admission.predicted_start_ms == 130 + 260
    places = [forecast.position(pool, t.request.priority, t, world.now) for t in (aged, first, young)]
    assert places == [0, 1, 2]
    order = []
    for _ in places:
        world.finish(pool.leases[0])
        order += [lease.task for lease in world.dispatch()]
    assert order == [aged, first, young]


@pytest.mark.parametrize(
    ("priority", "aged_s", "place"), [("batch", 0, 1), ("interactive", 0, 0), ("interactive", 60, 1)]
)
def test_whose_seat_is_taken_is_not_ahead(priority: str, aged_s: float, place: int) -> None:
    """OC-CTRL-2010: the 202 says the place that is left when the victim has gone."""
    world = busy("drop-lru", capacity=2, batch_age_s=60.0)
    pool = world.core.pools["home"]
    victim, other = world.admit(priority="batch"), world.admit(priority="batch")
    world.now += aged_s
    newcomer = world.admit(priority=priority)
    assert victim.terminal
    assert newcomer.admitted.admission.queue_position == place
    assert forecast.position(pool, newcomer.request.priority, newcomer, world.now) == place
    assert list(pool.queue) == ([other, newcomer] if priority == "batch" else [newcomer, other])


@given(
    st.sampled_from(["reject", "drop-lru", "shed-low-priority"]),
    st.lists(st.tuples(st.sampled_from(["interactive", "batch"]), st.booleans()), max_size=40),
)
def test_no_policy_ever_overfills_or_drops_a_higher_class(policy: FullPolicy, arrivals: list[tuple[str, bool]]) -> None:
    """I1, I3: bounded at every instant; a refusal changes nothing; only batch is ever dropped."""
    world = busy(policy, capacity=3)
    queue = world.core.pools["home"].queue
    admitted: list[Task] = []
    for priority, commits in arrivals:
        before = list(queue)
        world.auto = commits
        try:
            admitted.append(world.admit(priority=priority))
        except AdmissionReject:
            assert list(queue) == before
        assert queue.seats_taken <= 3
        if commits:
            world.commit()
            assert len(queue) <= 3
    world.commit()
    dropped = [t for t in admitted if t.terminal]
    assert all(t.request.priority == "batch" for t in dropped)
    assert policy == "drop-lru" or not dropped
    kinds = [type(f) for f in world.facts]
    assert kinds.count(Finished) == len(dropped)
    assert kinds.count(Admitted) == len(admitted) + 1


def test_a_token_bucket_lets_a_burst_through_and_then_the_average() -> None:
    """SPEC 2: an optional limit per caller; the advice is exact."""
    limit = RateLimit(per_s=2, burst=3)
    for _ in range(3):
        limit.take("a", 100.0)
    with pytest.raises(AdmissionReject) as refused:
        limit.take("a", 100.0)
    assert refused.value.retry_after_ms == 500
    assert refused.value.policy_label == "rate-limit"
    limit.take("b", 100.0)
    limit.take("a", 100.5)
    with pytest.raises(AdmissionReject):
        limit.take("a", 100.5)


@given(st.floats(0.1, 500), st.floats(0, 3))
def test_whoever_waits_as_long_as_it_was_told_gets_in(per_s: float, pause: float) -> None:
    """OC-CTRL-2011: a wait that is rounded down costs a second refusal."""
    limit = RateLimit(per_s, 1)
    now = 1000.0
    limit.take("a", now)
    told_ms = 0
    try:
        limit.take("a", now + pause)
    except AdmissionReject as refused:
        told_ms = refused.retry_after_ms or 0
    if told_ms:
        limit.take("a", now + pause + told_ms / 1000)
    assert told_ms >= 0
