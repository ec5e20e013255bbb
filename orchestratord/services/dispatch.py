"""Dispatch: the one place that acts on the core's decisions. One step per wake-up, one run per lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.pool import Lease
from orchestratord.ports import Clock, Timer
from orchestratord.services.narration import Narrator


class Dispatch:
    """Wakes are cheap and collapse into one step per turn of the loop."""

    def __init__(self, clock: Clock, run: Callable[[Lease], Coroutine[Any, Any, None]]) -> None:
        self._clock = clock
        self._run = run
        self._runs: dict[int, asyncio.Task[None]] = {}  # by lease id
        self._scheduled = False
        self._timer: tuple[float, Timer] | None = None
        self._paused = self._stopped = False

    def bind(self, core: Core, narrator: Narrator, arrange: Callable[[], None]) -> None:
        """The core and its dispatcher need each other; this ties the knot at start-up.

        `arrange` decides who is in memory, before anything is dispatched.
        """
        self._core = core
        self._narrator = narrator
        self._arrange = arrange

    def wake(self) -> None:
        """Something may have become dispatchable, or a deadline nearer."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        now, wall_ms = self._clock.now(), self._clock.wall_ms()
        self._core.expire(now, wall_ms)
        if not self._paused:
            self._dispatch(now, wall_ms)
        self._arm()

    def _dispatch(self, now: float, wall_ms: int) -> None:
        self._arrange()
        for lease in self._core.dispatch(now, wall_ms):
            if lease.task.attempts == 1:  # a task starts once, however often it is tried
                self._narrator.started(lease)
            task = asyncio.get_running_loop().create_task(self._run(lease), name=f"run-{lease.id}")
            self._runs[lease.id] = task
            task.add_done_callback(partial(self._over, lease))

    def _over(self, lease: Lease, run: asyncio.Task[None]) -> None:
        self._runs.pop(lease.id, None)
        if run.cancelled() and lease.task.terminal:
            self._core.release(lease)  # aborted before its first step: nobody else gives the slot back

    def _arm(self) -> None:
        due = self._core.next_due(self._clock.now())
        if self._timer is not None:
            if self._timer[0] == due:
                return
            self._timer[1].cancel()
            self._timer = None
        if due is not None:
            self._timer = (due, self._clock.call_at(due, self._deadline_passed))

    def _deadline_passed(self) -> None:
        self._timer = None
        self.wake()

    def abort(self, lease: Lease) -> None:
        """The lease's task is over: end its run. The run itself gives the slot back."""
        run = self._runs.get(lease.id)
        if run is not None:
            run.cancel()

    def abort_all(self) -> None:
        for run in list(self._runs.values()):
            run.cancel()

    @property
    def running(self) -> int:
        return len(self._runs)

    def pause(self) -> None:
        """Start nothing any more; what runs goes on, until its deadline at most."""
        self._paused = True

    def stop(self) -> None:
        """Do nothing by itself any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None

    async def drained(self) -> None:
        """Return when no run is left."""
        while self._runs:
            await asyncio.wait(list(self._runs.values()))
