"""Dispatch: the one place that acts on the core's decisions. One step per wake-up, one run per lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from orchestratord.domain.core import Core
from orchestratord.domain.pool import Lease
from orchestratord.ports import Clock, Timer
from orchestratord.services.narration import Narrator


class Run(Protocol):
    def cancel(self) -> object: ...


class Place:
    """Where the run of one lease is kept while it waits for anything; it has not to be a Task."""

    __slots__ = ("_lease", "_over", "_runs")

    def __init__(self, lease: Lease, runs: dict[int, Run], over: Callable[[Lease], None]) -> None:
        self._lease = lease
        self._runs = runs
        self._over = over

    def add(self, run: Run, /) -> None:
        self._runs[self._lease.id] = run

    def discard(self, run: Run, /) -> None:
        self._over(self._lease)


class Dispatch:
    """Wakes are cheap and collapse into one step per turn of the loop. `begin` begins the run of a lease, which has its
    place until it is over."""

    def __init__(self, clock: Clock, begin: Callable[[Lease, Place], None]) -> None:
        self._clock = clock
        self._begin = begin
        self._runs: dict[int, Run] = {}  # by lease id
        self._emptied: asyncio.Future[None] | None = None
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
            try:
                self._begin(lease, Place(lease, self._runs, self._over))
            except Exception as error:  # a bug; the other leases are no worse for it
                report = {"message": f"the run of lease {lease.id} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(report)

    def _over(self, lease: Lease) -> None:
        self._runs.pop(lease.id, None)
        if lease.task.terminal and not lease.quarantined:
            self._core.release(lease)  # aborted before its first step: nobody else gives the slot back
        if self._emptied is not None and not self._runs:
            self._emptied.set_result(None)
            self._emptied = None

    def _arm(self) -> None:
        # Paused, all but the deadlines waits; to be told of it again and again would not end.
        due = self._core.tasks.next_deadline() if self._paused else self._core.next_due(self._clock.now())
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
            if self._emptied is None or self._emptied.done():
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)
