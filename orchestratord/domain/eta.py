"""Estimates: how long a task will run and when it would start, from observed service times.

An estimate is a function of service times, slots and the queue, never of the clock: it changes when one of them
changes and only then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil
from statistics import NormalDist

from orchestratord.domain.request import TaskRequest

DECAY = 0.95  # weight of the past against one new observation: about the last twenty tasks count
PRIOR_SPREAD = 0.5  # relative standard deviation of a service time before two were observed


@dataclass(frozen=True, slots=True)
class Prior:
    """What is assumed of a pool before its first observation; configuration documents and overrides it."""

    overhead_ms: float = 100.0
    ms_per_unit: float = 20.0  # per output token, or per input of embedding and rerank
    fraction: float = 0.5  # of the units asked for that a task really uses


class ServiceModel:
    """Service times of one pool: exponentially decayed sums over finished tasks and readiness probes."""

    __slots__ = ("_asked", "_error2", "_ms", "_prior", "_units", "_weight", "observations")

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._ms = self._units = self._asked = self._error2 = self._weight = 0.0
        self.observations = 0

    def observe(self, service_ms: float, units: int, asked: int) -> None:
        """One finished service: milliseconds on the slot, units produced, units asked for at most."""
        if units <= 0:
            return
        if self.observations:
            predicted = units * self.ms_per_unit
            error = (service_ms - predicted) / predicted if predicted else 0.0
            self._error2 = self._error2 * DECAY + error * error
            self._weight = self._weight * DECAY + 1.0
        self._ms = self._ms * DECAY + service_ms
        self._units = self._units * DECAY + units
        self._asked = self._asked * DECAY + max(asked, units)
        self.observations += 1

    @property
    def ms_per_unit(self) -> float:
        return self._ms / self._units if self.observations else self._prior.ms_per_unit

    @property
    def units_per_s(self) -> float | None:
        """Observed output per second of one slot; None before the first observation."""
        return 1000.0 / self.ms_per_unit if self.observations and self.ms_per_unit > 0 else None

    @property
    def spread(self) -> float:
        """Relative standard deviation of a service time around its estimate."""
        return (self._error2 / self._weight) ** 0.5 if self._weight else PRIOR_SPREAD

    def estimate_ms(self, request: TaskRequest) -> float:
        """Median service time of `request`."""
        fraction = self._units / self._asked if self.observations else self._prior.fraction
        asked = request.units
        units = min(request.expected_tokens, asked) if request.expected_tokens else max(1, ceil(asked * fraction))
        overhead = 0.0 if self.observations else self._prior.overhead_ms
        return overhead + units * self.ms_per_unit


def start_ms(slots: int, running: Iterable[float], ahead: Iterable[float]) -> float:
    """When the next slot comes free for a task behind `ahead`: list scheduling over the slots.

    `running` and `ahead` are service estimates. A running task is taken to be half done: the mean of what is
    left when nothing is known of its progress.
    """
    free = [estimate / 2 for estimate in running][:slots]
    free += [0.0] * (slots - len(free))
    if not free:
        return 0.0
    heapify(free)
    for estimate in ahead:
        heappush(free, heappop(free) + estimate)
    return free[0]


def on_time_probability(left_ms: float, needed_ms: float, spread: float) -> float:
    """P(the rest takes at most `left_ms`), the rest being normal around `needed_ms` with relative `spread`."""
    if needed_ms <= 0:
        return 1.0 if left_ms > 0 else 0.0
    sigma = max(spread, 0.05) * needed_ms
    return round(NormalDist(needed_ms, sigma).cdf(left_ms), 4)
