"""A circuit breaker: a replica that keeps failing gets no work until a probe has succeeded on it."""

from __future__ import annotations

from dataclasses import dataclass

TRIP_AFTER = 3  # failures in a row
OPEN_S, OPEN_MAX_S = 2.0, 60.0  # how long until the first probe; doubles with every trip that follows


@dataclass(slots=True)
class Breaker:
    """Counts what an engine got wrong, never what a client did. Open: no work, until `probed`."""

    failures: int = 0  # in a row
    open_until: float | None = None  # when the next probe is due (monotonic seconds); None: closed
    pause_s: float = OPEN_S

    @property
    def open(self) -> bool:
        return self.open_until is not None

    def due(self, now: float) -> bool:
        """Whether it is time to probe."""
        return self.open_until is not None and now >= self.open_until

    def failed(self, now: float) -> bool:
        """The engine failed a task. True when that opened the breaker."""
        self.failures += 1
        if self.open or self.failures < TRIP_AFTER:
            return False
        self.open_until = now + self.pause_s
        self.pause_s = min(self.pause_s * 2, OPEN_MAX_S)
        return True

    def succeeded(self) -> None:
        """The engine finished a task: all is forgiven."""
        self.failures, self.open_until, self.pause_s = 0, None, OPEN_S

    def probed(self) -> None:
        """A probe succeeded: work again, on probation; the next failure opens it at once, for longer."""
        self.open_until = None
        self.failures = min(self.failures, TRIP_AFTER - 1)
