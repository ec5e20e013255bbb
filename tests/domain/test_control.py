"""Drain and resume as steps of the aggregate."""

from __future__ import annotations

from typing import Any

import pytest

from orchestratord.domain import forecast
from orchestratord.domain.control import Control
from orchestratord.domain.errors import PoolUnready
from orchestratord.domain.operation import Fault, Model, Operation, PoolChanged
from orchestratord.domain.pool import Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.task import Task
from tests.domain.world import World


def operation(kind: Any = "drain", **fields: Any) -> Operation:
    return Operation(
        **{
            "id": "op-1",
            "pool_id": "home",
            "kind": kind,
            "state": "pending",
            "from_model_ref": "m",
            "generation": 1,
            "started_ms": 5,
            **fields,
        }
    )


class Two(World):
    """Pools `home` and `away` that both serve `m`."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(pools=("home", "away"), **fields)
        self.core: Control
        self.core.add_replica("away", Replica("r0"))
        self.ready(1, "away")

    def drain(self) -> None:
        self.core.begin(operation(), draining=True)
        self.commit()

    def replica(self, pool: str) -> Replica:
        return self.core.pools[pool].replicas["r0"]

    def queued(self, pool: str) -> list[Task]:
        return list(self.core.pools[pool].queue)


def test_a_drain_starts_nothing_from_the_step_that_accepts_it() -> None:
    """I20: not even before it is durable."""
    world = World(slots=2, auto=False)
    world.admit()
    world.commit()
    world.core.begin(operation(), draining=True)
    assert world.dispatch() == []


def test_a_drain_that_cannot_be_journaled_is_undone() -> None:
    world = World(slots=1, auto=False)
    world.core.begin(operation(), draining=True)
    world.tickets[-1].resolve(OSError("full"))
    pool = world.core.pools["home"]
    assert (pool.draining, pool.operation) == (False, None)


def test_queued_tasks_move_in_the_order_of_their_admission() -> None:
    """ORCH-3031: among those that wait there already, and never beyond the room there is."""
    world = Two(slots=1, capacity=3)
    tasks = [world.admit(placement=world.prefer("home" if i % 2 else "away")) for i in range(6)]
    pinned = [t for t in tasks if t.pool_id == "home"]
    assert len(pinned) == 3
    world.core.cancel(tasks[0], "client", world.now, world.wall_ms)  # one seat comes free in `away`
    world.drain()
    world.core.dispatch(world.now, world.wall_ms)
    moved = [t for t in pinned if t.pool_id == "away"]
    assert moved == [tasks[1]]
    assert tasks[1].state == "starting", "it is the oldest there, so it went first"
    assert world.queued("away") == [tasks[2], tasks[4]]
    assert world.queued("home") == [tasks[3], tasks[5]]


@pytest.mark.parametrize(
    ("queue", "moved"), [(QueueSpec(8, batch_capacity=2), 2), (QueueSpec(5, "shed-low-priority"), 4)]
)
def test_batch_work_that_moves_takes_no_more_seats_than_batch_may(queue: QueueSpec, moved: int) -> None:
    """ORCH-3005, ORCH-3031: one after the other, as if each were admitted there."""
    world = Two(slots=0, queue=QueueSpec(8))
    world.core.pools["away"].queue.spec = queue
    tasks = [world.admit(priority="batch", placement=world.prefer("home")) for _ in range(6)]
    world.replica("away").slots = 0
    world.drain()
    world.dispatch()
    assert world.queued("away") == tasks[:moved]
    assert world.queued("home") == tasks[moved:]


def test_a_victim_that_has_promised_its_seat_does_not_move() -> None:
    """Its newcomer would find it gone, and drop it from a queue where nobody needs the seat."""
    world = Two(slots=0, queue=QueueSpec(1, "drop-lru"), auto=False)
    victim = world.admit(priority="batch", placement=world.prefer("home"))
    world.commit()
    newcomer = world.admit(placement=world.pin("home"))
    world.core.begin(operation(), draining=True)
    world.ready(1, "away")
    world.dispatch()
    world.commit()
    assert victim.failure is not None
    assert victim.failure.code == "QUEUE_FULL_DROP_LRU"
    assert (victim.pool_id, newcomer.pool_id, newcomer.committed) == ("home", "home", True)


def test_a_newcomer_that_moves_on_leaves_its_victim_the_seat() -> None:
    """Its pool was closed before its admission was durable: where it is now it has a seat of its own."""
    world = Two(slots=0, queue=QueueSpec(1, "drop-lru"), auto=False)
    victim = world.admit(priority="batch", placement=world.pin("home"))
    world.commit()
    newcomer = world.admit(placement=world.prefer("home"))
    assert world.core.pools["home"].queue.is_marked(victim)
    world.core.begin(operation(), draining=True)
    world.ready(1, "away")
    world.dispatch()
    world.commit()
    assert (newcomer.pool_id, newcomer.committed) == ("away", True)
    assert (victim.terminal, world.queued("home")) == (False, [victim])


def test_nobody_says_when_a_task_in_a_closed_pool_starts() -> None:
    """OC-CTRL-2010: an estimate that counts on a pool that is drained, or down, would be a lie."""
    world = World(slots=1)
    task, pool = world.admit(), world.core.pools["home"]
    assert forecast.expected_ms(pool, task, world.now) == 0
    world.core.replica_loading("home", pool.replicas["r0"], "starting")
    assert forecast.expected_ms(pool, task, world.now) is None
    world.ready(1)
    assert forecast.on_time_probability(pool, task, world.now) > 0.9
    world.core.begin(operation(), draining=True)
    world.commit()
    assert forecast.expected_ms(pool, task, world.now) is None
    assert forecast.on_time_probability(pool, task, world.now) == 0


def test_a_pool_that_loads_says_how_long_that_takes_yet() -> None:
    """OC-CORE-1013: by what a load takes, here the prior of ten seconds; nothing once that is over."""
    world = World()
    pool = world.core.pools["home"]
    pool.replicas["r0"].kind = "process"
    world.core.replica_loading("home", pool.replicas["r0"], "starting")
    pool.stay.move("in", world.now)
    for passed, left in ((0, 10_000), (4, 6_000), (7, None)):
        world.now += passed
        with pytest.raises(PoolUnready) as refused:
            world.admit()
        assert refused.value.retry_after_ms == left


def test_what_runs_is_ended_and_what_waits_is_not() -> None:
    world = World(slots=1)
    running, waiting = world.admit(), world.admit()
    world.dispatch()
    assert world.core.end_running(world.core.pools["home"], "over", world.now, world.wall_ms) == 1
    assert running.failure is not None
    assert (running.failure.code, running.failure.retriable) == ("POOL_UNAVAILABLE", True)
    assert not waiting.terminal


def test_a_reload_keeps_the_places_of_those_it_still_serves_and_ends_the_others() -> None:
    world = World(slots=0)
    by_model, by_pool = world.admit(), world.admit(model_ref="home")
    pool = world.core.pools["home"]
    world.core.begin(operation("reload", to_model_ref="n"), draining=False)
    world.core.commit(pool, Model("n"))
    replica = Replica("r0", state="ready", slots=1, ctx=4096, workloads=frozenset({"completion"}))
    world.core.swap(pool, Model("n"), [replica])
    leases = world.dispatch()
    assert [lease.task for lease in leases] == [by_pool]
    assert by_model.failure is not None
    assert by_model.failure.code == "POOL_UNREADY"
    assert "serves n now" in by_model.failure.message


def reload(world: World, ref: str) -> None:
    """`home` serves another model from now on, with one free slot."""
    pool = world.core.pools["home"]
    world.core.begin(operation("reload", to_model_ref=ref), draining=False)
    world.core.commit(pool, Model(ref))
    world.core.swap(
        pool, Model(ref), [Replica("r0", state="ready", slots=1, ctx=4096, workloads=frozenset({"completion"}))]
    )
    world.commit()


def test_nothing_runs_on_another_model_because_the_right_one_is_closed() -> None:
    """ORCH-2103: what waited for the old model ends with what an admission would say now, if it cannot move."""
    world = Two(slots=0)
    task = world.admit(placement=world.prefer("home"))
    world.core.hold(world.core.pools["away"], draining=True)
    reload(world, "n")
    assert world.dispatch() == []
    assert task.failure is not None
    assert (task.failure.code, task.failure.retriable) == ("POOL_UNREADY", True)


def test_nothing_runs_on_another_model_because_the_queue_of_the_right_one_is_full() -> None:
    """ORCH-2103."""
    world = Two(slots=0, capacity=1)
    task = world.admit(placement=world.prefer("home"))
    world.admit(placement=world.pin("away"))
    reload(world, "n")
    leases = world.dispatch()
    assert [lease.pool.id for lease in leases] == ["away"]
    assert task.failure is not None
    assert (task.failure.code, task.failure.retriable) == ("ADMISSION_REJECT", True)


def test_a_task_between_two_attempts_does_not_go_on_with_another_model() -> None:
    """ORCH-2103."""
    world = Two(slots=1)
    task = world.admit(placement=world.prefer("home"))
    (lease,) = world.dispatch()
    world.core.retry(lease, world.now)
    world.core.hold(world.core.pools["away"], draining=True)
    reload(world, "n")
    assert world.dispatch() == []
    assert task.failure is not None
    assert task.failure.code == "POOL_UNREADY"


def test_what_a_restart_makes_of_an_operation() -> None:
    """A reload is wholly new from the fact of its swap on, and wholly old before."""

    def after(kind: Any, state: Any) -> tuple[str, int | None]:
        fact = PoolChanged("home", "m", True, 1, None, operation(kind, state=state)).after_restart(77)
        return fact.operation.state, fact.operation.ended_ms

    assert after("drain", "pending") == ("succeeded", 77)
    for state in ("pending", "fetching", "preloading", "probing"):
        assert after("reload", state) == ("rolled_back", 77)
    assert after("reload", "swapping") == ("succeeded", 77)
    over = PoolChanged("home", "m", True, 1, None, operation(state="failed", ended_ms=3, error=Fault("X", "y", 1)))
    assert over.after_restart(77) is over


def test_a_changed_configuration_wins_over_an_old_reload() -> None:
    done = operation("reload", state="succeeded", ended_ms=9)
    for configured, served in (("m", "n"), ("other", "m")):
        world = World()
        fact = PoolChanged("home", configured, False, 2, Model("n", "/models/n"), done)
        world.core.restore_pools([fact], world.wall_ms)
        assert world.core.pools["home"].spec.model_ref == served


def test_a_strict_task_that_moves_leaves_no_replica_kept_for_it() -> None:
    """It would be leased there as well when that pool is resumed."""
    world = Two(slots=2)
    world.replica("home").exact_alone = world.replica("away").exact_alone = True
    running = [world.admit(placement=world.pin("home")), world.admit(placement=world.pin("away"))]
    world.dispatch()
    strict = world.admit(determinism="strict", placement=world.prefer("home"))
    world.dispatch()
    assert world.replica("home").reserved is strict
    world.drain()
    world.dispatch()
    assert (strict.pool_id, world.replica("home").reserved) == ("away", None)
    assert not any(task.terminal for task in running)


def test_a_strict_task_does_not_start_on_a_draining_pool_though_its_replica_is_kept() -> None:
    """I20: the replica becomes idle while the pool drains; it stays kept, and is leased when the pool is resumed."""
    world = World(slots=2)
    replica = world.core.pools["home"].replicas["r0"]
    world.admit()
    (running,) = world.dispatch()
    strict = world.admit(determinism="strict")
    assert world.dispatch() == []
    assert replica.reserved is strict
    world.core.begin(operation(), draining=True)
    world.commit()
    world.finish(running)
    assert (replica.leases, world.dispatch()) == ({}, [])
    world.core.hold(world.core.pools["home"], draining=False)
    assert [lease.task for lease in world.dispatch()] == [strict]


def test_a_task_between_two_attempts_moves_too_and_goes_first() -> None:
    world = Two(slots=1)
    tried, blocker = world.admit(placement=world.prefer("home")), world.admit(placement=world.pin("away"))
    leases = {lease.task: lease for lease in world.dispatch()}
    waiting = world.admit(placement=world.pin("away"))
    world.core.retry(leases[tried], world.now + 1)
    world.drain()
    assert world.dispatch() == []
    assert tried.pool_id == "away"
    world.now += 2
    world.finish(leases[blocker])
    assert [lease.task for lease in world.dispatch()] == [tried]
    assert waiting.state == "queued"


def test_one_that_has_nowhere_to_go_ends_with_the_drain() -> None:
    world = World(slots=1)
    task = world.admit()
    (lease,) = world.dispatch()
    world.core.retry(lease, world.now + 60)
    world.core.begin(operation(), draining=True)
    world.commit()
    world.dispatch()
    assert world.core.end_running(world.core.pools["home"], "over", world.now, world.wall_ms) == 1
    assert task.failure is not None
    assert task.failure.code == "POOL_UNAVAILABLE"
