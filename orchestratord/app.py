"""The composition root: the only file that knows every name. Settings in, a runnable daemon out."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Any

from orchestratord import contract, mapping
from orchestratord.config import (
    ConfigError,
    Settings,
)
from orchestratord.domain.facts import TranscriptSource
from orchestratord.domain.hooks import Hooks, Limits
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.outcome import Failure
from orchestratord.domain.pool import Pool
from orchestratord.domain.ratelimit import RateLimit
from orchestratord.framework import App, Front
from orchestratord.handlers import Services, artifacts, catalog, operations, pools, sessions, tasks
from orchestratord.infra import prometheus
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines import registry
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.models import Fetches, Models
from orchestratord.infra.fetch.policy import FetchPolicy
from orchestratord.infra.gpu import NvmlProbe
from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.infra.logs import Sink, make_sink
from orchestratord.infra.memory import ProcMemory
from orchestratord.infra.process import ProcessHost
from orchestratord.infra.samples import samples, stored
from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.infra.telemetry import StandardTelemetry
from orchestratord.infra.trust.proofs import FileProofs
from orchestratord.middleware import BodyLimit, Guard
from orchestratord.ports import (
    Artifact,
    ArtifactStore,
    Clock,
    Engine,
    GpuProbe,
    Journal,
    JournalUnavailable,
    ModelUnavailable,
)
from orchestratord.services.admission import Admission
from orchestratord.services.artifacts import Artifacts
from orchestratord.services.catalog import CatalogModels
from orchestratord.services.dispatch import Dispatch
from orchestratord.services.gauges import Gauges
from orchestratord.services.members import ReplicaSpec
from orchestratord.services.modelcache import CacheBound
from orchestratord.services.narration import Narrator
from orchestratord.services.operations import Operations
from orchestratord.services.outages import Outages
from orchestratord.services.pools import Pools
from orchestratord.services.pressure import Pressure
from orchestratord.services.recorder import Recorder
from orchestratord.services.reload import Reloads, ReloadSettings
from orchestratord.services.replicas import Replicas
from orchestratord.services.residents import Residents
from orchestratord.services.retention import Retention
from orchestratord.services.room import Room, RoomSettings
from orchestratord.services.runs import Runs
from orchestratord.services.sessions import Sessions
from orchestratord.services.streams import LiveFrames, Streams, StreamSettings
from orchestratord.services.sweeps import Sweeps
from orchestratord.services.tasks import Tasks
from orchestratord.services.trust import Trust
from orchestratord.services.verification import Verification
from orchestratord.wire import canonical, sse
from orchestratord.wire.tasks import budgets_body
from orchestratord.wire.transcript import transcript

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
        log: Sink | None = None,
        draw_seed: Callable[[], int] | None = None,
        gpus: GpuProbe | None = None,
        tracing: Any = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = prometheus.Metrics()
        secret = mapping.secrets(settings, os.environ)
        log = log or make_sink(form=settings.log.format, level=settings.log.level, secrets=secret)
        self.telemetry = StandardTelemetry(self.metrics, log)
        self.journal = journal or self._journal()
        self.journal.watch(Outages(self.clock, self.telemetry).changed)
        self.store = store or self._store()
        self.mocks: dict[tuple[str, str], MockEngine] = {}
        self.proofs = FileProofs(mapping.roots(settings.trust.roots))
        self._drivers = drivers(settings)
        self.tracing = tracing or mapping.tracing(settings)
        self.stopping = False
        self.failure: str | None = None  # why it could not start

        profiles = {name: mapping.sampling(profile) for name, profile in settings.all_profiles.items()}
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
            self.tracing,
        )
        self.core = Lodging(
            [mapping.pool_spec(pool, profiles) for pool in settings.pools],
            Limits(
                session_ttl_s=settings.sessions.ttl_ms / 1000,
                turns_max=settings.sessions.turns_max,
                budget=mapping.budget(settings.sessions.budgets),
                tariff=mapping.tariff(settings.sessions.tariff),
                retain_s=settings.retention.tasks_ms / 1000,
                retain_tasks=settings.retention.tasks,
                log_bytes=settings.retention.log_bytes,
                transcripts=settings.artifacts.transcripts != "off",
            ),
            Hooks(
                record=self.recorder.append,
                encode=sse.encode,
                token_form=sse.TOKEN,
                quote=sse.quote,
                abort=self.dispatch.abort,
                wake=self.dispatch.wake,
                admitted=lambda task: self.narrator.admitted(task),
                ended=lambda task, phase, reason: self.narrator.ended(task, phase, reason),
                archive=lambda task_id, artifact: self.artifacts.archive(task_id, artifact),
            ),
            mapping.trust_policy(settings.trust),
            settings.models.starve_ms / 1000,
        )
        self.trust = Trust(
            self.core.catalog,
            self.proofs,
            {pool.id: pool.pins.model_digest for pool in settings.pools if pool.pins.model_digest is not None},
        )
        self.narrator = Narrator(self.telemetry, self.core.pools, self.tracing)
        self.dispatch.bind(self.core, self.narrator, lambda: self.residents.step())
        self.runs.bind(self.core)
        self.replicas = Replicas(
            self.core,
            self.clock,
            self.telemetry,
            ProcessHost(self.clock, secrets=secret),
            self._connect,
            _jitter,
            self._vet,
            self.models,
        )
        models = settings.models
        self.gauges = Gauges(self.core, self.clock, gpus or NvmlProbe(), self.replicas.serving, self.runs.proving)
        self.room = Room(
            ProcMemory(),
            RoomSettings(models.memory_bytes, models.vram_bytes),
            self.replicas.all_pids,
            self.gauges.vram,
        )
        self.residents = Residents(
            self.core, self.replicas, self.room, self.clock, self.telemetry, models.load_ms / 1000
        )
        self.artifacts = Artifacts(self.store, self.clock, self.telemetry, canonical.artifact_id)
        keep = mapping.keep(settings.retention)
        self.retention = Retention(self.store, self.core, self.clock, self.telemetry, keep)
        self.cache_bound = CacheBound(
            self.models, self.core, self.replicas.all_specs, self.clock, self.telemetry, keep.every_s
        )
        s = settings.streams
        self.streams = Streams(
            self.core,
            self.clock,
            self.journal,
            self.telemetry,
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
            self.core,
            self.clock,
            self.journal,
            {pool.id: mapping.watchdogs(pool) for pool in settings.pools},
            self.runs.silent,
        )
        self.pressure = Pressure(ProcMemory(), self.clock)
        self.admission = Admission(
            self.core,
            self.clock,
            self.journal,
            self.narrator,
            self.replicas.any_engine,
            frozenset(profiles),
            draw_seed or (lambda: secrets.randbelow(SEEDS)),
            RateLimit(settings.auth.rate_limit.per_s, settings.auth.rate_limit.burst),
            self.pressure.high,
        )
        self.pools = Pools(
            self.core,
            mapping.limits(settings),
            mapping.rate_limits(settings),
            contract.api_version(),
            self.models.progress,
        )
        self.operations = Operations(self.core, self.clock, self.telemetry, self.replicas.revive)
        self.catalog = CatalogModels(
            self.core,
            self.operations,
            Verification(self.models, self.proofs, self.clock, self.core.catalog.policy),
            self.proofs,
            self.clock,
            self.telemetry,
            settings.models.drain_ms,
        )
        self.reloads = Reloads(
            self.operations,
            self.core,
            self.replicas,
            self.models,
            self.trust,
            self.residents,
            self.room,
            self.clock,
            self.telemetry,
            ReloadSettings(models.drain_ms / 1000, models.load_ms / 1000),
            self.admission.forget_counts,
        )
        self.metrics.watch(lambda: [*samples(self.core, contract.api_version()), *stored(self.store)])
        self.services = Services(
            admission=self.admission,
            tasks=Tasks(self.core, self.clock),
            streams=self.streams,
            sessions=Sessions(self.core, self.clock),
            pools=self.pools,
            operations=self.operations,
            reloads=self.reloads,
            artifacts=self.artifacts,
            catalog=self.catalog,
            metrics=lambda: (prometheus.CONTENT_TYPE, self.metrics.render()),
            readiness=self.not_ready,
        )

    @cached_property
    def asgi(self) -> App:
        """What a server serves. Compiled on first use: a daemon whose services are called directly needs none."""
        front = Front(
            Guard(mapping.access(self.settings)),
            BodyLimit(self.settings.server.max_body_bytes, self.clock),
            self.telemetry,
        )
        return App(handler_table(self.services), front, mapping.tracing_layer(self.tracing), self._lifespan)

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
        self.core.catalog.restore(self.journal.catalog())
        self.core.restore_pools(self.journal.changed_pools(), wall_ms)
        self.core.restore(journaled, self.journal.deleted_sessions(), sse.split, now, wall_ms)
        self.artifacts.recover(self.journal.transcripts(), self.core)
        self.residents.start(
            [
                mapping.replica_spec(p, r).serving(self.core.pools[p.id].model)
                for p in self.settings.pools
                for r in p.replicas
            ]
        )
        work = (self.artifacts.serve(self.core), self.retention.serve(), self.cache_bound.serve())
        self._keepers = [asyncio.ensure_future(one) for one in work]
        self.gauges.start()
        self.sweeps.start()
        self.catalog.start()
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
        await self.catalog.stop()
        await self.operations.stop()
        await self.residents.stop()
        await self.gauges.stop()
        await self.replicas.stop()
        await self.models.close()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self.recorder.stop()
        await self.journal.close()
        if self.tracing is not None:
            await self.tracing.close()
        self.telemetry.event("daemon_stopped", "everything is down")

    def not_ready(self) -> list[str]:
        """Why the daemon should get no traffic now; empty when it should."""
        reasons = ["the daemon is shutting down"] if self.stopping else []
        if not self.journal.healthy:
            reasons.append("the journal cannot be written")
        if self.pressure.high():
            reasons.append("the memory it may use is nearly full")
        if not self.core.pools:
            reasons.append("no pool is configured")
        return reasons + self.pools.not_ready()

    # -- parts -------------------------------------------------------------------------------------------
    def _run(self, lease: Any) -> Coroutine[Any, Any, None]:
        self.sweeps.leased()
        return self.runs.run(lease)

    async def _vet(self, pool: Pool, spec: ReplicaSpec) -> str | None:
        assert spec.process is not None, "only files of this machine can be looked at"
        ref = spec.model.ref if spec.model is not None else pool.configured
        return await self.trust.vet(pool, ref, spec.process.model_path)

    def _archive(self, source: TranscriptSource) -> Artifact:
        full = self.settings.artifacts.transcripts == "full"
        return transcript(source, full=full)

    def _journal(self) -> Journal:
        if self.settings.journal.kind == "memory":
            return MemoryJournal(self._archive)
        path = self.settings.data_path / "journal.db"
        return SqliteJournal(path, self._archive, durability=self.settings.journal.durability)

    def _store(self) -> ArtifactStore:
        if self.settings.artifacts.kind == "memory":
            return MemoryArtifacts()
        flush = self.settings.journal.durability == "power"  # transcripts promise what the journal promises
        return FileArtifacts(self.settings.data_path / "artifacts", canonical.id_of, flush=flush)

    def _models(self) -> Models:
        settings, fetch = self.settings, self.settings.models.fetch
        policy = mapping.fetch_policy(fetch)
        named = [r.process.model_path for p in settings.pools for r in p.replicas if r.process is not None]
        local = LocalFiles(settings.models.roots, filter(None, named))
        cache = Cache(settings.data_path / "models")
        models = Models(local, policy, cache, _remote(policy, cache, self.clock))
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
        process = replica.process
        known = {} if process is None else {"slots": process.slots, "ctx": process.ctx, "process": spec.process}
        options = registry.options(make, known, replica.options)
        engine: Engine = make(url, clock=self.clock, api_key=api_key, **options)
        return engine


def handler_table(services: Services) -> dict[str, Callable[..., Awaitable[Any]]]:
    """Every public function of the handler modules under its name, bound to the services."""
    found: dict[str, Callable[..., Awaitable[Any]]] = {}
    for module in _HANDLERS:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = partial(value, services)
    return found


def drivers(settings: Settings) -> dict[str, Callable[..., Any]]:
    """By name, every driver the pools need. Raises ConfigError for one that is not there or cannot do what is asked."""
    found: dict[str, Callable[..., Any]] = {}
    for pool in settings.pools:
        name = pool.driver or pool.engine
        real = [replica for replica in pool.replicas if replica.mock is None]
        try:
            if real or not pool.replicas:
                found[name] = registry.driver(name)
            for replica in real:
                registry.check(name, found[name], replica.options, starts=replica.process is not None)
        except registry.DriverError as error:
            raise ConfigError(f"pool {pool.id!r}: {error}") from None
    return found


def _remote(policy: FetchPolicy, cache: Cache, clock: Clock) -> Fetches | None:
    if not policy.schemes:
        return None
    from orchestratord.infra.fetch.remote import Remote

    return Remote(policy, cache, clock)


def _jitter(seconds: float) -> float:
    """Full jitter: anything up to `seconds`."""
    return random.uniform(0, seconds)  # noqa: S311 - spreads load, hides nothing
