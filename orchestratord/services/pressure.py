"""Memory that runs out: new work is refused before the daemon is killed for what it has taken."""

from __future__ import annotations

from orchestratord.ports import Clock, HostMemory

SHED_FROM = 0.92  # of what the process may have: no new tasks,
SHED_UNTIL = 0.85  # until it is back here
LOOK_S = 0.25  # at most so often


class Pressure:
    """Asked by whoever takes work in; looks at the memory only then."""

    def __init__(self, memory: HostMemory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._looked = float("-inf")
        self._high = False

    def high(self) -> bool:
        now = self._clock.now()
        if now - self._looked >= LOOK_S:
            self._looked = now
            taken = self._memory.taken()
            self._high = taken is not None and taken >= (SHED_UNTIL if self._high else SHED_FROM)
        return self._high
