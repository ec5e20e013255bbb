"""How late the event loop is: the one figure that tells of whatever kept it from its work.

It is the process's own, so it is taken of the real loop and the machine's clock, whatever the daemon's Clock says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PERIOD_S = 0.25


class Heartbeat:
    """`late(ms)` is told at every beat by how much the loop missed it."""

    def __init__(self, late: Callable[[float], object], now: Callable[[], float] = time.monotonic) -> None:
        self._late = late
        self._now = now
        self._due = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> None:
        assert self._loop is not None
        self._due = self._now() + PERIOD_S
        self._timer = self._loop.call_later(PERIOD_S, self._beat)

    def _beat(self) -> None:
        self._late(max(0.0, self._now() - self._due) * 1000)
        self._next()
