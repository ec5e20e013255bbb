"""Pools as operators see them: health, list, capabilities. Reading only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.errors import NotFound
from orchestratord.domain.operation import Fault, Operation
from orchestratord.domain.pool import Pool, Replica
from orchestratord.domain.views import waiting_for

REASON_CHARS = 256


class Pools:
    """`rate_limits`: what one caller may submit, by name. `fetched`: bytes there and bytes in all of a reference that
    is being fetched, see `ports.ModelFiles`.
    """

    def __init__(
        self,
        core: Core,
        limits: dict[str, int],
        rate_limits: dict[str, float],
        api_version: str,
        fetched: Callable[[str], tuple[int, int] | None],
    ) -> None:
        self._core = core
        self._limits = limits
        self._rate_limits = {"rate_limits": rate_limits} if rate_limits else {}
        self._api_version = api_version
        self._fetched = fetched

    def get(self, pool_id: str) -> Pool:
        """Raises NotFound."""
        pool = self._core.pools.get(pool_id)
        if pool is None:
            raise NotFound(f"There is no pool {pool_id!r}. See GET /v1/pools.")
        return pool

    def all(self) -> list[Pool]:
        return [self._core.pools[pool_id] for pool_id in sorted(self._core.pools)]

    def not_ready(self) -> list[str]:
        """Why the daemon cannot take work it should; empty when every pool is ready that nobody has closed."""
        reasons = []
        every = self.all()
        wanted = [pool for pool in every if not pool.draining]
        if every and not wanted:
            closed = ", ".join(pool.id for pool in every)
            reasons.append(f"every pool is drained or being reloaded ({closed}): resume one"[:REASON_CHARS])
        for pool in wanted:
            if not pool.ready:
                states = "; ".join(f"{r.id}: {r.reason or r.state}" for r in pool.replicas.values())
                reasons.append(f"pool {pool.id} is not ready ({states or 'no replicas'})"[:REASON_CHARS])
        return reasons

    def health(self, pool_id: str) -> dict[str, Any]:
        pool = self.get(pool_id)
        body = self.summary(pool)
        del body["id"], body["driver"]
        rate = pool.service.units_per_s
        body["metrics"] = {
            "service_ms_per_unit": pool.service.ms_per_unit,
            "observations": pool.service.observations,
            **({"tokens_per_s": rate} if rate is not None else {}),
            **self._fetching(pool),
            **_gauges(pool),
        }
        if pool.spec.on_demand:
            body["metrics"] |= {"load_ms": round(pool.stay.load_s * 1000, 1), "loads": pool.stay.loads}
            if (why := waiting_for(pool)) is not None and len(pool.queue):
                body["waiting_for"] = why
        body["replicas"] = [_replica(replica) for replica in pool.replicas.values()]
        if pool.engine_version != "unknown":
            body["engine_version"] = pool.engine_version
        digest = next((r.model_digest for r in pool.replicas.values() if r.model_digest), None)
        if digest is not None:
            body["model_digest"] = digest
        if pool.last_error is not None:
            body["last_error"] = _fault(pool.last_error)
        if pool.operation is not None:
            body["operation"] = operation_body(pool.operation)
        return body

    def _fetching(self, pool: Pool) -> dict[str, int]:
        """How far the model is that the pool waits for, if it is being fetched."""
        refs = [pool.spec.model_ref]
        if pool.operation is not None and not pool.operation.over and pool.operation.to_model_ref is not None:
            refs.insert(0, pool.operation.to_model_ref)
        done, total = next(filter(None, map(self._fetched, refs)), (None, 0))
        if done is None:
            return {}
        return {"fetch_bytes": done, **({"fetch_total_bytes": total} if total else {})}

    def summary(self, pool: Pool) -> dict[str, Any]:
        return {
            "id": pool.id,
            "engine": pool.spec.engine,
            "driver": pool.spec.driver,
            "model_ref": pool.spec.model_ref,
            "load": "on_demand" if pool.spec.on_demand else "always",
            "resident": pool.stay.phase == "in",
            "live": pool.live,
            "ready": pool.ready,
            "draining": pool.draining,
            "slots_total": pool.slots,
            "slots_busy": pool.leased,
            "queue": {
                "interactive": pool.queue.depth("interactive"),
                "batch": pool.queue.depth("batch"),
                "capacity": pool.queue.capacity,
            },
            **({"swaps": pool.stay.swaps} if pool.spec.on_demand else {}),
        }

    def capabilities(self) -> dict[str, Any]:
        """What this server can do now, from live pools (OC-CTRL-2061: api_version is the contract's)."""
        groups: dict[tuple[str, str, str], list[Pool]] = {}
        for pool in self.all():
            groups.setdefault((pool.spec.engine, pool.spec.driver, pool.engine_version), []).append(pool)
        return {
            "api_version": self._api_version,
            "engines": [{**_engine(key, pools), **self._rate_limits} for key, pools in sorted(groups.items())],
            "pools": [self.summary(pool) for pool in self.all()],
            "limits": self._limits,
        }


def _gauges(pool: Pool) -> dict[str, float]:
    """What its replicas and their devices say, as far as they do. A device that several share counts once."""
    usages = [r.kv_usage for r in pool.replicas.values() if r.kv_usage is not None]
    devices = {device.uuid: device for r in pool.replicas.values() for device in r.devices}
    rates = [device.utilization for device in devices.values() if device.utilization is not None]
    return {
        **({"kv_cache_usage_ratio": sum(usages) / len(usages)} if usages else {}),
        **({"gpu_utilization": sum(rates) / len(rates)} if rates else {}),
        **({"vram_used_bytes": sum(device.used for device in devices.values())} if devices else {}),
    }


def _replica(replica: Replica) -> dict[str, Any]:
    optional = {
        "ctx_max": replica.ctx or None,
        "engine_version": replica.engine_version or None,
        "model_digest": replica.model_digest,
        "device_mask": replica.device_mask,
        "last_error": _fault(replica.last_error) if replica.last_error else None,
    }
    return {
        "id": replica.id,
        "kind": replica.kind,
        "live": replica.state != "dead",
        "ready": replica.available,
        "slots_total": replica.slots,
        "slots_busy": len(replica.leases),
        "slots_quarantined": sum(lease.quarantined for lease in replica.leases.values()),
        **{key: value for key, value in optional.items() if value is not None},
    }


def operation_body(operation: Operation) -> dict[str, Any]:
    """PoolOperation."""
    optional = {
        "to_model_ref": operation.to_model_ref,
        "ended_at_ms": operation.ended_ms,
        "error": _fault(operation.error) if operation.error else None,
    }
    return {
        "operation_id": operation.id,
        "pool_id": operation.pool_id,
        "kind": operation.kind,
        "state": operation.state,
        "from_model_ref": operation.from_model_ref,
        "generation": operation.generation,
        "started_at_ms": operation.started_ms,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {"code": fault.code, "message": fault.message, "at_ms": fault.at_ms, "log_tail": list(fault.log_tail)}


def _engine(key: tuple[str, str, str], pools: list[Pool]) -> dict[str, Any]:
    engine, driver, version = key
    replicas = [r for pool in pools for r in pool.ready_replicas]
    ctx = max((r.ctx for r in replicas), default=0)
    body: dict[str, Any] = {
        "engine": engine,
        "driver": driver,
        "engine_version": version,
        "concurrency": sum(r.slots for r in replicas),
        "supported_workloads": sorted({w for r in replicas for w in r.workloads}),
        "features": sorted({f for r in replicas for f in r.features}),
        "determinism": "exact" if any(r.strict for r in replicas) else "best_effort",
        "sampler_profile_version": pools[0].spec.profile,
    }
    if ctx:
        body["ctx_max"] = body["max_tokens_out"] = ctx
    return body
