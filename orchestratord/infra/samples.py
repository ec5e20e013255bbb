"""The gauges that are read off the core at each scrape: nothing keeps them up to date in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestratord import __version__
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.pool import Replica
from orchestratord.infra.prometheus import Sample
from orchestratord.ports import ArtifactStore


def samples(core: Lodging, api_version: str) -> Iterable[Sample]:
    """Name, labels and value of each."""
    yield "orchestratord_build_info", {"version": __version__, "api_version": api_version}, 1
    for pool in core.pools.values():
        labels = {"engine": pool.spec.engine, "engine_version": pool.engine_version, "pool_id": pool.id}
        for priority in ("interactive", "batch"):
            yield "queue_depth", {**labels, "priority": priority}, pool.queue.depth(priority)
        yield "active_leases", labels, pool.leased
        yield "pool_ready", labels, float(pool.ready)
        if (rate := pool.service.units_per_s) is not None:
            yield "orchestratord_engine_tokens_per_s", labels, rate
        if (operation := pool.operation) is not None and not operation.over:
            yield "orchestratord_pool_operation", {**labels, "kind": operation.kind, "state": operation.state}, 1.0
        if pool.spec.on_demand:
            yield "orchestratord_model_resident", labels, float(pool.stay.phase == "in")
        for replica in pool.ready_replicas:
            yield from _of_replica(replica, {**labels, "engine_version": replica.engine_version})
    states = Counter((core.catalog.label(e.id), e.state) for e in core.catalog.oldest())
    for (model_id, state), count in states.items():
        yield "model_state", {"model_id": model_id, "state": state}, count


def stored(store: ArtifactStore) -> Iterable[Sample]:
    """What the store of artifacts holds."""
    yield "orchestratord_artifact_bytes", {"origin": "automatic"}, store.automatic_bytes
    yield "orchestratord_artifact_bytes", {"origin": "client"}, store.kept_bytes


def _of_replica(replica: Replica, pool: dict[str, str]) -> Iterable[Sample]:
    labels = {**pool, "replica_id": replica.id}
    if replica.kv_usage is not None:
        yield "kv_cache_usage_ratio", labels, replica.kv_usage
    for device in replica.devices:
        on = {**labels, "device": str(device.index)}
        yield "vram_used_bytes", on, device.used
        if device.utilization is not None:
            yield "gpu_utilization", on, device.utilization
