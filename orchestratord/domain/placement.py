"""Placement: one pure, deterministic function from (job, snapshots) to a decision that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from orchestratord.domain.errors import InvalidParams, PoolUnavailable, PoolUnready, Refusal, ReplicaExhausted
from orchestratord.domain.record import record

if TYPE_CHECKING:
    from orchestratord.domain.pool import Replica
    from orchestratord.domain.request import TaskRequest


@record
class Decision:
    """Where a task goes and how that was found: stored with the task and shown in its TaskStatus."""

    pool_id: str
    considered: int
    filters: tuple[str, ...]
    tie_breakers: tuple[str, ...]
    pinned: bool
    fallback_used: bool


@dataclass(slots=True)  # not frozen: that would double the time to make one, and each admission makes some
class PoolSnapshot:
    """What placement may know of a pool. Figures that are not known yet (nothing loaded) are None or empty.

    Of a pool that does not serve the job only the first three are given.
    """

    id: str
    engine: str
    serves: bool  # engine and model match the job
    ready: bool = False
    probe_in_ms: int | None = None  # every breaker is open: until the first probe
    loading: bool = False
    draining: bool = False
    ctx: int | None = None
    workloads: frozenset[str] | None = None
    device_masks: frozenset[str] = frozenset()
    exact: bool = False  # has a replica that can give the strict guarantee
    predicted_start_ms: float | None = None
    predicted_end_ms: float | None = None
    holds_session: bool = False
    load: float = 0.0  # (queued + leased) / slots
    vram_free: int = 0
    tokens_per_s: float = 0.0
    pinned_profile: str | None = None  # the one sampler profile it serves
    opens_ms: int | None = None  # of a closed pool: when it is expected to take work again
    resident: bool = True  # its model is in memory
    features: frozenset[str] | None = None  # what its engines honour besides the required


def static_obstacle(job: TaskRequest, pool: PoolSnapshot) -> tuple[str, str] | None:
    """(rule of the contract, reason) why this pool could never take the job, or None."""
    if pool.workloads is not None and job.workload not in pool.workloads:
        return "unsupported_workload", f"does not serve {job.workload}"
    if pool.ctx is not None and job.ctx > pool.ctx:
        return "ctx_exceeds_model", f"ctx {pool.ctx} < {job.ctx}"
    given = job.sampling.given if pool.features is not None else ()
    lacking = [knob for knob in given if knob not in (pool.features or ())]
    if lacking:
        return "unsupported_sampling", f"cannot honour sampling.{lacking[0]}"
    mask = job.placement.require_device_mask
    if mask is not None and mask not in pool.device_masks:
        return "pin_infeasible", f"no replica on device mask {mask}"
    if pool.pinned_profile not in (None, job.sampler_profile_version or pool.pinned_profile):
        return "unknown_profile", f"pinned to sampler profile {pool.pinned_profile}"
    if job.determinism == "strict" and pool.ready and not pool.exact:
        return "unsupported_determinism", "no replica can run one task at a time"
    return None


def place(job: TaskRequest, pools: Sequence[PoolSnapshot]) -> Decision:
    """Choose the pool for `job`. The order of `pools` has no part in it.

    Raises InvalidParams (a pin or an avoid list that can never be met, a limit no pool has), PoolUnready or
    PoolUnavailable, exactly as the table of the specification says.
    """
    try:
        return _choose(job, pools)
    except Refusal as refusal:
        refusal.at_placement = True
        raise


def _choose(job: TaskRequest, pools: Sequence[PoolSnapshot]) -> Decision:
    pools = sorted(pools, key=lambda p: p.id)
    hints = job.placement
    pinned = hints.mode == "pin"
    filters: list[str] = []

    if pinned:
        candidates = [p for p in pools if p.id == hints.pin_pool_id]
        if not candidates:
            raise InvalidParams(
                f"placement.pin_pool_id {hints.pin_pool_id!r} names no pool. Pools: {_names(pools)}.",
                rule="pin_unknown_pool",
            )
        if not candidates[0].serves:
            raise InvalidParams(
                f"Pool {hints.pin_pool_id} does not serve {job.model_ref} on {job.engine}.",
                rule="pin_infeasible",
            )
    else:
        candidates = [p for p in pools if p.serves]
        if not candidates:
            raise PoolUnready(
                f"No pool serves model {job.model_ref!r} on engine {job.engine}. See GET /v1/pools.",
                retriable=False,
                available=[p.id for p in pools][:20],
            )
    considered = len(candidates)

    if not pinned and hints.avoid_pools:
        kept = [p for p in candidates if p.id not in hints.avoid_pools]
        filters += [f"{p.id}: avoided" for p in candidates if p not in kept]
        if not kept:
            raise InvalidParams(
                "placement.avoid_pools excludes every pool that serves this model. Leave one out of the list.",
                rule="avoid_leaves_none",
            )
        candidates = kept

    obstacles = {p.id: static_obstacle(job, p) for p in candidates}
    feasible = [p for p in candidates if obstacles[p.id] is None]
    filters += [f"{pool_id}: {found[1]}" for pool_id, found in obstacles.items() if found]
    if not feasible:
        rule, reason = next(found for found in obstacles.values() if found)
        raise InvalidParams(
            f"No pool can take this task: {'; '.join(filters)}. Lower the demand or choose another model.",
            rule="pin_infeasible" if pinned and rule != "ctx_exceeds_model" else rule,
            reason=reason,
        )

    open_now = [p for p in feasible if p.ready and not p.draining]
    filters += [f"{p.id}: {_why_closed(p)}" for p in feasible if p not in open_now]
    preferring = hints.mode == "prefer" and bool(hints.prefer_pools)
    preferred = [p for p in open_now if preferring and p.id in hints.prefer_pools]
    if preferring and not preferred and not hints.allow_fallback:
        wanted = [p for p in feasible if p.id in hints.prefer_pools]
        if not wanted:
            raise PoolUnready(
                "None of placement.prefer_pools can ever take this task and allow_fallback is false. Prefer others.",
                retriable=False,
                engine=job.engine,
                available=[p.id for p in feasible][:20],
            )
        _raise_closed(job, wanted, named=True)
    if not open_now:
        _raise_closed(job, feasible, named=pinned)

    fallback = preferring and not preferred
    if fallback:
        filters.append("preferred pools not feasible: fell back")
    open_now = preferred or open_now

    best, used = _rank(open_now, _POOL_ORDER)
    return Decision(best.id, considered, tuple(filters), tuple(used), pinned, fallback)


def pick_replica(replicas: Iterable[Replica], job: TaskRequest, *, warm: Replica | None) -> Replica | None:
    """The replica of a pool that gets the next task: fewest failures in a row, affinity, most free VRAM, fewest
    leases, id. A strict one needs an idle replica; one that is kept for a strict task takes no other."""
    exact = job.determinism == "strict"
    fit = [
        r
        for r in replicas
        if r.free > 0 and r.reserved is None and suits(r, job) and (not exact or (r.strict and not r.leases))
    ]
    return min(fit, key=lambda r: (r.breaker.failures, r is not warm, -r.vram_free, len(r.leases), r.id), default=None)


def suits(replica: Replica, job: TaskRequest) -> bool:
    """Whether the replica could ever take such a task."""
    mask = job.placement.require_device_mask
    fits = (
        replica.ctx >= job.ctx and job.workload in replica.workloads and (mask is None or replica.device_mask == mask)
    )
    return fits and all(knob in replica.features for knob in job.sampling.given)


_Key = Callable[[PoolSnapshot], float | str]
_POOL_ORDER: tuple[tuple[str, _Key], ...] = (
    ("predicted_end", lambda p: p.predicted_end_ms or 0.0),
    ("resident", lambda p: not p.resident),
    ("affinity", lambda p: not p.holds_session),
    ("least_loaded", lambda p: p.load),
    ("free_vram", lambda p: -p.vram_free),
    ("tokens_per_s", lambda p: -p.tokens_per_s),
    ("id", lambda p: p.id),
)


def _rank(pools: list[PoolSnapshot], order: Sequence[tuple[str, _Key]]) -> tuple[PoolSnapshot, list[str]]:
    """The best pool and the tie-breakers that were needed to find it."""
    used: list[str] = []
    rest = pools
    for name, key in order:
        if len(rest) == 1:
            break
        if name == "predicted_end" and any(p.predicted_end_ms is None for p in rest):
            continue  # no hint and nothing observed: there is no prediction to compare
        best = min(key(p) for p in rest)
        kept = [p for p in rest if key(p) == best]
        if len(kept) < len(rest):
            used.append(name)
        rest = kept
    return rest[0], used


def _why_closed(pool: PoolSnapshot) -> str:
    if pool.draining:
        return "draining"
    if pool.probe_in_ms is not None:
        return "failing task after task"
    return "loading" if pool.loading else "down"


def _raise_closed(job: TaskRequest, pools: Sequence[PoolSnapshot], *, named: bool) -> NoReturn:
    """`named`: the task can go to no others than these, by its own wish."""
    states = ", ".join(f"{p.id} is {_why_closed(p)}" for p in pools)
    if named or any(p.loading or p.draining for p in pools):
        raise PoolUnready(
            f"{states}. Try again shortly; GET /v1/pools/{{id}}/health says why.",
            retry_after_ms=min((p.opens_ms for p in pools if p.opens_ms is not None), default=None),
            engine=job.engine,
            pool_id=pools[0].id if len(pools) == 1 else None,
        )
    probes = [p.probe_in_ms for p in pools if p.probe_in_ms is not None]
    if probes:
        raise ReplicaExhausted(
            f"{states}; it is probed before it gets work again. Try again then.",
            engine=job.engine,
            pool_id=pools[0].id if len(pools) == 1 else None,
            retry_after_ms=min(probes),
        )
    raise PoolUnavailable(
        f"{states}. GET /v1/pools/{{id}}/health shows the last error.",
        engine=job.engine,
        pool_id=pools[0].id if len(pools) == 1 else None,
        retry_after_ms=min((p.opens_ms for p in pools if p.opens_ms is not None), default=None),
    )


def _names(pools: Sequence[PoolSnapshot]) -> str:
    return ", ".join(sorted(p.id for p in pools)) or "none"
