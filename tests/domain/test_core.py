"""The core, step by step and as a state machine."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestratord.domain import forecast
from orchestratord.domain.errors import (
    AdmissionReject,
    Conflict,
    DeadlineUnmet,
    InvalidParams,
    NotFound,
    PoolUnavailable,
    PoolUnready,
)
from orchestratord.domain.facts import Admitted, Finished, Frames, Started
from orchestratord.domain.hooks import Limits
from orchestratord.domain.kv import KvLayout
from orchestratord.domain.log import EventLog
from orchestratord.domain.operation import Fault
from orchestratord.domain.outcome import Failure, TaskState, Usage
from orchestratord.domain.pool import Lease, Pool, Replica
from orchestratord.domain.request import PlacementHints, Sampling
from orchestratord.domain.roster import SPARE
from orchestratord.wire import sse
from tests.domain.world import World


class Boom(Exception):
    pass


def test_the_three_facts_gate_what_a_reader_sees() -> None:
    """ORCH-2002: nothing is visible before its fact is durable: 202, first token, terminal event."""
    world = World(auto=False)
    task = world.admit()
    assert world.visible(task) == []
    world.commit()
    assert [name for _, name, _ in world.visible(task)] == ["started"]
    (lease,) = world.dispatch()
    world.output(lease, "a", "b")
    assert [name for _, name, _ in world.visible(task)] == ["started"]
    world.commit()
    assert [name for _, name, _ in world.visible(task)] == ["started", "token", "token"]
    world.output(lease, "c")
    assert len(world.visible(task)) == 4
    world.finish(lease)
    assert len(world.visible(task)) == 4
    world.commit()
    assert [name for _, name, _ in world.visible(task)][-1] == "end"
    assert [event_id for event_id, _, _ in world.visible(task)] == [1, 2, 3, 4, 5]


def test_facts_are_journaled_in_decision_order_and_hold_the_whole_log() -> None:
    world = World()
    task = world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "a")
    world.core.flush(task, world.now)
    world.output(lease, "b")
    world.finish(lease)
    kinds = [type(fact) for fact in world.facts]
    assert kinds == [Admitted, Started, Frames, Frames, Finished]
    admitted, _, first, second, finished = world.facts
    assert isinstance(admitted, Admitted)
    assert isinstance(finished, Finished)
    stored = admitted.started_frame + first.data + second.data + finished.terminal_frame  # type: ignore[union-attr]
    assert stored == task.log.raw()


def test_a_failed_commit_withdraws_the_task_without_trace() -> None:
    """SPEC 2 (Durable): as if it had never been tried: no task, no turn, no seat."""
    world = World(auto=False)
    task = world.admit()
    world.tickets[0].resolve(Boom())
    assert task.task_id not in world.core.tasks
    assert len(world.core.pools["home"].queue) == 0
    assert len(world.core.sessions) == 0


def test_an_uncommitted_task_keeps_its_place_but_is_not_dispatched() -> None:
    world = World(auto=False, slots=1)
    first, second = world.admit(), world.admit()
    assert world.dispatch() == []
    assert forecast.position(world.core.pools["home"], "interactive", second) == 1
    world.commit()
    assert [lease.task for lease in world.dispatch()] == [first]


def test_interactive_goes_first_and_each_priority_is_first_in_first_out() -> None:
    """ORCH-3004: strict order."""
    world = World(slots=1)
    batch1, batch2 = world.admit(priority="batch"), world.admit(priority="batch")
    inter1, inter2 = world.admit(), world.admit()
    order = []
    for _ in range(4):
        (lease,) = world.dispatch()
        order.append(lease.task)
        world.finish(lease)
    assert order == [inter1, inter2, batch1, batch2]


def test_a_full_queue_refuses_and_says_when_room_appears() -> None:
    """ORCH-2007, OC-CTRL-2011: `reject` changes nothing but its own answer."""
    world = World(slots=1, capacity=2)
    world.admit()
    world.dispatch()
    world.admit(), world.admit(priority="batch")
    before = list(world.core.pools["home"].queue)
    with pytest.raises(AdmissionReject) as refused:
        world.admit()
    assert refused.value.policy_label == "reject"
    assert refused.value.retry_after_ms == int(forecast.room_ms(world.core.pools["home"], "interactive"))
    assert list(world.core.pools["home"].queue) == before


def test_the_same_id_with_another_body_is_a_conflict() -> None:
    world = World()
    task = world.admit()
    assert world.core.known(task.task_id, task.admitted.fingerprint) is task
    with pytest.raises(Conflict):
        world.core.known(task.task_id, b"other")


def test_a_deadline_the_median_end_misses_is_refused_with_the_prediction() -> None:
    world = World()
    with pytest.raises(DeadlineUnmet) as refused:
        world.admit(max_tokens=4000, ctx=4096, deadline_ms=10)
    assert refused.value.details["predicted_end_ms"] > 10
    assert refused.value.is_retriable


def test_a_deadline_is_worth_another_try_later_where_there_is_a_queue() -> None:
    """ORCH-3014: an idle pool will not be quicker later: it says nothing of when to come back."""
    world = World(slots=1)
    with pytest.raises(DeadlineUnmet) as idle:
        world.admit(max_tokens=4000, ctx=4096, deadline_ms=10)
    world.admit(max_tokens=100)
    world.dispatch()
    world.admit(max_tokens=100)
    with pytest.raises(DeadlineUnmet) as busy:
        world.admit(max_tokens=4000, ctx=4096, deadline_ms=10)
    assert idle.value.retry_after_ms is None
    assert busy.value.retry_after_ms is not None
    assert 0 < busy.value.retry_after_ms < busy.value.details["predicted_end_ms"]


def test_the_predicted_end_itself_decides_about_a_deadline() -> None:
    """A millisecond less than the median end is refused; the end itself is not."""
    fields = {"max_tokens": 4000, "ctx": 4096}
    with pytest.raises(DeadlineUnmet) as refused:
        World().admit(**fields, deadline_ms=1)
    end = refused.value.details["predicted_end_ms"]
    with pytest.raises(DeadlineUnmet):
        World().admit(**fields, deadline_ms=end - 1)
    World().admit(**fields, deadline_ms=end + 1)


def test_what_is_canceled_before_it_ran_has_decoded_nothing() -> None:
    """ORCH-3026: not a token, and no time."""
    world = World(slots=1)
    world.admit()
    world.dispatch()
    waiting = world.admit()
    world.cancel(waiting)
    assert world.visible(waiting)[-1][2] == {"tokens_out": 0, "decode_ms": 0, "finish_reason": "canceled"}


def test_nothing_is_appended_above_the_seal_of_a_cancel() -> None:
    """ORCH-3026: the seal names the terminal event; the engine call is aborted; the slot stays taken."""
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "a", "b")
    seal = world.cancel(task)
    assert seal == 4
    assert world.output(lease, "late") is False
    assert world.aborted == [lease]
    assert world.visible(task)[-1][:2] == (4, "end")
    assert world.visible(task)[-1][2]["finish_reason"] == "canceled"
    world.core.flush(task, world.now)
    assert isinstance(world.facts[-1], Finished), "the end of a task is the last the journal hears of it"
    waiting = world.admit()
    assert world.dispatch() == []
    world.finish(lease)
    assert [le.task for le in world.dispatch()] == [waiting]


def test_cancel_is_idempotent_and_leaves_a_finished_task_alone() -> None:
    world = World()
    task = world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "a")
    world.finish(lease)
    assert world.cancel(task) == 3
    assert task.state is TaskState.ENDED
    assert sum(isinstance(f, Finished) for f in world.facts) == 1


def test_a_deadline_ends_waiting_and_running_tasks() -> None:
    """ORCH-3014: the engine never sees the one that waited."""
    world = World(slots=1)
    running, waiting = world.admit(deadline_ms=60_000), world.admit(deadline_ms=60_000)
    (lease,) = world.dispatch()
    world.output(lease, "a")
    world.now += 60
    assert world.core.tasks.next_deadline() == world.now
    world.core.expire(world.now, world.wall_ms)
    world.commit()
    assert {t.failure.code for t in (running, waiting) if t.failure} == {"DEADLINE_UNMET"}
    assert waiting.started is None
    assert world.aborted == [lease]
    assert world.core.tasks.next_deadline() is None


def test_a_task_that_outgrows_its_log_fails() -> None:
    world = World(limits=Limits(task_bytes=500))
    task = world.admit()
    (lease,) = world.dispatch()
    assert world.output(lease, "x" * 600) is False
    assert task.failure is not None
    assert (task.failure.code, task.failure.retriable) == ("INVALID_PARAMS", False)
    assert task.failure.details == {"rule": "output_exceeds_limit", "limit": 500}
    assert world.visible(task)[-1][1] == "error"
    assert not world.core.pools["home"].replicas["r0"].breaker.open  # it did what it was asked


def test_a_quarantined_slot_is_not_leased() -> None:
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    world.cancel(task)
    world.finish(lease, slot_free=False, finish_reason="stop")
    world.admit()
    assert world.dispatch() == []
    world.core.release(lease)
    assert len(world.dispatch()) == 1


def test_a_journal_that_fails_at_the_first_token_ends_the_task_without_showing_it() -> None:
    world = World()
    task = world.admit()
    (lease,) = world.dispatch()
    world.auto = False
    world.output(lease, "secret")
    world.tickets[-1].resolve(Boom())
    assert task.failure is not None
    assert task.failure.code == "STORAGE_UNAVAILABLE"
    assert world.aborted == [lease]
    for ticket in [t for t in world.tickets if not t.done]:
        ticket.resolve(Boom())
    assert world.visible(task)[-1][1] == "error"  # a reader is never left hanging


EMBEDDING: dict[str, Any] = {"workload": "embedding", "prompt": None, "inputs": ("a",)}


def test_session_turns_ttl_and_delete() -> None:
    """ORCH-3021..3023: turns are bounded, refusals cost none, the TTL runs only while nothing is live."""
    world = World(slots=4, capacity=8, limits=Limits(turns_max=2, session_ttl_s=10))
    first = world.admit(session_id="s")
    world.admit(session_id="s")
    with pytest.raises(AdmissionReject) as refused:
        world.admit(session_id="s")
    assert refused.value.policy_label == "session-turns"
    assert refused.value.is_retriable is False
    world.now += 100  # live tasks hold the session
    assert world.core.session("s", world.now).turns == 2
    world.core.delete_session("s", world.now, world.wall_ms)
    world.commit()
    assert first.state is TaskState.CANCELED
    with pytest.raises(NotFound):
        world.core.session("s", world.now)
    with pytest.raises(AdmissionReject):  # coming back under the same id does not refill it
        world.admit(session_id="s")
    world.now += 10
    world.admit(session_id="s")
    assert world.core.session("s", world.now).turns == 1


def test_deleting_a_session_does_not_prolong_what_it_spent() -> None:
    """ORCH-3023: its turns count until its TTL would have ended, and no longer; so also after a restart."""
    world = World(limits=Limits(turns_max=1, session_ttl_s=10))
    world.cancel(world.admit(session_id="s"))
    world.now += 6
    world.core.delete_session("s", world.now, world.wall_ms)
    world.now += 3
    with pytest.raises(AdmissionReject) as refused:
        world.admit(session_id="s")
    assert refused.value.retry_after_ms == 1000
    world.now += 1
    world.admit(session_id="s")


def test_a_deleted_session_does_not_come_back_by_an_admission_that_failed() -> None:
    world = World()
    world.cancel(world.admit(session_id="s"))
    world.core.delete_session("s", world.now, world.wall_ms)
    world.commit()
    world.auto = False
    world.admit(session_id="s")
    world.tickets[-1].resolve(Boom())
    with pytest.raises(NotFound):
        world.core.session("s", world.now)


def test_a_turn_comes_back_when_the_admission_fails_after_its_task_was_cancelled() -> None:
    """ORCH-3006: withdrawn without trace."""
    world = World()
    world.cancel(world.admit(session_id="s"))
    world.auto = False
    world.cancel(world.admit(session_id="s"))
    for ticket in world.tickets[-2:]:
        ticket.resolve(Boom())
    assert world.core.session("s", world.now).turns == 1


def test_retention_forgets_the_oldest_finished_tasks() -> None:
    world = World(limits=Limits(retain_s=10, retain_tasks=1))
    tasks = [world.admit(), world.admit()]
    for lease in world.dispatch():
        world.finish(lease)
    world.core.forget(world.now)
    assert list(world.core.tasks.values()) == tasks[1:]
    world.now += 10
    world.core.forget(world.now)
    assert not world.core.tasks


def test_the_end_of_a_task_is_told_only_if_its_admission_was() -> None:
    """ORCH-3027: a task cancelled before its admission is durable counts as enqueued and ended, or as neither."""
    world = World(auto=False)
    kept, withdrawn = world.admit(), world.admit()
    for task in (kept, withdrawn):
        world.cancel(task)
    assert world.ended == []
    world.tickets[0].resolve()
    world.tickets[1].resolve(Boom())
    assert [(task, phase) for task, phase, _ in world.ended] == [(kept, "queued")]


@settings(max_examples=120, stateful_step_count=50, deadline=None)
class CoreMachine(RuleBasedStateMachine):
    """Random lives of tasks against a model of plain lists (I1-I6, I9-I12 of the invariants)."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(slots=2, capacity=4, auto=False)
        self.waiting: dict[str, list[Any]] = {"interactive": [], "batch": []}
        self.leases: list[Any] = []
        self.tasks: list[Any] = []
        self.seals: dict[Any, int] = {}
        self.seen: dict[Any, bytes] = {}

    def _depth(self) -> int:
        return sum(map(len, self.waiting.values()))

    @rule(priority=st.sampled_from(["interactive", "batch"]))
    def submit(self, priority: str) -> None:
        batch = self.waiting["batch"] if priority == "batch" else []
        lanes = [*self.waiting["interactive"], *batch]
        try:
            task = self.world.admit(priority=priority)
        except AdmissionReject:
            assert self._depth() == 4
            return
        except DeadlineUnmet:  # long services were observed: refusing is right, and must change nothing
            return
        assert self._depth() < 4
        assert task.admitted.admission.queue_position == len(lanes)
        self.waiting[priority].append(task)
        self.tasks.append(task)

    @rule(ok=st.booleans())
    def commit(self, ok: bool) -> None:
        pending = [t for t in self.world.tickets if not t.done]
        if not pending:
            return
        if ok or not isinstance(pending[0].fact, Admitted):
            pending[0].resolve()
            return
        task = self.world.core.tasks[pending[0].fact.task_id]
        pending[0].resolve(Boom())
        if not task.terminal:
            self.waiting[task.request.priority].remove(task)
            self.tasks.remove(task)

    @rule()
    def dispatch(self) -> None:
        ready = [t for lane in self.waiting.values() for t in lane if t.committed]
        expected = ready[: 2 - len(self.world.core.pools["home"].leases)]
        leases = self.world.dispatch()
        assert [lease.task for lease in leases] == expected
        for task in expected:
            self.waiting[task.request.priority].remove(task)
        self.leases += leases

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), texts=st.lists(st.text(max_size=5), min_size=1, max_size=3))
    def output(self, data: Any, texts: list[str]) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        appended = self.world.output(lease, *texts)
        assert appended is not lease.task.terminal

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["stop", "lost"]))
    def finish(self, data: Any, how: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        failure = Failure("WORKER_RESET", "gone", "llamacpp") if how == "lost" else None
        self.world.finish(lease, failure=failure, finish_reason=None if failure else "stop")
        self.leases.remove(lease)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        was_over = task.terminal
        seal = self.world.cancel(task)
        if not was_over:
            self.seals[task] = seal
            if task in self.waiting[task.request.priority]:
                self.waiting[task.request.priority].remove(task)

    @rule(seconds=st.integers(1, 4000))
    def pass_time(self, seconds: int) -> None:
        self.world.now += seconds
        self.world.core.expire(self.world.now, self.world.wall_ms)
        for lane in self.waiting.values():
            lane[:] = [task for task in lane if not task.terminal]

    @invariant()
    def the_queue_is_the_models(self) -> None:
        queue = self.world.core.pools["home"].queue
        assert list(queue) == self.waiting["interactive"] + self.waiting["batch"]
        assert len(queue) <= 4
        for ahead, task in enumerate(queue):
            assert forecast.position(self.world.core.pools["home"], task.request.priority, task) == ahead

    @invariant()
    def slots_are_never_overcommitted(self) -> None:
        assert self.world.core.pools["home"].leases == self.leases
        assert len(self.leases) <= 2

    @invariant()
    def logs_are_append_only_with_one_terminal_event(self) -> None:
        for task in self.tasks:
            visible = task.log.read(0)
            assert visible.startswith(self.seen.get(task, b""))
            self.seen[task] = visible
            events = sse.decode(task.log.raw())
            assert [event_id for event_id, _, _ in events] == list(range(1, len(events) + 1))
            terminals = [name for _, name, _ in events if name in ("end", "error")]
            assert len(terminals) == int(task.terminal)
            if task.terminal:
                assert events[-1][1] in ("end", "error")
            if task in self.seals:
                assert all(name != "token" for event_id, name, _ in events if event_id > self.seals[task])

    @invariant()
    def facts_come_once_and_in_order(self) -> None:
        for task in self.tasks:
            kinds = [type(f) for f in self.world.facts if getattr(f, "task_id", None) == task.task_id]
            assert kinds[0] is Admitted
            assert kinds.count(Finished) == int(task.terminal)
            assert kinds.count(Started) == int(task.first_token is not None)
            if task.terminal:
                assert kinds[-1] is Finished


TestCore = CoreMachine.TestCase


def test_a_session_comes_back_to_the_slot_that_holds_its_prefix() -> None:
    """ORCH-3021: affinity to replica and slot; warm only while nobody had that slot since."""
    world = World(slots=2, capacity=8)
    world.admit(session_id="s")
    (first,) = world.dispatch()
    world.finish(first, finish_reason="stop")
    session = world.core.session("s", world.now)
    assert session.kv_warm
    world.admit()  # takes the other slot: the one whose prompt is the longest unused
    (other,) = world.dispatch()
    assert other.slot != first.slot
    again = world.admit(session_id="s")
    (lease,) = world.dispatch()
    assert (lease.slot, again.kv_warm) == (first.slot, True)
    world.finish(lease, finish_reason="stop")
    world.admit()
    (stranger,) = world.dispatch()
    assert stranger.slot == first.slot
    assert not session.kv_warm
    assert session.kv_lost


def test_a_probe_takes_prefixes_but_for_those_of_slots_at_work() -> None:
    """ORCH-3021, OD-25: the engine puts it into idle slots of its own choice."""
    world = World(slots=2, capacity=8)
    world.admit(session_id="idle")
    (first,) = world.dispatch()
    world.finish(first, finish_reason="stop")
    world.admit(session_id="busy")
    (second,) = world.dispatch()
    idle = world.core.session("idle", world.now)
    assert idle.kv_warm
    world.core.replica_probed(first.replica)
    assert not idle.kv_warm
    world.finish(second, finish_reason="stop")
    assert world.core.session("busy", world.now).kv_warm
    again = world.admit(session_id="idle")
    world.dispatch()
    assert not again.kv_warm


def test_a_session_knows_what_its_prefix_takes() -> None:
    """ORCH-3023: what its last task left in the slot, in every layer; nothing once it is gone, or where nobody can say.

    The last token of a text was never read by the model, so it is not in the cache.
    """
    world = World(slots=2, capacity=8)
    (replica,) = world.core.pools["home"].replicas.values()
    replica.kv = KvLayout(100, ((8, 10),))

    def turn(tokens_in: int | None, tokens_out: int) -> Lease:
        world.admit(session_id="s")
        (lease,) = world.dispatch()
        world.finish(lease, finish_reason="stop", usage=Usage(tokens_in, tokens_out))
        return lease

    turn(5, 2)
    session = world.core.session("s", world.now)
    assert session.kv_bytes == 6 * 100 + 6 * 10
    turn(20, 11)
    assert session.kv_bytes == 30 * 100 + 8 * 10
    replica.kv = KvLayout(100, block=16)
    assert session.kv_bytes == 16 * 100
    replica.kv = None
    assert session.kv_bytes is None
    replica.kv = KvLayout(100)
    first = turn(None, 3)  # the engine did not count the prompt
    assert (session.kv_warm, session.kv_bytes) == (True, None)
    turn(7, 1)
    assert session.kv_bytes == 700
    world.admit()
    world.admit()
    assert {lease.slot for lease in world.dispatch()} == {first.slot, 1 - first.slot}
    assert session.kv_bytes is None  # somebody else has its slot


def test_an_engine_with_one_cache_for_all_keeps_whoever_came_last() -> None:
    """ORCH-3023: warm on any slot, until what came since, as far as it may have grown, leaves no room beside it."""
    world = World(slots=2, capacity=8)
    (replica,) = world.core.pools["home"].replicas.values()
    each = 3 + 16 + 256  # bound of the prompt, max_tokens, a block begun
    replica.kv_tokens = 4 * each
    world.admit()  # runs on, from before to after
    (runs,) = world.dispatch()
    world.admit(session_id="s")
    (lease,) = world.dispatch()
    world.finish(lease, finish_reason="stop", usage=Usage(3, 5))
    session = world.core.session("s", world.now)
    assert session.kv_warm
    for left in (True, True, False):
        world.admit()
        (other,) = world.dispatch()
        assert other.slot == lease.slot  # which says nothing here
        assert session.kv_warm == left, "beside what ran all the time"
        world.finish(other, finish_reason="stop", usage=Usage(3, 5))
    world.finish(runs, finish_reason="stop", usage=Usage(3, 5))
    assert not session.kv_warm
    again = world.admit(session_id="s")
    (lease,) = world.dispatch()
    assert not again.kv_warm
    world.finish(lease, finish_reason="stop", usage=Usage(3, 5))
    world.admit()
    world.dispatch()
    again = world.admit(session_id="s")
    world.dispatch()
    assert again.kv_warm


def test_a_restart_takes_the_bytes_along() -> None:
    """ORCH-3023."""
    world = World(slots=1)
    (replica,) = world.core.pools["home"].replicas.values()
    replica.kv = KvLayout(100)
    world.admit(session_id="s")
    (lease,) = world.dispatch()
    world.finish(lease, finish_reason="stop", usage=Usage(5, 2))
    session = world.core.session("s", world.now)
    assert session.kv_bytes == 600
    world.core.replica_failed("home", replica, Fault("POOL_UNAVAILABLE", "it died", 0))
    assert session.kv_bytes is None
    world.ready(1)
    assert session.kv_bytes is None


def test_no_two_leases_share_a_slot_and_a_restart_empties_them() -> None:
    world = World(slots=3, capacity=8)
    for _ in range(3):
        world.admit(session_id="s")
    leases = world.dispatch()
    assert sorted(lease.slot for lease in leases) == [0, 1, 2]
    world.finish(leases[1], finish_reason="stop")
    world.admit()
    assert [lease.slot for lease in world.dispatch()] == [leases[1].slot]
    world.ready(3)
    assert not world.core.session("s", world.now).kv_warm


def test_what_is_forgotten_takes_no_memory() -> None:
    """The frames of tasks that retention dropped do not count, nor are they kept."""
    world = World(capacity=8, limits=Limits(retain_s=10, retain_tasks=2, turns_max=100))
    for _ in range(6):
        world.admit()
        (lease,) = world.dispatch()
        world.output(lease, "some", "text")
        world.finish(lease)
    world.core.forget(world.now)
    kept = list(world.core.tasks.values())
    assert len(kept) == 2
    assert world.core.tasks.log_bytes == sum(task.log.size for task in kept)
    assert list(world.core.tasks._logs.values()) == kept
    assert [world.core.tasks.oldest_log() for _ in range(3)] == [*kept, None], "the oldest goes first"


def test_a_deadline_belongs_to_one_task_and_not_to_its_id() -> None:
    """ORCH-3014: who tries an id again that was withdrawn has all the time it asks for."""
    world = World(slots=0, auto=False)
    again = {"task_id": "t", "session_id": "s", "deadline_ms": 10_000}
    world.admit(**again)
    world.tickets[-1].resolve(Boom())
    world.now += 5
    task = world.admit(**again)
    world.commit()
    for passed, over in ((9.5, False), (10.0, True)):
        world.now = task.created + passed
        world.core.expire(world.now, world.wall_ms)
        assert task.terminal is over


def test_deadlines_of_forgotten_tasks_take_no_memory() -> None:
    """SPEC 10: everything is bounded, also under deadlines of a day."""
    world = World(slots=1, limits=Limits(retain_tasks=2, turns_max=10_000))
    for _ in range(SPARE + 50):
        world.cancel(world.admit(deadline_ms=86_400_000))
        world.core.forget(world.now)
        world.tickets.clear()
        world.ended.clear()
    waiting = world.admit(deadline_ms=60_000)
    assert len(world.core.tasks._deadlines) < SPARE + 10
    assert world.core.tasks.next_deadline() == waiting.deadline


def test_what_a_finished_task_was_asked_takes_no_memory() -> None:
    """ORCH-3035: ten thousand prompts of a megabyte would; a repeat is known by its fingerprint all the same."""
    world = World(slots=1)
    done, waiting = world.admit(prompt="x" * 1000), world.admit(prompt="y")
    (lease,) = world.dispatch()
    world.finish(lease)
    world.core.forget(world.now)
    assert done.request.prompt is None
    assert waiting.request.prompt == "y"
    assert world.core.known(done.task_id, done.admitted.fingerprint) is done


def test_a_warm_session_holds_no_task() -> None:
    """Retention bounds tasks; a session that is kept for longer must not keep its last one with all its frames."""

    def logs() -> int:
        gc.collect()
        return sum(isinstance(each, EventLog) for each in gc.get_objects())

    before = logs()
    world = World(slots=1, limits=Limits(retain_s=0))
    world.admit(session_id="s")
    (lease,) = world.dispatch()
    world.output(lease, "some", "text")
    world.finish(lease)
    world.core.forget(world.now)
    assert world.core.session("s", world.now).kv_warm
    del lease
    for held in (world.tickets, world.ended, world.aborted):
        held.clear()
    assert logs() == before


def lame(world: World) -> Replica:
    """`home` also has a replica for embeddings, with more context, and that one is down."""
    other = Replica("r1", device_mask="1")
    world.core.add_replica("home", other)
    world.core.replica_ready(
        "home", other, slots=1, ctx=8192, engine_version="mock-1", workloads=frozenset({"embedding"})
    )
    world.core.replica_failed("home", other, Fault("POOL_UNAVAILABLE", "gone", 1))
    return other


@pytest.mark.parametrize("fields", [EMBEDDING, {**EMBEDDING, "placement": PlacementHints(require_device_mask="1")}])
def test_a_pool_is_closed_to_what_only_a_replica_that_is_down_could_do(fields: dict[str, Any]) -> None:
    """OC-CORE-1011, OC-CORE-1013: whatever its other replicas do."""
    world = World()
    other = lame(world)
    with pytest.raises(PoolUnavailable):
        world.admit(**fields)
    other.state = "loading"
    with pytest.raises(PoolUnready):
        world.admit(**fields)
    world.admit()


def test_limits_are_those_of_the_replica_that_does_such_work() -> None:
    """ORCH-3016: 8192 tokens of an embedding engine are none for a completion."""
    world = World()
    lame(world)
    with pytest.raises(InvalidParams) as refused:
        world.admit(ctx=8192)
    assert refused.value.details["rule"] == "ctx_exceeds_model"


def test_a_task_that_nothing_in_service_could_take_holds_up_nobody() -> None:
    """OC-CORE-1019: nothing overtakes the head of the queue but what it could not have had anyway."""
    world = World(slots=1)
    other = lame(world)
    other.state = "ready"
    embedding, completion = world.admit(**EMBEDDING), world.admit()
    other.state = "dead"
    (lease,) = world.dispatch()
    assert (lease.task, embedding.state) == (completion, "queued")
    other.state = "ready"
    assert [lease.task for lease in world.dispatch()] == [embedding]


def test_slots_are_taken_in_the_order_of_their_last_use() -> None:
    """The prompt that was used last is the last to be overwritten; what a slot still holds of its engine's last life
    keeps it."""
    world = World(slots=3, capacity=10)
    replica = world.core.pools["home"].replicas["r0"]

    def lease() -> Lease:
        world.admit()
        (leased,) = world.dispatch()
        return leased

    first, second = lease(), lease()
    world.finish(second)
    world.finish(first)
    assert [lease().slot for _ in range(3)] == [2, 1, 0], "an unused one, then those that were left first"
    for leased in list(replica.leases.values()):
        world.finish(leased, finish_reason="stop", slot_free=leased.slot == 2)
    world.ready(3)
    assert (replica.last_lease, {leased.slot for leased in replica.leases.values()}) == ({}, {0, 1})
    assert lease().slot == 2


def test_a_task_goes_only_where_its_knobs_are_honoured() -> None:
    """OC-CORE-1011: an engine that does not know one would drop it in silence."""
    world = World(slots=1, pools=("home", "away"))
    facts = {"slots": 4, "ctx": 4096, "engine_version": "mock-1", "workloads": frozenset({"completion"})}
    for pool, replica, features in (("home", "r1", ("top_k",)), ("away", "r0", ())):
        world.core.add_replica(pool, Replica(replica))
        world.core.replica_ready(pool, world.core.pools[pool].replicas[replica], features=features, **facts)
    tasks = [world.admit(sampling=Sampling(top_k=1)) for _ in range(2)]
    assert {task.pool_id for task in tasks} == {"home"}
    assert "away: cannot honour sampling.top_k" in tasks[0].admitted.decision.filters
    assert {lease.replica.id for lease in world.dispatch()} == {"r1"}
    with pytest.raises(InvalidParams) as refused:
        world.admit(sampling=Sampling(top_k=1), placement=World.pin("away"))
    assert refused.value.details["rule"] == "pin_infeasible"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"ctx": 4096, "sampling": Sampling(min_p=0.1)}, "unsupported_sampling"),
        ({"sampling": Sampling(top_k=1, min_p=0.1)}, "unsupported_sampling"),
        ({"ctx": 4096, "sampling": Sampling(top_k=1)}, None),
        ({"ctx": 512, "sampling": Sampling(min_p=0.1)}, None),
    ],
)
def test_what_no_single_replica_can_do_the_pool_cannot(fields: dict[str, Any], rule: str | None) -> None:
    """OC-CORE-1011: one has the room and another the knob: a 400, and not for ever "try again"."""
    world = World(slots=1)
    pool = world.core.pools["home"]
    world.core.add_replica("home", Replica("r1"))
    for replica, ctx, features in (("r0", 4096, ("top_k",)), ("r1", 512, ("min_p",))):
        world.core.replica_ready("home", pool.replicas[replica], ctx=ctx, features=features, slots=1)
        pool.replicas[replica].workloads = frozenset({"completion"})
    if rule is None:
        world.admit(**fields)
        assert len(world.dispatch()) == 1
        return
    for state in ("ready", "dead"):
        pool.replicas["r1"].state = state
        with pytest.raises(InvalidParams) as refused:
            world.admit(**fields)
        assert refused.value.details["rule"] == rule


def test_a_refusal_knows_the_pools_that_do_not_serve_the_task() -> None:
    """ORCH-3902: they take no part in a placement, but a pin may name one, and who asks in vain is told of them."""
    world = World()
    with pytest.raises(PoolUnready) as nowhere:
        world.admit(model_ref="file:another.gguf")
    assert nowhere.value.details["available"] == ["home"]
    with pytest.raises(InvalidParams) as elsewhere:
        world.admit(model_ref="file:another.gguf", placement=World.pin("home"))
    assert elsewhere.value.details["rule"] == "pin_infeasible"
    spec = replace(world.core.pools["home"].spec, id="other", model_ref="file:another.gguf")
    world.core.pools["other"] = Pool(spec)
    with pytest.raises(InvalidParams) as wrong:
        world.admit(placement=World.pin("other"))
    assert wrong.value.details["rule"] == "pin_infeasible"
