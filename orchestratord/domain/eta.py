"""Estimates: how long a task will run and when it would start, from observed service times.

An estimate is a function of service times, slots and the queue, never of the clock: it changes when one of them
changes and only then. docs/estimates.md explains the choices and shows how far off they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist
from typing import Literal

from orchestratord.domain.request import Priority, TaskRequest

DECAY = 0.95  # weight of the past against one new observation: about the last twenty tasks count
LOAD_DECAY = 0.98  # the same for the load of interactive work, which varies more
LOAD_MAX = 0.9  # above it interactive work would leave batch almost nothing, and an estimate would mean nothing
START_SERVICES = 10  # the load is counted from an empty stretch of this many services
GAP_SERVICES = 20  # a longer silence between two ends says that the pool idled, not how busy it is when it works
PRIOR_SPREAD = 0.5  # of the logarithm of a service time around its estimate; counts as the first error seen
SPREAD_MIN = 0.05

Kind = Literal["hinted", "interactive", "batch"]  # what predicts a length: the client's hint, else the priority


@dataclass(frozen=True, slots=True)
class Prior:
    """What is assumed of a pool before its first observation; configuration documents and overrides it."""

    overhead_ms: float = 100.0
    ms_per_unit: float = 20.0  # per output token, or per input of embedding and rerank
    fraction: float = 0.5  # of the units asked for that a task really uses
    load_ms: float = 10_000.0  # to load the model, if it is loaded on demand


def kind_of(request: TaskRequest) -> Kind:
    return "hinted" if request.expected_tokens else request.priority


def asked_of(request: TaskRequest) -> int:
    """The units its length is predicted from: its hint, as far as it may have so many, or all it may have."""
    hint = request.expected_tokens
    return min(hint, request.units) if hint else request.units


Share = tuple[Kind, int]  # of one task in a `Work`: what predicts its length, and units


class Work:
    """Tasks that are under way, as far as estimates need them: their number, and the units they were asked for."""

    __slots__ = ("tasks", "units")

    def __init__(self) -> None:
        self.tasks = 0
        self.units: dict[Kind, int] = {"hinted": 0, "interactive": 0, "batch": 0}

    def add(self, request: TaskRequest) -> Share:
        """One more. Returns its share, to be taken out again: a request that is over may have lost its inputs."""
        share = kind, units = kind_of(request), asked_of(request)
        self.tasks += 1
        self.units[kind] += units
        return share

    def remove(self, share: Share) -> None:
        kind, units = share
        self.tasks -= 1
        self.units[kind] -= units


class Lengths:
    """Of one kind: units used for each unit asked for, or hinted, and how far service times fall from their estimates.

    `error2` sums the squares of ln(real / estimate).
    """

    __slots__ = ("asked", "error2", "errors", "units")

    def __init__(self) -> None:
        self.asked = self.units = 0.0
        self.error2, self.errors = PRIOR_SPREAD**2, 1.0

    def add(self, asked: int, units: int, error: float | None) -> None:
        self.asked = self.asked * DECAY + asked
        self.units = self.units * DECAY + units
        if error is not None:
            self.error2 = self.error2 * DECAY + error * error
            self.errors = self.errors * DECAY + 1.0


class ServiceModel:
    """Service times of one pool: exponentially decayed sums over the tasks that finished."""

    __slots__ = (
        "_busy_ms",
        "_elapsed_ms",
        "_kinds",
        "_last",
        "_ms",
        "_per_asked",
        "_prior",
        "_units",
        "ms_per_unit",
        "observations",
        "units_per_s",
    )

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._ms = self._units = 0.0
        self._kinds: dict[Kind, Lengths] = {"hinted": Lengths(), "interactive": Lengths(), "batch": Lengths()}
        self._per_asked: dict[Kind, float] = {}  # milliseconds for each unit asked for, or hinted
        self._busy_ms = self._elapsed_ms = self._last = 0.0
        self.observations = 0
        self._scale()

    def observe(self, request: TaskRequest, units: int, service_ms: float, slots: int, now: float) -> None:
        """A task of `request` ended by itself at `now` (seconds), after `service_ms` on one of `slots`."""
        asked = asked_of(request)
        if units <= 0 or asked <= 0 or service_ms <= 0:
            return
        error = log(service_ms / self.estimate_ms(request)) if self.observations else None
        self._kinds[kind_of(request)].add(asked, units, error)
        self._ms = self._ms * DECAY + service_ms
        self._units = self._units * DECAY + units
        self._count_load(request.priority, service_ms, slots, now)
        self.observations += 1
        self._scale()

    def _count_load(self, priority: Priority, service_ms: float, slots: int, now: float) -> None:
        longest = GAP_SERVICES * service_ms
        passed = min((now - self._last) * 1000 * slots, longest) if self.observations else START_SERVICES * service_ms
        self._elapsed_ms = self._elapsed_ms * LOAD_DECAY + passed
        self._busy_ms = self._busy_ms * LOAD_DECAY + (service_ms if priority == "interactive" else 0.0)
        self._last = now

    def _scale(self) -> None:
        """What follows from the sums: asked for more often than they change."""
        per = self.ms_per_unit = self._ms / self._units if self.observations else self._prior.ms_per_unit
        # Observed output per second of one slot; None before the first observation.
        self.units_per_s: float | None = 1000.0 / per if self.observations and per > 0 else None
        for kind in self._kinds:
            self._per_asked[kind] = self._fraction(kind) * per

    def _fraction(self, kind: Kind) -> float:
        """Units used for each unit asked for: what was seen of this kind, else believe a hint, else the other lane."""
        if self._kinds[kind].asked:
            seen = self._kinds[kind]
        elif kind == "hinted":
            return 1.0
        else:
            seen = self._kinds["batch" if kind == "interactive" else "interactive"]
        return seen.units / seen.asked if seen.asked else self._prior.fraction

    @property
    def interactive_load(self) -> float:
        """Share of the slots' time that interactive work takes."""
        return min(LOAD_MAX, self._busy_ms / self._elapsed_ms) if self._elapsed_ms else 0.0

    def spread(self, request: TaskRequest) -> float:
        """Standard deviation of ln(service time / estimate) for tasks of this kind."""
        seen = self._kinds[kind_of(request)]
        return sqrt(seen.error2 / seen.errors)

    def estimate_ms(self, request: TaskRequest) -> float:
        """Expected service time of `request`."""
        return self.estimates_ms((request,))[0]

    def total_ms(self, work: Work) -> float:
        """The sum of the expected service times of what is under way."""
        per, units = self._per_asked, work.units
        overhead = 0.0 if self.observations else self._prior.overhead_ms
        return work.tasks * overhead + sum([units[kind] * per[kind] for kind in units])

    def estimates_ms(self, requests: Iterable[TaskRequest]) -> list[float]:
        """Expected service times; spelled out, as every admission asks for dozens."""
        per, overhead = self._per_asked, 0.0 if self.observations else self._prior.overhead_ms
        hinted = per["hinted"]
        return [
            overhead
            + (
                min(hint, request.units) * hinted
                if (hint := request.expected_tokens)
                else request.units * per[request.priority]
            )
            for request in requests
        ]


def start_ms(slots: int, running: int, running_ms: float, ahead: Sequence[float], rest_ms: float = 0.0) -> float:
    """When a slot comes free for a task behind `ahead` and then `rest_ms` more work; all are service estimates, that of
    the `running` tasks one sum.

    The n running tasks are taken as evenly staggered: the first of them ends after a (n+1)-th of their mean. From
    then on the slots share the work ahead. One that goes straight to an idle slot has its whole service before it.
    Against list scheduling of the same figures this is off by at most (slots-1)/slots of the longest service.
    """
    slots = max(1, slots)
    idle = max(0, slots - running)
    if len(ahead) < idle:
        return 0.0
    soon = [*ahead[:idle]]
    if running:
        soon.append(running_ms / running / (running + 1))
    return min(soon) + (sum(ahead[idle:]) + rest_ms) / slots


def on_time_probability(left_ms: float, needed_ms: float, spread: float, spent_ms: float = 0.0) -> float:
    """P(the rest takes at most `left_ms`): log-normal around the median `needed_ms`, of which `spent_ms` are over."""
    if left_ms <= 0:
        return 0.0
    if needed_ms <= 0:
        return 1.0
    end = NormalDist(log(needed_ms), max(spread, SPREAD_MIN))
    over = end.cdf(log(spent_ms)) if spent_ms > 0 else 0.0
    chance = (end.cdf(log(spent_ms + left_ms)) - over) / max(1.0 - over, 1e-12)
    return round(min(1.0, chance), 4)
