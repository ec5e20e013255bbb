"""What a daemon is made of: every service, with what it needs of the others."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Callable
from typing import Any

from orchestratord import contract, mapping
from orchestratord.app import stores
from orchestratord.app.engines import Engines
from orchestratord.config import Settings
from orchestratord.domain.facts import TranscriptSource
from orchestratord.domain.hooks import Hooks, Limits
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.pool import Lease, Pool
from orchestratord.domain.ratelimit import RateLimit
from orchestratord.infra import prometheus
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.gpu import NvmlProbe
from orchestratord.infra.logs import Sink, make_sink
from orchestratord.infra.memory import ProcMemory
from orchestratord.infra.process import ProcessHost
from orchestratord.infra.samples import samples, stored
from orchestratord.infra.steps import Steps, as_task
from orchestratord.infra.telemetry import StandardTelemetry
from orchestratord.infra.trust.proofs import FileProofs
from orchestratord.ports import Artifact, ArtifactStore, Clock, GpuProbe, Journal
from orchestratord.services.admission import Admission
from orchestratord.services.artifacts import Artifacts
from orchestratord.services.catalog import CatalogModels
from orchestratord.services.dispatch import Dispatch, Place
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
from orchestratord.services.streams import LiveFrames, Streams, StreamSettings
from orchestratord.services.sweeps import Sweeps
from orchestratord.services.trust import Trust
from orchestratord.services.verification import Verification
from orchestratord.wire import bulk, sse
from orchestratord.wire.tasks import budgets_body
from orchestratord.wire.transcript import transcript

SEEDS = 2**32 - 1  # engines cut wider seeds silently or take the last one for "random"


class Parts:
    """Everything between the settings and the sockets, put together and at rest."""

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
        self.journal = journal or stores.make_journal(settings, self._archive)
        self.journal.watch(Outages(self.clock, self.telemetry).changed)
        self.store = store or stores.make_artifacts(settings)
        self.engines = Engines(settings, self.clock)
        self.mocks = self.engines.made
        self.proofs = FileProofs(mapping.roots(settings.trust.roots))
        self.tracing = tracing or mapping.tracing(settings)

        profiles = {name: mapping.sampling(profile) for name, profile in settings.all_profiles.items()}
        self.models = stores.make_models(settings, self.clock)
        self.recorder = Recorder(
            self.journal, self.clock, lambda task_id, artifact: self.core.saved_late(task_id, artifact)
        )
        self.dispatch = Dispatch(self.clock, self._begin)
        self.runs = Runs(
            self.clock,
            self.telemetry,
            lambda lease: self.replicas.engine_of(lease),
            lambda lease, why: self.replicas.suspect(lease, why),
            profiles,
            _jitter,
            as_task,
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
                tokens=sse.tokens,
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
            self.engines.connect,
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
        self.artifacts = Artifacts(self.store, self.journal, self.clock, self.telemetry, bulk.address)
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

    def _begin(self, lease: Lease, place: Place) -> None:
        self.sweeps.leased()
        Steps(self.runs.run(lease), asyncio.get_running_loop(), place).begin()

    async def _vet(self, pool: Pool, spec: ReplicaSpec) -> str | None:
        assert spec.process is not None, "only files of this machine can be looked at"
        ref = spec.model.ref if spec.model is not None else pool.configured
        return await self.trust.vet(pool, ref, spec.process.model_path)

    def _archive(self, source: TranscriptSource) -> Artifact:
        full = self.settings.artifacts.transcripts == "full"
        return transcript(source, full=full)


def _jitter(seconds: float) -> float:
    """Full jitter: anything up to `seconds`."""
    return random.uniform(0, seconds)  # noqa: S311 - spreads load, hides nothing
