"""From settings to what the layers inside take: one function a part, none with a state of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestratord import __version__, contract
from orchestratord.config import (
    BudgetSettings,
    ConfigError,
    FetchSettings,
    PoolSettings,
    QueueSettings,
    ReplicaSettings,
    RetentionSettings,
    Settings,
    TariffSettings,
    TrustSettings,
    is_loopback,
    written_secrets,
)
from orchestratord.domain.budget import Budget, Tariff
from orchestratord.domain.eta import Prior
from orchestratord.domain.hooks import Limits
from orchestratord.domain.pins import Pins
from orchestratord.domain.pool import PoolSpec
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.request import Sampling
from orchestratord.domain.trust import TrustPolicy
from orchestratord.domain.url import host_pattern, parse_url
from orchestratord.infra.fetch.policy import FetchPolicy, S3Access
from orchestratord.infra.secrets import Secrets
from orchestratord.infra.storage.filesystem import SIZE_LIMIT
from orchestratord.infra.trust.proofs import load_roots
from orchestratord.infra.trust.root import BadKey, Root
from orchestratord.middleware import Access
from orchestratord.ports import ProcessSpec
from orchestratord.services.members import ReplicaSpec
from orchestratord.services.retention import Keep
from orchestratord.services.sweeps import Watchdogs
from orchestratord.wire.limits import CONNECTIONS, HEAD_BYTES, URL_BYTES
from orchestratord.wire.responses import watched
from orchestratord.wire.tasks import MICRO

if TYPE_CHECKING:
    from orchestratord.infra.tracing.spans import Spans


def access(settings: Settings) -> Access:
    auth = settings.auth
    documents = tuple(f"/openapi/{name}.{kind}" for name in contract.CONTRACTS for kind in ("json", "yaml"))
    names = {"healthz": ("/healthz",), "readyz": ("/readyz",), "docs": ("/docs",), "openapi": documents}
    hosts = Access().hosts
    assert hosts is not None
    local = is_loopback(settings.server.host)
    return Access(
        token=settings.token,
        optional=settings.auth_optional,
        public=frozenset(path for name in auth.public for path in names[name]),
        hosts=hosts | {h.lower() for h in auth.allowed_hosts} if local or auth.allowed_hosts else None,
        origins=frozenset(auth.allowed_origins),
    )


def secrets(settings: Settings, environ: Mapping[str, str]) -> Secrets:
    """Everything secret that the configuration gives or names."""
    fetch = settings.models.fetch
    replicas = [replica for pool in settings.pools for replica in pool.replicas]
    names = {replica.api_key_env for replica in replicas if replica.api_key_env} | set(fetch.tokens.values())
    names |= {fetch.s3.access_key_env, fetch.s3.secret_key_env, fetch.s3.session_token_env}
    values = [settings.token or "", *(environ.get(name, "").strip() for name in names)]
    for value in [*values]:  # `user:password`
        values += value.split(":", 1) if ":" in value else []
    return Secrets(names, [*values, *written_secrets(settings)])


def pool_spec(pool: PoolSettings, profiles: dict[str, Sampling]) -> PoolSpec:
    prior, pins = pool.prior, pool.pins
    sampling = profiles[pins.profile] if pins.profile is not None else Sampling()
    knobs = frozenset(name for name in Sampling.__slots__ if getattr(sampling, name) is not None)
    return PoolSpec(
        id=pool.id,
        engine=pool.engine,
        driver="mock" if any(r.mock for r in pool.replicas) else pool.driver or pool.engine,
        model_ref=pool.model,
        aliases=(*pool.aliases, pool.id),
        queue=QueueSpec(
            pool.queue.capacity, pool.queue.full_policy, pool.queue.batch_capacity, pool.queue.batch_age_ms / 1000
        ),
        prior=Prior(prior.overhead_ms, prior.ms_per_unit, prior.fraction, prior.load_ms),
        on_demand=pool.load == "on_demand",
        min_resident_s=pool.min_resident_ms / 1000,
        idle_unload_s=pool.idle_unload_ms / 1000,
        pins=Pins(pins.engine_version, pins.model_digest, pins.profile, knobs),
    )


def replica_spec(pool: PoolSettings, replica: ReplicaSettings) -> ReplicaSpec:
    url = f"mock://{pool.id}/{replica.id}" if replica.mock is not None else replica.url
    return ReplicaSpec(
        replica.id,
        pool.id,
        url,
        _process_spec(pool, replica),
        replica.device_mask,
        memory_bytes=replica.memory_bytes,
        vram_bytes=replica.vram_bytes,
        restarts=(pool.restarts.limit, pool.restarts.window_ms / 1000),
    )


def _process_spec(pool: PoolSettings, replica: ReplicaSettings) -> ProcessSpec | None:
    process = replica.process
    if process is None:
        return None
    return ProcessSpec(
        driver=pool.driver or pool.engine,
        model_path=pool.model if process.model_path is None else str(Path(process.model_path).expanduser()),
        slots=process.slots,
        ctx=process.ctx,
        threads=process.threads,
        binary=process.binary,
        extra_args=process.extra_args,
        env=dict(process.env),
        device_mask=replica.device_mask,
        mode=process.mode,
        api_key_env=replica.api_key_env,
    )


def fetch_policy(fetch: FetchSettings) -> FetchPolicy:
    s3 = fetch.s3
    return FetchPolicy(
        schemes=frozenset(fetch.schemes),
        hosts=tuple(host_pattern(host, wildcard=True) for host in fetch.hosts),
        private=frozenset(map(host_pattern, fetch.allow_private)),
        tokens={host_pattern(host): name for host, name in fetch.tokens.items()},
        ca_roots=tuple(str(Path(path).expanduser()) for path in fetch.ca_roots.values()),
        hub=parse_url(fetch.hub),
        s3=S3Access(parse_url(s3.endpoint), s3.region, s3.access_key_env, s3.secret_key_env, s3.session_token_env),
        max_bytes=fetch.max_bytes,
        cache_bytes=fetch.cache_bytes,
        connect_s=fetch.connect_ms / 1000,
        idle_s=fetch.idle_ms / 1000,
        total_s=fetch.total_ms / 1000,
    )


def trust_policy(trust: TrustSettings) -> TrustPolicy:
    return TrustPolicy(trust.mode, trust.allowed_registries, trust.require_signature, trust.require_sbom)


def roots(paths: dict[str, str]) -> list[Root]:
    """Raises ConfigError."""
    try:
        return load_roots(paths)
    except BadKey as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"trust.roots: cannot read {error.filename}: {error.strerror}") from None


def budget(budgets: BudgetSettings) -> Budget:
    cost = None if budgets.cost is None else round(budgets.cost * MICRO)
    return Budget(budgets.tokens, budgets.time_ms, cost)


def tariff(tariff: TariffSettings) -> Tariff:
    return Tariff(
        round(tariff.per_task * MICRO),
        round(tariff.per_1k_tokens_in * MICRO),
        round(tariff.per_1k_tokens_out * MICRO),
    )


def watchdogs(pool: PoolSettings) -> Watchdogs:
    w = pool.watchdogs
    return Watchdogs(w.first_token_ms / 1000, w.idle_ms / 1000, w.wall_ms / 1000)


def keep(retention: RetentionSettings) -> Keep:
    return Keep(retention.transcripts_ms, retention.transcripts_bytes, retention.sweep_ms / 1000)


def sampling(profile: Any) -> Sampling:
    return Sampling(**{name: getattr(profile, name) for name in profile.__struct_fields__})


def tracing(settings: Settings) -> Spans | None:
    """Raises ConfigError."""
    if not settings.tracing.enabled:
        return None
    try:
        from orchestratord.infra.tracing.setup import TracingError, provider_from
        from orchestratord.infra.tracing.spans import Spans
    except ImportError as error:
        raise ConfigError(f"tracing.enabled needs `pip install orchestratord[tracing]` ({error})") from None
    try:
        return Spans(provider_from(os.environ, __version__), __version__)
    except TracingError as error:
        raise ConfigError(str(error)) from None


def tracing_layer(spans: Spans | None) -> list[Any]:
    """What the onion has outermost: nothing, while tracing is off."""
    if spans is None:
        return []
    from orchestratord.infra.tracing.requests import RequestSpans

    paths = [path for name in contract.CONTRACTS for path in contract.load(name)["paths"]]
    return [partial(RequestSpans, spans=spans, paths=paths, watched=watched)]


def limits(settings: Settings) -> dict[str, int]:
    """What capabilities say of limits: the contract's own where it sets one, else the configuration's."""
    task = contract.load("data")["components"]["schemas"]["TaskRequest"]["properties"]
    return {
        "max_body_bytes": settings.server.max_body_bytes,
        "max_prompt_chars": task["prompt"]["maxLength"],
        "max_messages": task["messages"]["maxItems"],
        "max_inputs": task["inputs"]["maxItems"],
        "queue_capacity_default": QueueSettings().capacity,
        "event_log_bytes": Limits().task_bytes,
        "sse_keepalive_ms": settings.streams.keep_alive_ms,
        "sse_metrics_ms": settings.streams.metrics_ms,
        "sse_stall_ms": settings.streams.stall_ms,
        "disconnect_grace_ms": settings.streams.disconnect_grace_ms,
        "session_ttl_ms": settings.sessions.ttl_ms,
        "session_turns_max": settings.sessions.turns_max,
        "task_retention_ms": settings.retention.tasks_ms,
        "task_retention_count": settings.retention.tasks,
        "transcript_retention_ms": settings.retention.transcripts_ms,
        "transcript_retention_bytes": settings.retention.transcripts_bytes,
        "max_artifact_bytes": SIZE_LIMIT,
        "max_uri_bytes": URL_BYTES,
        "max_header_bytes": HEAD_BYTES,
        "max_connections": settings.server.connections or CONNECTIONS,
        "max_deadline_ms": contract.load("data")["components"]["schemas"]["DeadlineMs"]["maximum"],
    }


def rate_limits(settings: Settings) -> dict[str, float]:
    """What capabilities say of how fast one caller may submit tasks; nothing when there is no limit."""
    rate = settings.auth.rate_limit
    return {"tasks_per_s": rate.per_s, "tasks_burst": rate.burst} if rate.per_s else {}
