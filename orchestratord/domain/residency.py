"""Residency: who may be in memory. Which models to load, which to unload for them, and when a busy one has to yield.

A pure, deterministic function of tenants, capacity and time. A tenant is what takes memory as a whole: a pool, or the
new model of a reload. Resources are named by the caller (`limit`, `ram`, `gpu:0`), sizes are bytes.

- Whoever has waited longest is first, and the room it waits for is kept for it: nobody who came later takes it.
- What is idle goes first, the longest unused of it, and no more than is needed. Nothing goes before it has been there
  for its `min_resident_s`.
- A tenant that works is never cut. When another has waited `starve_s`, it is given nothing more to do (it yields), ends
  what it has, and is unloaded then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Claim = Mapping[str, int | None]  # resource -> bytes; None: it takes some of it, and nobody knows how much
Phase = Literal["out", "coming", "in", "leaving"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """One that takes memory, or would. Times are monotonic seconds."""

    id: str
    claim: Claim
    phase: Phase
    on_demand: bool = True  # may be unloaded for others
    fixed: bool = False  # an operation is on: neither load nor unload it
    temporary: bool = False  # of an operation, which ends by itself: never unloaded
    waiting_since: float | None = None  # of one that is out: since when somebody waits for it
    working: bool = False  # something runs on it
    wanted: bool = False  # something waits for its turn on it
    since: float = 0.0  # when it got into its phase
    used_at: float = 0.0  # when something last ran on it
    not_before: float = -inf  # after a load that failed: no other attempt earlier
    min_resident_s: float = 0.0
    idle_unload_s: float = 0.0  # unload it after so long without work; 0: never
    load_s: float = 0.0  # how long it takes to load
    running_s: float = 0.0  # what runs needs so long yet
    empties_s: float = 0.0  # what runs and what waits needs so long yet

    @property
    def holds(self) -> bool:
        return self.phase != "out"

    @property
    def hot(self) -> bool:
        return self.working or self.wanted

    @property
    def ripe_at(self) -> float:
        """When it has been there long enough to go."""
        return self.since + self.min_resident_s

    @property
    def movable(self) -> bool:
        return self.on_demand and self.phase == "in" and not self.fixed and not self.temporary


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and what everybody else waits for."""

    load: tuple[str, ...] = ()
    unload: tuple[tuple[str, str], ...] = ()  # (tenant, why: `room` or `idle`)
    yielding: frozenset[str] = frozenset()  # to be given nothing more to do
    waits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # tenant -> those whose room it waits for
    hopeless: tuple[str, ...] = ()  # wait, and do not fit beside what is never unloaded
    opens: Mapping[str, float] = field(default_factory=dict)  # of those not `in`: when they can be expected to be
    due: float | None = None  # when there is something to decide again, if nothing happens before


def fits(tenant: Tenant, others: Iterable[Tenant], capacity: Mapping[str, int]) -> bool:
    """Whether there is room for `tenant` beside `others`.

    Where a size or a capacity is not known, two on-demand tenants do not share that resource; what is always there
    does not keep anybody out.
    """
    there = list(others)
    for resource, size in tenant.claim.items():
        beside = [other for other in there if resource in other.claim]
        whole = capacity.get(resource)
        if tenant.on_demand and any(
            other.on_demand and (whole is None or size is None or other.claim[resource] is None) for other in beside
        ):
            return False
        if whole is not None and (size or 0) + sum(other.claim[resource] or 0 for other in beside) > whole:
            return False
    return True


def plan(tenants: Sequence[Tenant], capacity: Mapping[str, int], now: float, starve_s: float) -> Plan:
    """Decide about everybody at once."""
    return _Planner(tenants, capacity, now, starve_s).run()


class _Planner:
    """One decision in the making. `taken` is what is held or kept for somebody, `gone` who of them goes."""

    def __init__(self, tenants: Sequence[Tenant], capacity: Mapping[str, int], now: float, starve_s: float) -> None:
        self.tenants = sorted(tenants, key=lambda t: t.id)
        self.capacity = capacity
        self.now = now
        self.starve_s = starve_s
        self.taken = [t for t in self.tenants if t.holds]
        self.gone = {t.id for t in self.taken if t.phase == "leaving"}
        self.load: list[str] = []
        self.unload: list[tuple[str, str]] = []
        self.yielding: set[str] = set()
        self.waits: dict[str, tuple[str, ...]] = {}
        self.hopeless: list[str] = []
        self.opens = {t.id: max(now, t.since + t.load_s) for t in self.taken if t.phase == "coming"}
        self.dues: list[float] = []

    def run(self) -> Plan:
        out = [t for t in self.tenants if not t.holds and not t.fixed]
        waiting = [t for t in out if t.waiting_since is not None and t.not_before <= self.now]
        self.dues += [t.not_before for t in out if t.waiting_since is not None]
        for tenant in sorted(waiting, key=lambda t: (t.waiting_since, t.id)):
            self._serve(tenant)
        for tenant in out:  # nobody waits: what if somebody did from now on?
            if tenant not in waiting:
                self._foresee(tenant, self._staying(), max(self.now, tenant.not_before) + self.starve_s)
        self._unload_idle()
        return Plan(
            load=tuple(self.load),
            unload=tuple(self.unload),
            yielding=frozenset(self.yielding),
            waits=self.waits,
            hopeless=tuple(self.hopeless),
            opens=self.opens,
            due=min((due for due in self.dues if due > self.now), default=None),
        )

    def _staying(self) -> list[Tenant]:
        return [t for t in self.taken if t.id not in self.gone]

    def _serve(self, tenant: Tenant) -> None:
        """Load it, make room for it, or say what it waits for."""
        assert tenant.waiting_since is not None
        if fits(tenant, self.taken, self.capacity):
            self.load.append(tenant.id)
            self.taken.append(tenant)
            self.opens[tenant.id] = self.now + tenant.load_s
            return
        staying = self._staying()
        starved_at = tenant.waiting_since + self.starve_s
        blockers = self._foresee(tenant, staying, starved_at)
        if blockers is None:
            self.hopeless.append(tenant.id)
            return
        if not blockers:  # those who leave already make room enough
            blockers = [t for t in self.taken if t.id in self.gone and not t.claim.keys().isdisjoint(tenant.claim)]
        else:
            self._make_room(tenant, staying, blockers, starved_at)
        self.waits[tenant.id] = tuple(t.id for t in blockers)
        self.taken.append(tenant)  # kept for it: nobody who came later takes it

    def _make_room(self, tenant: Tenant, staying: list[Tenant], blockers: list[Tenant], starved_at: float) -> None:
        ripe = [t for t in staying if t.movable and t.ripe_at <= self.now]
        idle = [t for t in ripe if not t.hot]
        clear = self._clear(tenant, staying, sorted(idle, key=_longest_unused))
        if clear is None and self.now >= starved_at:
            clear = self._clear(tenant, staying, sorted(ripe, key=_idle_first))
        if clear is None:
            self.dues += [starved_at, *(t.ripe_at for t in blockers)]
        elif any(t.working for t in clear):
            self.yielding |= {t.id for t in clear if t.hot}
        else:
            self.unload += [(t.id, "room") for t in clear]
            self.gone |= {t.id for t in clear}

    def _foresee(self, tenant: Tenant, staying: list[Tenant], starved_at: float) -> list[Tenant] | None:
        """Those whose room it needs, the soonest free ones first; None if nobody's would do. Notes when it opens."""
        candidates = [t for t in staying if t.on_demand or t.temporary]
        free_at = {t.id: self._free_at(t, starved_at) for t in candidates}
        blockers = self._clear(tenant, staying, sorted(candidates, key=lambda t: (free_at[t.id], *_idle_first(t))))
        if blockers is not None:
            room_at = max((free_at[t.id] for t in blockers), default=self.now)
            self.opens[tenant.id] = max(room_at, tenant.not_before) + tenant.load_s
        return blockers

    def _free_at(self, tenant: Tenant, starved_at: float) -> float:
        """When its room can be expected to be free for somebody who is starved at `starved_at`."""
        if tenant.phase != "in":  # it comes first, and may stay until whoever waits behind it is starved
            return self.opens.get(tenant.id, self.now) + min(tenant.empties_s, self.starve_s)
        if not tenant.hot:
            return max(self.now, tenant.ripe_at)
        forced = max(self.now, starved_at, tenant.ripe_at) + tenant.running_s
        return max(tenant.ripe_at, min(self.now + tenant.empties_s, forced))

    def _clear(self, tenant: Tenant, staying: list[Tenant], candidates: Sequence[Tenant]) -> list[Tenant] | None:
        """Of the candidates as few and as early ones as it takes for `tenant` to fit; None if all do not do."""
        going: list[Tenant] = []

        def without(leavers: list[Tenant]) -> bool:
            ids = {t.id for t in leavers}
            return fits(tenant, [t for t in staying if t.id not in ids], self.capacity)

        for candidate in candidates:
            if without(going):
                break
            going.append(candidate)
        if not without(going):
            return None
        for spared in reversed(going[:-1]):
            rest = [t for t in going if t is not spared]
            if without(rest):
                going = rest
        return going

    def _unload_idle(self) -> None:
        for t in self.taken:
            if t.movable and t.idle_unload_s and not t.hot and t.id not in self.gone:
                due = max(t.used_at, t.since) + max(t.idle_unload_s, t.min_resident_s)
                if due <= self.now:
                    self.unload.append((t.id, "idle"))
                else:
                    self.dues.append(due)


def _longest_unused(tenant: Tenant) -> tuple[float, str]:
    return max(tenant.used_at, tenant.since), tenant.id


def _idle_first(tenant: Tenant) -> tuple[bool, float, str]:
    return tenant.hot, tenant.since if tenant.hot else max(tenant.used_at, tenant.since), tenant.id
