"""A pool's stay in memory: whether its model is loaded, what it takes there, and how long loading takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from orchestratord.domain.residency import Claim, Phase

DECAY = 0.7  # weight of earlier loads against one more: about the last three count
ATTEMPTS = 3  # failed loads in a row after which those who wait are told
RETRY_S, SHUT_S, SHUT_MAX_S = 1.0, 30.0, 600.0  # pause after a failed load; after the last one; each doubles
THRASH_S = 60.0  # a model that is back so soon after it made room was moved in vain


@dataclass(slots=True, eq=False)
class Stay:
    """`phase` of a pool that is always loaded says whether it has its memory yet."""

    load_prior_s: float = 10.0
    phase: Phase = "out"
    since: float = 0.0  # monotonic seconds
    used_at: float = 0.0
    claim: Claim = field(default_factory=dict)
    yielding: bool = False  # given nothing more to do, so that another model gets its room
    waits_for: tuple[str, ...] = ()  # whose room it waits for; of one that yields, to whom
    opens_at: float | None = None  # when it can be expected to be loaded, if somebody waits for that
    opens_in_s: float | None = None  # how long it would take if nobody does
    failures: int = 0  # loads in a row that came to nothing
    not_before: float = -inf  # no other attempt earlier
    shut: bool = False  # gave up until `not_before`: takes no tasks
    loads: int = 0
    swaps: int = 0  # times it was unloaded for another
    evicted_at: float | None = None
    _sum: float = 0.0
    _weight: float = 0.0

    def move(self, phase: Phase, now: float) -> None:
        self.phase, self.since = phase, now
        self.yielding = False

    def observe(self, seconds: float) -> None:
        """A load took so long."""
        self._sum = self._sum * DECAY + seconds
        self._weight = self._weight * DECAY + 1.0

    @property
    def load_s(self) -> float:
        """How long a load takes: as observed, before that as configured."""
        return self._sum / self._weight if self._weight else self.load_prior_s

    def came_back_soon(self, now: float) -> bool:
        return self.evicted_at is not None and now - self.evicted_at < THRASH_S

    def failed(self, now: float) -> None:
        """A load came to nothing; after too many in a row the pool is shut for a while."""
        self.move("out", now)
        self.failures += 1
        self.shut = self.failures >= ATTEMPTS
        over = self.failures - ATTEMPTS
        pause = min(SHUT_S * 2.0 ** min(over, 10), SHUT_MAX_S) if self.shut else RETRY_S * 2.0 ** (self.failures - 1)
        self.not_before = now + pause

    def forgive(self) -> None:
        """Start again as if no load had ever failed."""
        self.failures, self.not_before, self.shut = 0, -inf, False


@dataclass(slots=True, eq=False)
class Booking:
    """Room for a model that a reload brings up; kept until it is handed over or given back."""

    claim: Claim
    on_demand: bool
    granted: bool
    told: Callable[[bool], object]  # called once: whether there is room
