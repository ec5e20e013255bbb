"""Time, and calls that are due."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None:
        """Drop the call if it has not happened yet. Idempotent."""


class Clock(Protocol):
    """The only way time enters. `now` never goes back; wall time is only ever displayed."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wall_ms(self) -> int:
        """Unix epoch milliseconds."""

    def call_at(self, when: float, fn: Callable[[], None]) -> Timer:
        """Call `fn` on the event loop at monotonic time `when`, or on its next turn if that has passed."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""

    def limit(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Bound the body: TimeoutError when it takes longer than `seconds`."""
