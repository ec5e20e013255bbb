"""The composition root: the only file that knows every name. Settings in, a runnable daemon out."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from orchestratord import contract
from orchestratord.config import (
    BudgetSettings,
    ConfigError,
    FetchSettings,
    PoolSettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
    TariffSettings,
    is_loopback,
)
from orchestratord.domain.budget import Budget, Tariff
from orchestratord.domain.eta import Prior
from orchestratord.domain.facts import TranscriptSource
from orchestratord.domain.hooks import Hooks, Limits
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.outcome import Failure
from orchestratord.domain.pins import Pins
from orchestratord.domain.pool import PoolSpec, Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.ratelimit import RateLimit
from orchestratord.domain.request import Sampling
from orchestratord.domain.url import host_pattern, parse_url
from orchestratord.framework import App
from orchestratord.handlers import Services, artifacts, catalog, operations, pools, sessions, tasks
from orchestratord.infra import prometheus
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.infra.fetch.buckets import Buckets
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.digest import Digests
from orchestratord.infra.fetch.download import Downloads
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.host import FetchingHost
from orchestratord.infra.fetch.https import Https
from orchestratord.infra.fetch.models import Models
from orchestratord.infra.fetch.policy import FetchPolicy, S3Access
from orchestratord.infra.gpu import NvmlProbe
from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.infra.memory import ProcMemory
from orchestratord.infra.process import ProcessHost
from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.infra.telemetry import StandardTelemetry, make_logger
from orchestratord.middleware import Access, BodyLimit, Edge, Guard
from orchestratord.ports import (
    Artifact,
    ArtifactStore,
    Clock,
    Engine,
    GpuProbe,
    Journal,
    JournalUnavailable,
    ModelUnavailable,
    ProcessSpec,
)
from orchestratord.services.admission import Admission
from orchestratord.services.artifacts import Artifacts, transcript
from orchestratord.services.dispatch import Dispatch
from orchestratord.services.gauges import Gauges
from orchestratord.services.members import ReplicaSpec
from orchestratord.services.narration import Narrator
from orchestratord.services.operations import Operations
from orchestratord.services.pools import Pools
from orchestratord.services.recorder import Recorder
from orchestratord.services.reload import Reloads, ReloadSettings
from orchestratord.services.replicas import Replicas
from orchestratord.services.residents import Residents
from orchestratord.services.room import Room, RoomSettings
from orchestratord.services.runs import Runs
from orchestratord.services.sessions import Sessions
from orchestratord.services.streams import LiveFrames, Streams, StreamSettings
from orchestratord.services.sweeps import Sweeps, Watchdogs
from orchestratord.services.tasks import Tasks
from orchestratord.wire import canonical, sse
from orchestratord.wire.tasks import MICRO, budgets_body

SEEDS = 2**32 - 1  # engines cut wider seeds silently or take the last one for "random"
_HANDLERS = (tasks, sessions, pools, catalog, artifacts, operations)


class Daemon:
    """One daemon: everything between the settings and the sockets."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        journal: Journal | None = None,
        store: ArtifactStore | None = None,
        logger: Any = None,
        draw_seed: Callable[[], int] | None = None,
        gpus: GpuProbe | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = prometheus.Metrics()
        self.telemetry = StandardTelemetry(self.metrics, logger if logger is not None else make_logger())
        self.journal = journal or self._journal()
        self.store = store or self._store()
        self.mocks: dict[tuple[str, str], MockEngine] = {}
        names = {p.driver or p.engine for p in settings.pools if not any(r.mock for r in p.replicas)}
        self._drivers = {name: driver(name) for name in names}
        for pool in settings.pools:
            for replica in pool.replicas if (pool.driver or pool.engine) in self._drivers else ():
                driver_options(self._drivers[pool.driver or pool.engine], replica)
        self.stopping = False
        self.failure: str | None = None  # why it could not start

        profiles = {name: _sampling(profile) for name, profile in settings.all_profiles.items()}
        self.models = self._models()
        self.recorder = Recorder(
            self.journal, self.clock, lambda task_id, artifact: self.core.saved_late(task_id, artifact)
        )
        self.dispatch = Dispatch(self.clock, self._run)
        self.runs = Runs(
            self.clock,
            self.telemetry,
            lambda lease: self.replicas.engine_of(lease),
            lambda lease, why: self.replicas.suspect(lease, why),
            profiles,
            _jitter,
        )
        self.core = Lodging(
            [_pool_spec(pool, profiles) for pool in settings.pools],
            Limits(
                session_ttl_s=settings.sessions.ttl_ms / 1000,
                turns_max=settings.sessions.turns_max,
                budget=_budget(settings.sessions.budgets),
                tariff=_tariff(settings.sessions.tariff),
                retain_s=settings.retention.tasks_ms / 1000,
                retain_tasks=settings.retention.tasks,
                log_bytes=settings.retention.log_bytes,
                transcripts=settings.artifacts.transcripts != "off",
            ),
            Hooks(
                record=self.recorder.append,
                encode=sse.encode,
                encode_token=sse.encode_token,
                abort=self.dispatch.abort,
                wake=self.dispatch.wake,
                admitted=lambda task: self.narrator.admitted(task),
                ended=lambda task, phase, reason: self.narrator.ended(task, phase, reason),
                archive=lambda task_id, artifact: self.artifacts.archive(task_id, artifact),
            ),
            settings.models.starve_ms / 1000,
        )
        self.narrator = Narrator(self.telemetry, self.core.pools)
        self.dispatch.bind(self.core, self.narrator, lambda: self.residents.step())
        self.runs.bind(self.core)
        self.replicas = Replicas(
            self.core,
            self.clock,
            self.telemetry,
            FetchingHost(ProcessHost(self.clock), self.models),
            self._connect,
            _jitter,
            Digests().of,
        )
        models = settings.models
        self.room = Room(ProcMemory(), RoomSettings(models.memory_bytes, models.vram_bytes), self.replicas.all_pids)
        self.residents = Residents(
            self.core, self.replicas, self.room, self.clock, self.telemetry, models.load_ms / 1000
        )
        self.gauges = Gauges(self.core, self.clock, gpus or NvmlProbe(), self.replicas.serving, self.runs.proving)
        self.artifacts = Artifacts(self.store, self.clock, self.telemetry, canonical.artifact_id)
        s = settings.streams
        self.streams = Streams(
            self.core,
            self.clock,
            self.journal,
            StreamSettings(
                metrics_s=s.metrics_ms / 1000,
                metrics_queued_s=s.metrics_queued_ms / 1000,
                keep_alive_s=s.keep_alive_ms / 1000,
                stall_s=s.stall_ms / 1000,
                disconnect_grace_s=s.disconnect_grace_ms / 1000,
            ),
            LiveFrames(sse.encode_live, budgets_body, sse.KEEP_ALIVE, sse.RETRY),
        )
        self.sweeps = Sweeps(
            self.core, self.clock, self.journal, {pool.id: _watchdogs(pool) for pool in settings.pools}
        )
        self.admission = Admission(
            self.core,
            self.clock,
            self.journal,
            self.narrator,
            self.replicas.any_engine,
            frozenset(profiles),
            draw_seed or (lambda: secrets.randbelow(SEEDS)),
            RateLimit(settings.auth.rate_limit.per_s, settings.auth.rate_limit.burst),
        )
        self.pools = Pools(self.core, _limits(settings), contract.api_version(), self.models.progress)
        self.operations = Operations(self.core, self.clock, self.telemetry, self.replicas.revive)
        self.reloads = Reloads(
            self.operations,
            self.core,
            self.replicas,
            self.models,
            self.residents,
            self.room,
            self.clock,
            self.telemetry,
            ReloadSettings(models.drain_ms / 1000, models.load_ms / 1000),
            self.admission.forget_counts,
        )
        self.metrics.watch(self._state)
        self.services = Services(
            admission=self.admission,
            tasks=Tasks(self.core, self.clock),
            streams=self.streams,
            sessions=Sessions(self.core, self.clock),
            pools=self.pools,
            operations=self.operations,
            reloads=self.reloads,
            artifacts=self.artifacts,
            metrics=lambda: (prometheus.CONTENT_TYPE, self.metrics.render()),
            readiness=self.not_ready,
        )

    @cached_property
    def asgi(self) -> App:
        """What a server serves. Compiled on first use: a daemon whose services are called directly needs none."""
        return App(
            handler_table(self.services),
            outer=[
                partial(Edge, telemetry=self.telemetry),
                partial(Guard, access=_access(self.settings)),
                partial(BodyLimit, max_bytes=self.settings.server.max_body_bytes, clock=self.clock),
            ],
            lifespan=self._lifespan,
        )

    # -- life --------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Recover what the journal knows, then bring the replicas up in the background. Raises JournalUnavailable."""
        try:
            journaled = await self.journal.open()
        except JournalUnavailable as error:
            self.failure = str(error)  # the server's lifespan swallows the exception
            raise
        if isinstance(self.store, FileArtifacts):
            await self.store.open()
        now, wall_ms = self.clock.now(), self.clock.wall_ms()
        self.core.restore_pools(self.journal.changed_pools(), wall_ms)
        self.core.restore(journaled, self.journal.deleted_sessions(), sse.split, now, wall_ms)
        for task_id, artifact in self.journal.transcripts():
            self.artifacts.archive(task_id, artifact)
        self.residents.start(
            [_replica_spec(p, r).serving(self.core.pools[p.id].model) for p in self.settings.pools for r in p.replicas]
        )
        self._archiver = asyncio.ensure_future(self.artifacts.serve(self.core))
        self.gauges.start()
        self.sweeps.start()
        self.telemetry.event("daemon_started", f"serving {len(self.core.pools)} pools", recovered=len(journaled))

    async def drain(self, grace_s: float) -> None:
        """Stop taking work; let what runs finish within the grace; end or cut every stream."""
        self.stopping = True
        self.admission.closed = True
        self.dispatch.pause()
        try:
            async with self.clock.limit(grace_s):
                await self.dispatch.drained()
        except TimeoutError:
            pass
        self.interrupt()

    def interrupt(self) -> None:
        """End what has shown output, or would be lost; the rest waits again after the restart. Ends every stream."""
        now, wall_ms = self.clock.now(), self.clock.wall_ms()
        survives = self.settings.journal.kind != "memory"
        for task in list(self.core.tasks.values()):
            if not task.terminal and not (survives and task.first_token is None):
                message = "The daemon is shutting down. Submit the task again under a fresh task_id when it is back."
                self.core.fail(
                    task, Failure("WORKER_RESET", message, task.request.engine, True), now, wall_ms, "shutdown"
                )
        self.streams.stop()

    async def stop(self) -> None:
        """Stop engines, archive what is done, close the stores."""
        self.dispatch.pause()
        self.sweeps.stop()
        self.interrupt()
        self.runs.give_up()
        self.dispatch.abort_all()
        await self.dispatch.drained()
        await self.operations.stop()
        await self.residents.stop()
        await self.gauges.stop()
        await self.replicas.stop()
        await self.models.close()
        self._archiver.cancel()
        await asyncio.gather(self._archiver, return_exceptions=True)
        self.recorder.stop()
        await self.journal.close()
        self.telemetry.event("daemon_stopped", "everything is down")

    def not_ready(self) -> list[str]:
        """Why the daemon should get no traffic now; empty when it should."""
        reasons = ["the daemon is shutting down"] if self.stopping else []
        if not self.journal.healthy:
            reasons.append("the journal cannot be written")
        if not self.core.pools:
            reasons.append("no pool is configured")
        return reasons + self.pools.not_ready()

    # -- parts -------------------------------------------------------------------------------------------
    async def _run(self, lease: Any) -> None:
        self.sweeps.leased()
        await self.runs.run(lease)

    def _archive(self, source: TranscriptSource) -> Artifact:
        full = self.settings.artifacts.transcripts == "full"
        return transcript(source, sse.decode, canonical.artifact_id, full=full)

    def _journal(self) -> Journal:
        if self.settings.journal.kind == "memory":
            return MemoryJournal(self._archive)
        path = self.settings.data_path / "journal.db"
        return SqliteJournal(path, self._archive, durability=self.settings.journal.durability)

    def _store(self) -> ArtifactStore:
        if self.settings.artifacts.kind == "memory":
            return MemoryArtifacts()
        return FileArtifacts(self.settings.data_path / "artifacts", canonical.id_of)

    def _models(self) -> Models:
        settings, fetch = self.settings, self.settings.models.fetch
        policy = _fetch_policy(fetch)
        named = [r.process.model_path for p in settings.pools for r in p.replicas if r.process is not None]
        local = LocalFiles(settings.models.roots, filter(None, named))
        cache = Cache(settings.data_path / "models")
        https = Https(policy, self.clock)
        models = Models(local, policy, cache, https, Downloads(https, cache, policy, self.clock), Buckets(policy.s3))
        for pool in settings.pools:
            if any(r.process is not None and r.process.model_path is None for r in pool.replicas):
                try:
                    models.check(pool.model)
                except ModelUnavailable as error:
                    raise ConfigError(f"pool {pool.id!r}: {error}") from None
        return models

    def _connect(self, spec: ReplicaSpec, url: str) -> Engine:
        pool = next(p for p in self.settings.pools if p.id == spec.pool_id)
        replica = next(r for r in pool.replicas if r.id == spec.id)
        if replica.mock is not None:
            model = spec.model.ref if spec.model is not None else pool.model
            key = (pool.id, replica.id if spec.model is None else f"{replica.id}@{model}")
            if key not in self.mocks:
                mock = replica.mock
                self.mocks[key] = MockEngine(
                    url,
                    clock=self.clock,
                    engine=pool.engine,
                    model_id=model,
                    slots=mock.slots,
                    ctx=mock.ctx,
                    token_ms=mock.token_ms,
                    prefill_ms=mock.prefill_ms,
                    load_ms=mock.load_ms,
                )
            self.mocks[key].start()
            return self.mocks[key]
        key_name = replica.api_key_env
        api_key = os.environ.get(key_name) if key_name else None
        make = self._drivers[pool.driver or pool.engine]
        engine: Engine = make(url, clock=self.clock, api_key=api_key, **driver_options(make, replica))
        return engine

    def _state(self) -> Iterable[prometheus.Sample]:
        for pool in self.core.pools.values():
            labels = {"engine": pool.spec.engine, "engine_version": pool.engine_version, "pool_id": pool.id}
            for priority in ("interactive", "batch"):
                yield "queue_depth", {**labels, "priority": priority}, pool.queue.depth(priority)
            yield "active_leases", labels, len(pool.leases)
            yield "pool_ready", labels, float(pool.ready)
            if pool.spec.on_demand:
                yield "orchestratord_model_resident", labels, float(pool.stay.phase == "in")
            for replica in pool.ready_replicas:
                yield from _gauges(replica, {**labels, "engine_version": replica.engine_version})


def _gauges(replica: Replica, pool: dict[str, str]) -> Iterable[prometheus.Sample]:
    labels = {**pool, "replica_id": replica.id}
    if replica.kv_usage is not None:
        yield "kv_cache_usage_ratio", labels, replica.kv_usage
    for device in replica.devices:
        on = {**labels, "device": str(device.index)}
        yield "vram_used_bytes", on, device.used
        if device.utilization is not None:
            yield "gpu_utilization", on, device.utilization


def handler_table(services: Services) -> dict[str, Callable[..., Awaitable[Any]]]:
    """Every public function of the handler modules under its name, bound to the services."""
    found: dict[str, Callable[..., Awaitable[Any]]] = {}
    for module in _HANDLERS:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = partial(value, services)
    return found


def driver(name: str) -> Callable[..., Any]:
    """The engine driver of an entry point in `orchestratord.engines`. Raises ConfigError."""
    known = entry_points(group="orchestratord.engines")
    if name not in known.names:
        there = ", ".join(sorted(known.names)) or "none: is the package installed?"
        raise ConfigError(f"there is no engine driver {name!r}. Installed: {there}.")
    loaded: Callable[..., Any] = known[name].load()
    return loaded


def driver_options(make: Callable[..., Any], replica: ReplicaSettings) -> dict[str, int | str]:
    """What to make a replica's driver with: its `options`, and of its process what the driver may want to know of an
    engine that does not tell. Raises ConfigError."""
    takes = set(inspect.signature(make).parameters) - {"url", "clock", "api_key"}
    if unknown := sorted(replica.options.keys() - takes):
        there = f"It takes {', '.join(sorted(takes))}." if takes else "It takes none."
        raise ConfigError(f"replica {replica.id!r}: its driver has no option {unknown[0]!r}. {there}")
    process = replica.process
    known: dict[str, int | str] = {} if process is None else {"slots": process.slots, "ctx": process.ctx}
    return {**{name: value for name, value in known.items() if name in takes}, **replica.options}


def _access(settings: Settings) -> Access:
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


def _pool_spec(pool: PoolSettings, profiles: dict[str, Sampling]) -> PoolSpec:
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


def _replica_spec(pool: PoolSettings, replica: ReplicaSettings) -> ReplicaSpec:
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
    )


def _fetch_policy(fetch: FetchSettings) -> FetchPolicy:
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
        connect_s=fetch.connect_ms / 1000,
        idle_s=fetch.idle_ms / 1000,
        total_s=fetch.total_ms / 1000,
    )


def _budget(budgets: BudgetSettings) -> Budget:
    cost = None if budgets.cost is None else round(budgets.cost * MICRO)
    return Budget(budgets.tokens, budgets.time_ms, cost)


def _tariff(tariff: TariffSettings) -> Tariff:
    return Tariff(
        round(tariff.per_task * MICRO),
        round(tariff.per_1k_tokens_in * MICRO / 1000),
        round(tariff.per_1k_tokens_out * MICRO / 1000),
    )


def _watchdogs(pool: PoolSettings) -> Watchdogs:
    w = pool.watchdogs
    return Watchdogs(w.first_token_ms / 1000, w.idle_ms / 1000, w.wall_ms / 1000)


def _jitter(seconds: float) -> float:
    """Full jitter: anything up to `seconds`."""
    return random.uniform(0, seconds)  # noqa: S311 - spreads load, hides nothing


def _sampling(profile: Any) -> Sampling:
    return Sampling(**{name: getattr(profile, name) for name in profile.__struct_fields__})


def _limits(settings: Settings) -> dict[str, int]:
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
    }
