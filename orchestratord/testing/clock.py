"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from orchestratord.infra.clock import Limit

START_S = 1000.0
START_WALL_MS = 1_800_000_000_000


class _Timer:
    __slots__ = ("cancelled", "fn")

    def __init__(self, fn: Callable[[], None]) -> None:
        self.fn = fn
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock:
    """Implements the Clock port. Lives on one asyncio loop; `advance` may be called from any other thread.

    `advance` fires timers one by one, in order, and lets everything settle after each: the loop's ready queue is
    empty and every registered `idle` condition (journal backlog, scripted engines) holds.
    """

    def __init__(self, now: float = START_S) -> None:
        self._now = now
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = count()
        self._idle: list[Callable[[], bool]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def wall_ms(self) -> int:
        return START_WALL_MS + round((self._now - START_S) * 1000)

    def call_at(self, when: float, fn: Callable[[], None]) -> _Timer:
        timer = _Timer(fn)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(lambda: None if timer.cancelled else fn())
        else:
            heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        timer = self.call_at(self._now + seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    def limit(self, seconds: float) -> Limit:
        return Limit(self, seconds)

    # -- for tests -----------------------------------------------------------------------------------------
    def attach(self, loop: asyncio.AbstractEventLoop, *idle: Callable[[], bool]) -> None:
        """Bind the clock to the loop it serves and say when that loop's world is at rest."""
        self._loop = loop
        self._idle.extend(idle)

    def advance(self, seconds: float) -> None:
        """Move time from another thread; returns when everything it set off has settled."""
        assert self._loop is not None, "attach the clock first"
        with self._lock:
            asyncio.run_coroutine_threadsafe(self.run(seconds), self._loop).result(30)

    async def run(self, seconds: float) -> None:
        """Move time on the clock's own loop."""
        target = self._now + seconds
        await self.settle()
        while (due := self.next_due()) is not None and due <= target:
            self.fire()
            await self.settle()
        self._now = target
        await self.settle()

    def next_due(self) -> float | None:
        """When the next timer fires."""
        while self._timers and self._timers[0][2].cancelled:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def fire(self) -> None:
        """Go on to the next timer and call it: for a loop that drives time itself."""
        when, _, timer = heappop(self._timers)
        self._now = max(self._now, when)
        timer.fn()

    def reach(self, now: float) -> None:
        """Time has come to `now`; no timer is due before that."""
        self._now = max(self._now, now)

    async def settle(self) -> None:
        """Return when nothing is left to do at this moment."""
        loop = asyncio.get_running_loop()
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no time
            ready = getattr(loop, "_ready", ())
            quiet = quiet + 1 if not ready and all(idle() for idle in self._idle) else 0
