"""Lodging: which models are in memory, as indivisible steps on top of the core and its control.

One ledger for everything that takes memory: pools that are always loaded, pools that are loaded on demand, and the
models that reloads bring up. What is decided is `domain.residency`'s; here that becomes state. Whoever carries a
decision out says how it went: `loaded`, `load_failed`, `unloaded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf

from orchestratord.domain import forecast, residency
from orchestratord.domain.control import Control
from orchestratord.domain.hooks import Hooks, Limits
from orchestratord.domain.operation import Fault, Model
from orchestratord.domain.outcome import Failure
from orchestratord.domain.pool import Pool, PoolSpec, Replica
from orchestratord.domain.residency import Claim, Plan, Tenant
from orchestratord.domain.stay import Booking
from orchestratord.domain.trust import TrustPolicy

Capacity = Callable[[], Mapping[str, int]]
IDLE = Plan()


class Lodging(Control):
    """The whole aggregate: the core, the operations on its pools, and their room in memory."""

    def __init__(
        self,
        pools: list[PoolSpec],
        limits: Limits,
        hooks: Hooks,
        trust: TrustPolicy | None = None,
        starve_s: float = 60.0,
    ) -> None:
        super().__init__(pools, limits, hooks, trust)
        self._starve_s = starve_s
        self._lodged: list[Pool] = []
        self._bookings: dict[str, Booking] = {}  # by the pool a reload brings up a new model for
        self._due: float | None = None

    def lodge(self, pool: Pool, claim: Claim) -> None:
        """From now on this pool is in memory only by decision. `claim` is what it takes, or is thought to."""
        if pool not in self._lodged:
            self._lodged.append(pool)
        pool.stay.claim = claim
        for replica in pool.replicas.values():
            replica.state, replica.reason = (
                ("unloaded", "loaded on demand") if pool.spec.on_demand else ("loading", "waits for memory")
            )
        self._hooks.wake()

    # -- the decision ------------------------------------------------------------------------------------
    def arrange(self, capacity: Capacity, now: float, wall_ms: int) -> Plan:
        """Decide who is to be loaded and unloaded now; the caller carries it out. Marks who yields and who waits."""
        self._due = None
        if not self._bookings and all(p.stay.phase == "in" and not p.spec.on_demand for p in self._lodged):
            return IDLE
        for pool in self._lodged:
            if pool.stay.shut and now >= pool.stay.not_before:
                pool.stay.shut = False
        plan = residency.plan(self._tenants(), capacity(), now, self._starve_s)
        for pool in self._lodged:
            self._apply(plan, pool, now, wall_ms)
        for pool_id, booking in self._bookings.items():
            self._tell(booking, plan, _booked(pool_id))
        shut = [p.stay.not_before for p in self._lodged if p.stay.shut]
        self._due = min((due for due in (plan.due, *shut) if due is not None), default=None)
        return replace(plan, load=tuple(i for i in plan.load if i in self.pools))

    def _tenants(self) -> list[Tenant]:
        own = [self._tenant(pool) for pool in self._lodged]
        return own + [self._guest(self.pools[pool_id], booking) for pool_id, booking in self._bookings.items()]

    def _tenant(self, pool: Pool) -> Tenant:
        stay, spec = pool.stay, pool.spec
        busy = pool.operation is not None and not pool.operation.over
        wanted = None if pool.draining else pool.queue.waiting_since
        return Tenant(
            id=pool.id,
            claim=stay.claim,
            phase=stay.phase,
            on_demand=spec.on_demand,
            fixed=busy,
            waiting_since=(max(wanted, stay.since) if wanted is not None else None) if spec.on_demand else -inf,
            working=bool(pool.at_work),
            wanted=wanted is not None,
            since=stay.since,
            used_at=stay.used_at,
            not_before=stay.not_before,
            min_resident_s=spec.min_resident_s,
            idle_unload_s=spec.idle_unload_s,
            load_s=stay.load_s,
            running_s=forecast.runs_ms(pool) / 1000,
            empties_s=forecast.empties_ms(pool) / 1000,
        )

    @staticmethod
    def _guest(pool: Pool, booking: Booking) -> Tenant:
        return Tenant(
            id=_booked(pool.id),
            claim=booking.claim,
            phase="in" if booking.granted else "out",
            on_demand=booking.on_demand,
            temporary=True,
            waiting_since=-inf,
            load_s=pool.stay.load_s,
        )

    def _apply(self, plan: Plan, pool: Pool, now: float, wall_ms: int) -> None:
        stay = pool.stay
        stay.yielding = pool.id in plan.yielding
        those = (
            [i for i, them in plan.waits.items() if pool.id in them] if stay.yielding else plan.waits.get(pool.id, ())
        )
        stay.waits_for = tuple(dict.fromkeys(i.removesuffix(NEXT) for i in those))
        opens = self._back_at(pool, plan) if stay.yielding else plan.opens.get(pool.id)
        waits = stay.phase != "out" or pool.id in plan.load or pool.id in plan.waits
        stay.opens_at = opens if waits else None
        stay.opens_in_s = None if waits or opens is None else opens - now
        if pool.id in plan.load:
            stay.move("coming" if pool.spec.on_demand else "in", now)
            for replica in pool.replicas.values():
                replica.state, replica.reason = "loading", "starting"
        elif any(pool.id == leaver for leaver, _ in plan.unload):
            stay.move("leaving", now)
            if (pool.id, "room") in plan.unload:
                stay.swaps += 1
                stay.evicted_at = now
            _mark_unloaded(pool.replicas.values(), "unloaded")
        elif pool.id in plan.hopeless:
            self._hopeless(pool, now, wall_ms)

    def _back_at(self, pool: Pool, plan: Plan) -> float | None:
        """When a pool that yields can be expected to be there again: when those it yields to have had their time."""
        those = [self.pools[i] for i, blockers in plan.waits.items() if pool.id in blockers and i in self.pools]
        times = [plan.opens[p.id] + min(forecast.empties_ms(p) / 1000, self._starve_s) for p in those]
        return max(times) + pool.stay.load_s if times else None

    def _hopeless(self, pool: Pool, now: float, wall_ms: int) -> None:
        """It does not fit beside what is never unloaded."""
        message = f"The model of pool {pool.id} does not fit into memory beside what is always loaded."
        if pool.spec.on_demand:
            self.load_failed(pool, Fault("POOL_UNAVAILABLE", message, wall_ms), now, wall_ms)
        elif pool.last_error is None:
            pool.last_error = Fault("POOL_UNAVAILABLE", message, wall_ms)

    @staticmethod
    def _tell(booking: Booking, plan: Plan, tenant_id: str) -> None:
        if tenant_id in plan.load:
            booking.granted = True
        elif tenant_id not in plan.hopeless:
            return
        booking.told(booking.granted)

    def next_due(self, now: float) -> float | None:
        return min((due for due in (super().next_due(now), self._due) if due is not None), default=None)

    # -- how it went -------------------------------------------------------------------------------------
    def loaded(self, pool: Pool, took_s: float, claim: Claim, now: float) -> None:
        """Its model is in memory, where it takes `claim`."""
        stay = pool.stay
        stay.move("in", now)
        stay.used_at, stay.claim = now, claim
        stay.loads += 1
        stay.observe(took_s)
        stay.forgive()
        self._unsettled.add(pool.id)  # what it really can do is known only now
        self._hooks.wake()

    def load_failed(self, pool: Pool, fault: Fault, now: float, wall_ms: int) -> None:
        """Nothing of it is left in memory. After too many of these in a row those who wait move or are told."""
        pool.stay.failed(now)
        pool.last_error = fault
        self._emptied(pool, f"could not be loaded: {fault.message}")
        if pool.stay.shut:
            self._settle(pool, now, wall_ms)
            left_ms = int((pool.stay.not_before - now) * 1000)
            message = f"The model of pool {pool.id} could not be loaded: {fault.message} Try again later."
            for task in [t for t in (*pool.queue, *pool.queue.retries) if t.committed]:
                self.fail(task, Failure("POOL_UNAVAILABLE", message, task.request.engine, True, left_ms), now, wall_ms)
        self._hooks.wake()

    def unloaded(self, pool: Pool, now: float) -> None:
        """Its engines are gone, and their memory is free."""
        pool.stay.move("out", now)
        self._emptied(pool, "loaded on demand")
        self._hooks.wake()

    def _emptied(self, pool: Pool, reason: str) -> None:
        for replica in pool.replicas.values():
            for lease in list(replica.leases.values()):
                self.release(lease)
        _mark_unloaded(pool.replicas.values(), reason)

    def forgive(self, pool: Pool) -> None:
        """An operator wants it to be tried again, now."""
        pool.stay.forgive()
        self._hooks.wake()

    # -- reloads -----------------------------------------------------------------------------------------
    def book(self, pool: Pool, claim: Claim, capacity: Capacity) -> bool:
        """Take room for the pool's next model beside all that is there and all that waits; False if there is none."""
        guest = self._guest(pool, Booking(claim, pool.spec.on_demand, False, lambda _: None))
        others = [t for t in self._tenants() if t.holds or (t.waiting_since is not None and t.id != pool.id)]
        if not residency.fits(guest, others, capacity()):
            return False
        self._bookings[pool.id] = Booking(claim, pool.spec.on_demand, True, lambda _: None)
        return True

    def move_out(self, pool: Pool, claim: Claim, told: Callable[[bool], object], now: float) -> None:
        """Its engines are gone: it gives up its room for `claim`, which is for the next model, or for it to be back.

        `told` learns when there is room, or that there never will be.
        """
        if pool in self._lodged and pool.stay.phase == "in":
            claim = larger(claim, pool.stay.claim)
            pool.stay.move("out", now)
        self._bookings[pool.id] = Booking(claim, pool.spec.on_demand, False, told)
        self._hooks.wake()

    def move_in(self, pool: Pool, now: float, claim: Claim | None = None) -> None:
        """The booked room is its own: with the next model, which takes `claim`, or with the old one again."""
        self._bookings.pop(pool.id, None)
        if pool in self._lodged:
            pool.stay.move("in", now)
            pool.stay.used_at = now
            pool.stay.claim = pool.stay.claim if claim is None else claim
            pool.stay.forgive()
        self._hooks.wake()

    def give_back(self, pool: Pool) -> None:
        """Nothing came of what room was booked for. Idempotent."""
        if self._bookings.pop(pool.id, None) is not None:
            self._hooks.wake()

    def swap(self, pool: Pool, model: Model, replicas: Iterable[Replica]) -> list[Replica]:
        former = super().swap(pool, model, replicas)
        pool.stay.evicted_at = None
        return former


NEXT = "@next"  # no pool can have this in its name


def _booked(pool_id: str) -> str:
    return pool_id + NEXT


def larger(one: Claim, other: Claim) -> Claim:
    """Room enough for either."""
    return {r: _most(one.get(r, 0), other.get(r, 0)) for r in {**one, **other}}


def _most(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)


def _mark_unloaded(replicas: Iterable[Replica], reason: str) -> None:
    for replica in replicas:
        replica.state, replica.reason = "unloaded", reason
