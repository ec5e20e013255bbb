"""Dispatch: a lease always comes back, whenever the task's end meets the run's beginning."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.services.support import leases, running, soon, state_of, submit


def test_a_cancel_between_lease_and_first_step_frees_the_slot() -> None:
    """The cancel is ready to run on the loop when the lease is taken: the run's task is cancelled unstarted."""
    with LiveApp() as app, app.session() as session:
        core, clock = app.daemon.core, app.daemon.clock
        dispatch = core.dispatch

        def meet(*args: Any) -> list[Any]:
            taken = dispatch(*args)
            for lease in taken:
                soon(lambda task=lease.task: core.cancel(task, "client", clock.now(), clock.wall_ms()))
            return taken

        core.dispatch = meet  # type: ignore[method-assign]
        for _ in range(2):
            assert state_of(session, submit(session)) == "canceled"
        app.advance(20)
        core.dispatch = dispatch  # type: ignore[method-assign]
        assert leases(app) == 0
        task_id = submit(session)
        app.settle()
        assert state_of(session, task_id) == "ended"


def test_an_engine_that_dies_after_output_is_not_asked_again() -> None:
    """OD-24: what was seen stands, the task ends as failed and may be sent again; its slot is free."""
    with LiveApp() as app, app.session() as session:
        app.call(lambda: app.engine().play(MockScript(die_after=2)))
        before = app.engine().calls
        task_id = submit(session)
        with session.events(task_id) as events:
            app.settle()
            *_, last = events
        assert (last.name, last.data["code"], last.data["retriable"]) == ("error", "WORKER_RESET", True)
        assert app.engine().calls == before + 1
        assert leases(app) == 0


def test_deadlines_hold_while_the_daemon_stops() -> None:
    """ORCH-3014: however long the grace is; of what runs and of what waits."""
    with LiveApp(mock_settings(pools=[mock_pool(slots=1)])) as app, app.session() as session:
        tasks = [running(app, session, deadline_ms=6000), submit(session, deadline_ms=5000)]
        draining = app.call(lambda: asyncio.ensure_future(app.daemon.drain(60)))
        app.advance(4)
        assert [state_of(session, task_id) for task_id in tasks] == ["running", "queued"]
        app.advance(3)
        for task_id in tasks:
            assert session.get(f"/v1/tasks/{task_id}").json()["error"]["code"] == "DEADLINE_UNMET"
        assert app.call(draining.done), "nothing runs any more"


def test_while_the_daemon_stops_nothing_but_deadlines_is_waited_for() -> None:
    """An idle model was due to be unloaded, which nobody does any more: the loop would turn for ever."""
    pool = {**mock_pool(), "load": "on_demand", "idle_unload_ms": 5000}
    with LiveApp(mock_settings(pools=[pool])) as app, app.session() as session:
        dispatch, core, clock = app.daemon.dispatch, app.daemon.core, app.clock
        task_id = submit(session)
        app.advance(2)
        assert state_of(session, task_id) == "ended"
        assert app.call(lambda: core.next_due(clock.now())) is not None
        app.call(dispatch.pause)
        app.call(dispatch.wake)
        app.settle()
        assert app.call(lambda: dispatch._timer) is None


@pytest.mark.parametrize("taskless", [True, False])
def test_only_an_engine_that_needs_no_task_is_asked_without_one(taskless: bool) -> None:
    """A driver of another package may use `asyncio.timeout`, or a client that does."""
    with LiveApp() as app, app.session() as session:
        engine, seen = app.engine(), []
        run = engine.run

        async def looking(job: Any, deliver: Any) -> None:
            seen.append(asyncio.current_task() is None)
            await run(job, deliver)

        engine.run, engine.taskless = looking, taskless  # type: ignore[method-assign]
        task_id = submit(session)
        app.settle()
        assert state_of(session, task_id) == "ended"
        assert seen == [taskless]


def test_a_run_that_cannot_begin_keeps_no_other_from_beginning() -> None:
    """A bug in one of them: whatever else has a lease runs."""
    with LiveApp() as app, app.session() as session:
        dispatch, reports = app.daemon.dispatch, []
        begin = dispatch._begin

        def broken(lease: Any, place: Any) -> None:
            if lease.task.request.prompt == "broken":
                raise LookupError("a bug")
            begin(lease, place)

        dispatch._begin = broken
        app.call(lambda: asyncio.get_running_loop().set_exception_handler(lambda _, what: reports.append(what)))
        app.call(dispatch.pause)
        first, second = submit(session, prompt="broken"), submit(session)
        app.call(lambda: setattr(dispatch, "_paused", False))
        app.call(dispatch.wake)
        app.settle()
        assert (state_of(session, first), state_of(session, second)) == ("starting", "ended")
        assert [type(report["exception"]) for report in reports] == [LookupError]
        app.call(lambda: app.daemon.core.cancel(app.daemon.core.tasks[first], "client", 0.0, 0))
