"""Retries, breakers and exclusive leases: what a failing engine costs nobody."""

from __future__ import annotations

from typing import Any

import pytest

from orchestratord.domain.breaker import OPEN_MAX_S, OPEN_S, TRIP_AFTER, Breaker
from orchestratord.domain.errors import ReplicaExhausted
from orchestratord.domain.operation import Fault
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.pool import Replica
from tests.domain.world import World

FAULT = Fault("REPLICA_EXHAUSTED", "lost: gone", 0)


def second_replica(world: World, slots: int = 1) -> Replica:
    replica = Replica("r1", state="ready", slots=slots, ctx=4096, engine_version="mock-1", exact_alone=True)
    replica.workloads = frozenset({"completion"})
    world.core.add_replica("home", replica)
    return replica


# -- retries ---------------------------------------------------------------------------------------------------
def test_a_task_is_tried_again_before_everybody_and_on_another_replica() -> None:
    """OD-24: the next lease goes to a replica that has not failed it, though that one is free as well."""
    world = World(slots=1)
    second_replica(world)
    task = world.admit()
    (lease,) = world.dispatch()
    failed_on = lease.replica.id
    busy = world.admit()
    world.dispatch()
    waiting = world.admit()
    world.core.retry(lease, world.now + 1)
    assert (task.state, task.waits) == (TaskState.STARTING, True)
    (other,) = world.dispatch()  # the pause is not over: the next in line takes the free slot
    assert other.task is waiting
    world.finish(other)
    assert world.core.next_due(world.now) == world.now + 1
    world.now += 1
    assert world.dispatch() == []  # the only other replica is taken, and it does not go back to the one that failed
    (taken,) = [le for r in world.core.pools["home"].replicas.values() for le in r.leases.values()]
    assert taken.task is busy
    world.finish(taken)
    (again,) = world.dispatch()
    assert (again.task, again.replica.id != failed_on, task.attempts) == (task, True, 2)


def test_of_several_pauses_the_first_to_end_is_waited_for() -> None:
    """OD-24."""
    world = World(slots=2)
    for _ in range(2):
        world.admit()
    first, second = world.dispatch()
    world.core.retry(first, world.now + 5)
    world.core.retry(second, world.now + 2)
    assert world.core.next_due(world.now) == world.now + 2
    assert world.core.next_due(world.now + 3) == world.now + 5


def test_the_only_replica_gets_its_task_back() -> None:
    """OD-24."""
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    world.core.retry(lease, world.now)
    (again,) = world.dispatch()
    assert (again.task, again.replica) == (task, lease.replica)
    world.output(again, "x")
    world.finish(again)
    assert task.state is TaskState.ENDED


def test_output_that_was_seen_is_never_made_again() -> None:
    """OD-24, invariant I8."""
    world = World(slots=1)
    world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "x")
    with pytest.raises(AssertionError, match="second time"):
        world.core.retry(lease, world.now)


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_task_between_two_leases_can_end(end: str) -> None:
    """OD-24, ORCH-3026: it is nowhere any more afterwards."""
    world = World(slots=1)
    task = world.admit(deadline_ms=60_000)
    (lease,) = world.dispatch()
    world.core.retry(lease, world.now + 5)
    if end == "cancel":
        world.cancel(task)
    else:
        world.now += 61
        world.core.expire(world.now, world.wall_ms)
        world.commit()
    assert task.terminal
    world.now += 100
    assert world.dispatch() == []
    assert [phase for _, phase, _ in world.ended] == ["running"]


def test_a_slot_that_is_not_proven_free_stays_taken_while_the_task_goes_on() -> None:
    """OD-24: with one slot nothing starts until the engine has let go of the first attempt."""
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    world.core.retry(lease, world.now, slot_free=False)
    assert world.dispatch() == []
    world.core.release(lease)
    assert [le.task for le in world.dispatch()] == [task]


# -- breakers --------------------------------------------------------------------------------------------------
def test_a_breaker_opens_after_failures_in_a_row_and_longer_with_every_relapse() -> None:
    """OD-25."""
    breaker = Breaker()
    for _ in range(TRIP_AFTER - 1):
        assert not breaker.failed(0)
    breaker.succeeded()
    for n in range(TRIP_AFTER):
        assert breaker.failed(10) == (n == TRIP_AFTER - 1)
    assert breaker.open
    assert not breaker.due(10 + OPEN_S - 0.01)
    assert breaker.due(10 + OPEN_S)
    now, pause = 10 + OPEN_S, OPEN_S
    for _ in range(10):
        breaker.probed()
        assert not breaker.open
        assert breaker.failed(now)  # on probation
        pause = min(pause * 2, OPEN_MAX_S)
        assert breaker.open_until == now + pause
        now += pause
    breaker.succeeded()
    assert (breaker.open, breaker.failures) == (False, 0)


def test_an_open_breaker_takes_the_replica_out_and_a_probe_brings_it_back() -> None:
    """OC-CORE-1014, OD-25: the refusal says when the probe is due."""
    world = World(slots=4)
    task = world.admit()
    (lease,) = world.dispatch()
    assert [world.core.blame(lease, FAULT, world.now) for _ in range(TRIP_AFTER)] == [False, False, True]
    world.core.retry(lease, world.now)
    assert world.dispatch() == []
    assert not world.core.pools["home"].ready
    with pytest.raises(ReplicaExhausted) as refused:
        world.admit()
    assert refused.value.retry_after_ms == int(OPEN_S * 1000)
    world.core.replica_probed(world.core.pools["home"].replicas["r0"])
    assert [le.task for le in world.dispatch()] == [task]


def test_a_replica_that_has_failed_lately_comes_last() -> None:
    """OD-25: failing fast must not attract load."""
    world = World(slots=2)
    second_replica(world, slots=2)
    world.admit()
    (lease,) = world.dispatch()
    world.core.blame(lease, FAULT, world.now)
    world.core.retry(lease, world.now)
    for _ in range(2):
        world.admit()
    assert {le.replica.id for le in world.dispatch()[:2]} == {"r1"}


def test_a_failure_of_an_earlier_life_is_not_held_against_a_replica() -> None:
    world = World(slots=1)
    world.admit()
    (lease,) = world.dispatch()
    world.ready(1)
    for _ in range(TRIP_AFTER):
        assert not world.core.blame(lease, FAULT, world.now)


@pytest.mark.parametrize("how", ["finish", "retry"])
def test_a_slot_that_is_not_proven_free_is_known_as_such_until_it_is(how: str) -> None:
    """OD-24: whoever proves slots free looks for the mark; without it nobody ever gives the slot back."""
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    if how == "finish":
        world.output(lease, "x")
        world.finish(lease, finish_reason="stop", slot_free=False)
    else:
        world.core.retry(lease, world.now, slot_free=False)
    pool = world.core.pools["home"]
    assert (lease.quarantined, pool.leases, pool.at_work) == (True, [lease], [])
    waiting = world.admit()
    assert world.dispatch() == []
    world.core.release(lease)
    assert [le.task for le in world.dispatch()] == [task if how == "retry" else waiting]


# -- strict ----------------------------------------------------------------------------------------------------
def test_a_strict_task_waits_for_an_idle_replica_and_nothing_overtakes_it() -> None:
    """ORCH-3046: not even interactive work, from the moment the replica is kept for it."""
    world = World(slots=2)
    first, second = world.admit(), world.admit()
    running = world.dispatch()
    assert [le.task for le in running] == [first, second]
    strict = world.admit(determinism="strict", priority="batch")
    assert world.dispatch() == []
    urgent = world.admit()
    world.finish(running[0])
    assert world.dispatch() == []  # a slot is free, and it is kept
    world.finish(running[1])
    (alone,) = world.dispatch()
    assert (alone.task, alone.exclusive) == (strict, True)
    assert strict.determinism_class == "exact"
    world.finish(alone)
    assert [le.task for le in world.dispatch()] == [urgent]


def test_a_strict_task_that_is_cancelled_gives_its_replica_back() -> None:
    """ORCH-3046."""
    world = World(slots=2)
    world.admit()
    world.dispatch()
    strict, other = world.admit(determinism="strict"), world.admit()
    assert world.dispatch() == []
    world.cancel(strict)
    assert [le.task for le in world.dispatch()] == [other]


def test_a_strict_task_that_is_tried_again_waits_its_pause_like_any_other() -> None:
    """ORCH-3046, OD-24: the replica that was kept for its first attempt is not kept any more."""
    world = World(slots=1)
    second_replica(world)
    world.admit(), world.admit()
    running = {lease.replica.id: lease for lease in world.dispatch()}
    strict = world.admit(determinism="strict")
    world.dispatch()
    (kept,) = (r.id for r in world.core.pools["home"].replicas.values() if r.reserved is strict)
    world.finish(running.pop("r1" if kept == "r0" else "r0"))
    (lease,) = world.dispatch()
    assert (lease.task, lease.replica.id != kept) == (strict, True)
    world.core.retry(lease, world.now + 1)
    world.finish(running.pop(kept))
    assert world.dispatch() == []
    world.now += 1
    assert [le.task for le in world.dispatch()] == [strict]


def test_a_strict_task_does_not_wait_for_a_replica_that_died() -> None:
    """ORCH-3046: another one is kept for it instead."""
    world = World(slots=2)
    second_replica(world, slots=2)
    world.admit(), world.admit()
    running = {lease.replica.id: lease for lease in world.dispatch()}
    strict = world.admit(determinism="strict")
    world.dispatch()
    replicas = world.core.pools["home"].replicas
    (kept,) = (r for r in replicas.values() if r.reserved is strict)
    world.core.replica_failed("home", kept, FAULT)
    world.dispatch()
    (other,) = (r for r in replicas.values() if r is not kept)
    assert (kept.reserved, other.reserved) == (None, strict)
    world.finish(running[other.id])
    assert [le.task for le in world.dispatch()] == [strict]


def test_others_go_on_beside_a_replica_that_is_kept() -> None:
    """ORCH-3046: interactive work takes another replica."""
    world = World(slots=2)
    second_replica(world, slots=2)
    world.admit(), world.admit()
    assert len(world.dispatch()) == 2  # one each
    strict = world.admit(determinism="strict", priority="batch")
    assert world.dispatch() == []
    world.admit(), world.admit()
    (beside,) = world.dispatch()
    kept = next(r for r in world.core.pools["home"].replicas.values() if r.reserved is strict)
    assert beside.replica is not kept


@pytest.mark.parametrize(
    ("replica", "task", "expected"),
    [
        ({"slots": 1, "exact_warm": True}, {}, "exact"),
        ({"slots": 1, "features": ()}, {}, "exact"),  # keeps no prefixes
        ({"slots": 1, "features": ("prefix_cache",)}, {}, "best_effort"),
        ({"slots": 1, "features": ("prefix_cache",), "exact_warm": True}, {}, "exact"),
        ({"slots": 1, "features": ("prefix_cache",)}, {"kv_hint": "cold"}, "exact"),
        ({"slots": 2, "features": ("prefix_cache",)}, {"kv_hint": "cold"}, "best_effort"),
        ({"slots": 2, "features": ("prefix_cache",)}, {"determinism": "strict"}, "exact"),
        ({"slots": 1, "exact_alone": False}, {"kv_hint": "cold"}, "best_effort"),
    ],
)
def test_what_is_said_to_be_exact(replica: dict[str, Any], task: dict[str, Any], expected: str) -> None:
    """ORCH-3045: nothing shares a batch with it, and nothing of its prompt was computed in another batch before."""
    world = World(slots=1)
    for name, value in replica.items():
        setattr(world.core.pools["home"].replicas["r0"], name, value)
    admitted = world.admit(**task)
    assert admitted.determinism_class == expected, "what admission says"
    (lease,) = world.dispatch()
    assert lease.task.determinism_class == expected, "what is so in the end"
