"""How a test steers the mock engine: faults to play, and a gate that lets outputs pass one by one."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MockScript:
    """What the next `jobs` jobs do besides or instead of their work. `..._after` counts outputs (tokens or results)."""

    jobs: float = 1  # math.inf: until the script is cleared
    refuse: str | None = None  # EngineError(refused) with this message, before any output
    full: bool = False  # EngineError(full), before any output
    die_after: int | None = None  # the connection breaks: lost
    hang_after: int | None = None  # nothing more comes, for ever
    garbage_after: int | None = None  # what comes cannot be understood: protocol
    error_after: int | None = None  # the engine reports an error of its own: failed
    endless: bool = False  # max_tokens does not end it
    ignore_abort: bool = False  # once left, the job goes on holding its slot until `release`

    @property
    def breaks(self) -> tuple[int | None, ...]:
        """Numbers of outputs after which something happens."""
        return self.die_after, self.hang_after, self.garbage_after, self.error_after


class Gate:
    """Lets outputs pass: all of them, or as many as were stepped."""

    def __init__(self) -> None:
        self._permits = math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiting)

    def permit(self, permits: float) -> None:
        """Let `permits` more pass, those waiting first."""
        self._permits += permits
        while self._waiting and self._permits >= 1:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._permits -= 1
                waiter.set_result(None)

    def close(self) -> None:
        self._permits = 0

    async def passage(self) -> None:
        if self._permits >= 1:
            self._permits -= 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # passed and aborted in one turn: the next one may
                self.permit(1)
            raise
