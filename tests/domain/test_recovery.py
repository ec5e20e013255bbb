"""Recovery is a function of the journal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.budget import Budget
from orchestratord.domain.facts import Admitted, Finished, Forgotten, Frames, JournaledTask, SessionDeleted, Started
from orchestratord.domain.hooks import Limits
from orchestratord.domain.outcome import TaskState, Usage
from orchestratord.domain.pool import Replica
from orchestratord.domain.task import Task
from orchestratord.wire import sse
from tests.domain.world import World


def journaled(world: World) -> tuple[list[JournaledTask], list[SessionDeleted]]:
    """What a journal that kept every fact would load."""
    tasks: dict[str, dict[str, Any]] = {}
    deleted: list[SessionDeleted] = []
    for fact in world.facts:
        if isinstance(fact, SessionDeleted):
            deleted.append(fact)
        elif isinstance(fact, Admitted):
            tasks[fact.task_id] = {"admitted": fact, "started": None, "frames": b"", "finished": None}
        elif isinstance(fact, Started):
            tasks[fact.task_id]["started"] = fact
        elif isinstance(fact, Frames):
            tasks[fact.task_id]["frames"] += fact.data
        elif isinstance(fact, Finished):
            tasks[fact.task_id]["finished"] = fact
        elif isinstance(fact, Forgotten):
            del tasks[fact.task_id]
    return [JournaledTask(**fields, transcript_id=None) for fields in tasks.values()], deleted


def restart(world: World, downtime: float = 1.0, limits: Limits | None = None) -> World:
    after = World(slots=2, capacity=4, limits=limits)
    after.now = world.now + downtime
    items, deleted = journaled(world)
    after.core.restore(items, deleted, sse.split, after.now, after.wall_ms)
    after.commit()
    return after


def test_waiting_tasks_wait_again_in_order_and_the_running_one_ends_in_worker_reset() -> None:
    """SPEC 4 (crash), issue 2 line 5: one with tokens sent, one leased without a token, the rest queued."""
    world = World(slots=2, capacity=8)
    running, silent, *waiting = [
        world.admit(priority=p) for p in ["interactive", "interactive", "batch", "interactive"]
    ]
    first, _second = world.dispatch()
    world.output(first, "a", "b")
    world.core.flush(running, world.now)
    after = restart(world)
    reset = after.core.tasks[running.task_id]
    assert reset.failure is not None
    assert reset.failure.code == "WORKER_RESET"
    assert reset.failure.retriable
    assert reset.usage.tokens_out == 2, "what was journaled counts, for its session's budget too"
    assert after.core.sessions.get(running.session_id, after.now).account.spent.tokens == 3 + 2  # type: ignore[union-attr]
    events = after.visible(reset)
    assert [e[:2] for e in events[:-1]] == [(1, "started"), (2, "token"), (3, "token")]
    assert events[-1][0] == running.request.max_events + 1
    queue = [task.task_id for task in after.core.pools["home"].queue]
    assert queue == [silent.task_id, waiting[1].task_id, waiting[0].task_id]
    assert [lease.task.task_id for lease in after.dispatch()] == queue[:2]


def test_a_task_that_waits_again_shows_no_token_before_its_start_is_durable() -> None:
    """ORCH-2002: as before the restart; else a second crash would run again what somebody saw."""
    world = World()
    task_id = world.admit().task_id
    after = restart(world)
    task = after.core.tasks[task_id]
    after.auto = False
    (lease,) = after.dispatch()
    after.output(lease, "a")
    assert [name for _, name, _ in after.visible(task)] == ["started"]
    after.commit()
    assert [name for _, name, _ in after.visible(task)] == ["started", "token"]


def test_a_finished_task_replays_byte_for_byte() -> None:
    world = World()
    task = world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "héllo")
    world.finish(lease)
    after = restart(world)
    assert after.core.tasks[task.task_id].log.raw() == task.log.raw()
    assert after.core.known(task.task_id, task.admitted.fingerprint) is not None


def test_deadlines_and_sessions_go_on_across_a_restart() -> None:
    world = World()
    task = world.admit(deadline_ms=60_000, session_id="s")
    world.admit(session_id="s")
    after = restart(world, downtime=20.0)
    assert after.core.tasks.next_deadline() == after.now + 40
    assert after.core.session("s", after.now).turns == 2
    after.now += 41
    after.core.expire(after.now, after.wall_ms)
    assert after.core.tasks[task.task_id].failure is not None


def ended_the_other_way_round(limits: Limits) -> tuple[World, list[Task]]:
    """Two tasks of session `s`; the first one ended last, 900 s after the second."""
    world = World(slots=2, limits=limits)
    tasks = [world.admit(session_id="s"), world.admit(session_id="s")]
    leases = world.dispatch()
    for lease in reversed(leases):
        world.output(lease, "a")
        world.finish(lease)
        world.now += 900
    return world, tasks


def test_a_session_is_idle_since_its_last_end_over_a_restart_too() -> None:
    """ORCH-3021: whichever of its tasks was admitted last. Else it would expire early, and its budget be new."""
    limits = Limits(session_ttl_s=1000)
    world, _ = ended_the_other_way_round(limits)
    session = world.core.session("s", world.now)
    left = world.core.sessions.ttl_left(session, world.now)
    after = restart(world, downtime=10.0, limits=limits)
    assert after.core.session("s", after.now).turns == 2
    assert after.core.sessions.ttl_left(after.core.session("s", after.now), after.now) == left - 10


def test_what_a_session_has_spent_is_known_after_a_restart_however_long_ago_it_was() -> None:
    """ORCH-3099: the journal keeps its early tasks as long as it is there, though nobody can ask for them any more."""
    limits = Limits(session_ttl_s=600, retain_s=100, budget=Budget(tokens=100))
    world = World(slots=1, limits=limits)
    for _ in range(2):
        world.admit(session_id="s")
        (lease,) = world.dispatch()
        world.output(lease, "a")
        world.finish(lease, finish_reason="stop", usage=Usage(3, 5))
        world.now += 300
    world.core.forget(world.now)
    assert not world.core.tasks
    after = restart(world, limits=limits)
    session = after.core.session("s", after.now)
    assert (session.turns, session.account.spent.tokens) == (2, 16)
    after.core.forget(after.now)
    assert not after.core.tasks
    assert not any(isinstance(fact, Forgotten) for fact in after.facts)
    after.now += 600
    after.core.forget(after.now)
    assert len([fact for fact in after.facts if isinstance(fact, Forgotten)]) == 2, "they go when it does"


def test_what_the_journal_keeps_for_sessions_has_a_bound_and_no_claim_to_an_id() -> None:
    """SPEC 4 (Retention): an id that is free again can be used, and what it names then is not forgotten."""
    limits = Limits(retain_s=100, retain_tasks=3, turns_max=100)
    world = World(slots=0, limits=limits, capacity=10)
    ids = [world.admit(session_id="s").task_id for _ in range(4)]
    for task_id in ids:
        world.cancel(world.core.tasks[task_id])
    world.now += 200
    world.core.forget(world.now)
    assert [fact.task_id for fact in world.facts if isinstance(fact, Forgotten)] == ids[:1]
    world.admit(task_id=ids[1], session_id="t")
    world.now += 700
    world.core.forget(world.now)
    assert [fact.task_id for fact in world.facts if isinstance(fact, Forgotten)] == [ids[0], *ids[2:]]


def test_retention_goes_by_the_ends_over_a_restart_too() -> None:
    """SPEC 4 (Retention): by number and by age, whichever order the tasks were admitted in."""
    world, (late, early) = ended_the_other_way_round(Limits())
    after = restart(world, limits=Limits(retain_tasks=1))
    after.core.forget(after.now)
    assert list(after.core.tasks) == [late.task_id]
    after = restart(world, limits=Limits(retain_s=1500))
    after.core.forget(after.now)
    assert early.task_id not in after.core.tasks


def test_a_wall_clock_that_was_set_back_prolongs_nothing() -> None:
    """K1: while the daemon was down. Nobody waits a day for a task that was to end within a minute."""
    world = World()
    task = world.admit(deadline_ms=60_000, session_id="s")
    after = restart(world, downtime=-86_400.0)
    assert after.core.tasks[task.task_id].created == after.now
    assert after.core.tasks.next_deadline() == after.now + 60


@pytest.mark.parametrize(("pinned", "home"), [(False, "away"), (True, None)])
def test_a_task_does_not_wake_up_in_a_pool_that_serves_another_model(pinned: bool, home: str | None) -> None:
    """ORCH-3039: the swap of a reload was journaled, or the configuration changed, while it was waiting."""
    world = World(slots=1, pools=("home", "away"))
    world.core.add_replica("away", Replica("r0"))
    task = world.admit(placement=world.pin("home") if pinned else world.prefer("home"))
    after = World(slots=1, pools=("home", "away"))
    after.core.add_replica("away", Replica("r0"))
    pool = after.core.pools["home"]
    pool.spec = replace(pool.spec, model_ref="n")
    items, deleted = journaled(world)
    after.core.restore(items, deleted, sse.split, after.now, after.wall_ms)
    after.commit()
    found = after.core.tasks[task.task_id]
    assert after.dispatch() == [], "home is ready, but with another model"
    if home is None:
        assert found.failure is not None
        assert found.failure.code == "POOL_UNAVAILABLE"
        return
    assert (found.state, found.pool_id) == ("queued", home)
    after.ready(1, home)
    assert [lease.pool.id for lease in after.dispatch()] == [home]


def test_a_task_waits_for_the_replica_that_can_take_it_and_is_not_up_yet() -> None:
    """ORCH-3006: what the first replica that is up cannot do, the next one may."""
    world = World(slots=1)
    world.core.add_replica("home", Replica("r1"))
    big = world.core.pools["home"].replicas["r1"]
    facts = {"slots": 1, "engine_version": "mock-1", "workloads": frozenset({"completion"})}
    world.core.replica_ready("home", big, ctx=8192, **facts)
    task = world.admit(ctx=8192)
    after = World(slots=0)
    after.core.add_replica("home", Replica("r1"))
    items, deleted = journaled(world)
    after.core.restore(items, deleted, sse.split, after.now, after.wall_ms)
    after.ready(1)
    assert after.dispatch() == []
    assert after.core.tasks[task.task_id].state is TaskState.QUEUED
    after.core.replica_ready("home", after.core.pools["home"].replicas["r1"], ctx=8192, **facts)
    assert [lease.replica.id for lease in after.dispatch()] == ["r1"]


def test_a_deleted_session_stays_deleted() -> None:
    world = World()
    world.admit(session_id="s")
    world.core.delete_session("s", world.now, world.wall_ms)
    world.commit()
    after = restart(world)
    assert after.core.sessions.find("s", after.now) is None
    after.admit(session_id="s")
    assert after.core.session("s", after.now).turns == 2  # what it spent stays spent


@given(st.lists(st.sampled_from(["admit", "batch", "dispatch", "output", "finish", "cancel", "flush"]), max_size=40))
def test_recovery_loses_and_repeats_nothing(steps: list[str]) -> None:
    """I7, I11: after any history every accepted task is there, and recovering twice changes nothing."""
    world = World(slots=2, capacity=50)
    leases: list[Any] = []
    for step in steps:
        if step in ("admit", "batch"):
            world.admit(priority="batch" if step == "batch" else "interactive")
        elif step == "dispatch":
            leases += world.dispatch()
        elif leases and step == "output":
            world.output(leases[0], "x")
        elif leases and step == "finish":
            world.finish(leases.pop(0))
        elif leases and step == "cancel":
            world.cancel(leases[0].task)
        elif leases and step == "flush":
            world.core.flush(leases[0].task, world.now)
    after = restart(world)
    assert list(after.core.tasks) == list(world.core.tasks)
    for before in world.core.tasks.values():
        _same_or_settled(before, after.core.tasks[before.task_id])


def _same_or_settled(before: Task, now: Task) -> None:
    if before.terminal:
        assert now.log.raw() == before.log.raw()
        assert now.state == before.state
    elif before.first_token is not None:
        assert now.state is TaskState.FAILED
        assert before.log.raw().startswith(now.log.raw()[: now.log.offset_after(now.log.sealed or 0)])
        assert now.log.last_id > before.log.last_id
    else:
        assert now.state is TaskState.QUEUED
