"""Memory that runs out: new work is refused before the daemon is killed for what it has taken."""

from __future__ import annotations

from orchestratord.ports import Clock, HostMemory

SHED_FROM = 0.92  # of what the process may have: no new tasks,
SHED_UNTIL = 0.85  # until it is back here
LOOK_S = 0.25  # at most so often
BEHIND_S = 0.01  # how long after it was asked for: not while whoever asked is on its way
STALE_S = 2.0  # what was seen so long ago says nothing any more: whoever asks has to wait for a look


class Pressure:
    """Asked by whoever takes work in; looks at the memory only then. A look takes as long as half an admission, so
    while there is work it comes behind the one that asked for it."""

    def __init__(self, memory: HostMemory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._looked = float("-inf")
        self._coming = False
        self._high = False

    def high(self) -> bool:
        now = self._clock.now()
        age = now - self._looked
        if age >= STALE_S:
            self._look()
        elif age >= LOOK_S and not self._coming:
            self._coming = True
            self._clock.call_at(now + BEHIND_S, self._look)
        return self._high

    def _look(self) -> None:
        self._looked = self._clock.now()
        self._coming = False
        taken = self._memory.taken()
        self._high = taken is not None and taken >= (SHED_UNTIL if self._high else SHED_FROM)
