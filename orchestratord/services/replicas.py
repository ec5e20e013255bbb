"""Replicas: attach or start each engine, prove that it decodes and can be cancelled, watch it, bring it back.

One supervisor task per replica. A replica is ready only after a minimal decode and a cancel succeeded on it
(OC-POOL-30xx). What fails is retried with exponential backoff and full jitter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.operation import Fault
from orchestratord.domain.pool import Lease, Pool, Replica
from orchestratord.domain.request import Sampling
from orchestratord.ports import (
    Clock,
    Engine,
    EngineError,
    EngineProps,
    Job,
    ProcessSpec,
    ReplicaHost,
    ReplicaProcess,
    Telemetry,
)

POLL_S = 2.0
LOADING_POLL_S = 0.1
PROBE_LIMIT_S = 60.0
HEALTH_LIMIT_S = 2.0
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Where one replica is, or how to start it. Exactly one of `url` and `process` is set."""

    id: str
    pool_id: str
    url: str | None = None
    process: ProcessSpec | None = None
    device_mask: str | None = None
    model_digest: str | None = None


Connect = Callable[[ReplicaSpec, str], Engine]  # (spec, url) -> engine client


class Down(Exception):
    """The replica stopped being ready."""


class Replicas:
    def __init__(
        self,
        core: Core,
        clock: Clock,
        telemetry: Telemetry,
        host: ReplicaHost,
        connect: Connect,
        jitter: Callable[[float], float],
    ) -> None:
        self._core = core
        self._clock = clock
        self._telemetry = telemetry
        self._host = host
        self._connect = connect
        self._jitter = jitter
        self._engines: dict[tuple[str, str], Engine] = {}
        self._nudges: dict[tuple[str, str], asyncio.Event] = {}
        self._supervisors: set[asyncio.Task[None]] = set()

    # -- what the rest of the services needs -------------------------------------------------------------
    def engine_of(self, lease: Lease) -> Engine | None:
        if lease.replica.incarnation != lease.incarnation:
            return None
        return self._engines.get((lease.pool.id, lease.replica.id))

    def any_engine(self, pool: Pool) -> Engine | None:
        """An engine of the pool that can be asked about prompts."""
        return next((self._engines.get((pool.id, r.id)) for r in pool.ready_replicas), None)

    def suspect(self, lease: Lease, why: str) -> None:
        """A run saw this replica misbehave: look at it now instead of at the next poll."""
        nudge = self._nudges.get((lease.pool.id, lease.replica.id))
        if nudge is not None:
            nudge.set()

    # -- supervision -------------------------------------------------------------------------------------
    def start(self, specs: list[ReplicaSpec]) -> None:
        for spec in specs:
            self._core.add_replica(
                spec.pool_id, Replica(spec.id, "process" if spec.process else "external", spec.device_mask)
            )
            self._nudges[spec.pool_id, spec.id] = asyncio.Event()
            task = asyncio.get_running_loop().create_task(self._supervise(spec), name=f"replica-{spec.id}")
            self._supervisors.add(task)

    async def stop(self) -> None:
        """Stop every engine we started and let go of the others."""
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

    async def _supervise(self, spec: ReplicaSpec) -> None:
        backoff = BACKOFF_S
        while True:
            process: ReplicaProcess | None = None
            engine: Engine | None = None
            was_ready = False
            try:
                if spec.process is not None:
                    process = await self._host.start(spec.process)
                url = process.url if process is not None else spec.url
                assert url is not None
                engine = self._engines[spec.pool_id, spec.id] = self._connect(spec, url)
                await self._come_up(spec, engine, process)
                was_ready, backoff = True, BACKOFF_S
                await self._watch(spec, engine, process)
            except Exception as error:  # whatever it was, the replica is down and will be tried again
                self._fell(spec, error, process, was_ready)
            finally:
                self._engines.pop((spec.pool_id, spec.id), None)
                if engine is not None:
                    await engine.close()
                if process is not None:
                    await process.stop(STOP_GRACE_S)
            await self._pause(spec, self._jitter(backoff))
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _come_up(self, spec: ReplicaSpec, engine: Engine, process: ReplicaProcess | None) -> None:
        await self._until_loaded(spec, engine, process)
        props = await engine.props()
        async with self._clock.limit(PROBE_LIMIT_S):
            await self._probe(engine, props)
        self._core.replica_ready(spec.pool_id, spec.id, **_facts(props), model_digest=spec.model_digest)
        self._telemetry.event(
            "replica_ready",
            f"{spec.pool_id}/{spec.id} decodes and cancels; {props.slots} slots of {props.ctx} tokens",
            pool_id=spec.pool_id,
            replica_id=spec.id,
            engine_version=props.engine_version,
        )
        self._telemetry.count("orchestratord_preloads_total", pool_id=spec.pool_id, outcome="ready")

    async def _until_loaded(self, spec: ReplicaSpec, engine: Engine, process: ReplicaProcess | None) -> None:
        """Poll until the model is loaded. A child may take its time; a URL that nothing listens on is dead."""
        while True:
            if process is not None:
                self._check_alive(process)
            try:
                reason = await engine.ready()
            except EngineError:
                if process is None:
                    raise
                reason = "starting"
            if reason is None:
                return
            self._core.replica_loading(spec.pool_id, spec.id, reason)
            await self._clock.sleep(LOADING_POLL_S)

    async def _probe(self, engine: Engine, props: EngineProps) -> None:
        """A minimal decode, then a longer one that is cancelled: both must work before anyone depends on them."""
        if "completion" not in props.workloads:
            return
        job = Job(
            "completion", max_tokens=4, seed=1, prompt="ping", sampling=Sampling(temperature=0.0), keep_cache=False
        )
        async with engine.stream(job) as chunks:
            async for chunk in chunks:
                if chunk.end is not None:
                    break
            else:
                raise EngineError("lost", "the probe's decode did not end")
        before = await engine.busy() or frozenset()  # somebody else may be using an engine we only attach
        long = Job("completion", max_tokens=props.ctx // 2, seed=1, prompt="ping", keep_cache=False)
        async with engine.stream(long) as chunks:
            async for _ in chunks:
                break
        pause = 0.01
        while len(await engine.busy() or ()) > len(before):
            await self._clock.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _watch(self, spec: ReplicaSpec, engine: Engine, process: ReplicaProcess | None) -> None:
        """Poll health until it fails. Raises Down or EngineError."""
        while True:
            await self._pause(spec, POLL_S, process)
            if process is not None:
                self._check_alive(process)
            async with self._clock.limit(HEALTH_LIMIT_S):
                reason = await engine.ready()
            if reason is not None:
                raise Down(reason)
            await self._release_quarantined(spec, engine)

    async def _release_quarantined(self, spec: ReplicaSpec, engine: Engine) -> None:
        replica = self._core.pools[spec.pool_id].replicas[spec.id]
        quarantined = [lease for lease in replica.leases.values() if lease.quarantined]
        if quarantined:
            busy = await engine.busy() or frozenset()
            for lease in quarantined:
                if lease.slot not in busy:
                    self._core.release(lease)

    async def _pause(self, spec: ReplicaSpec, seconds: float, process: ReplicaProcess | None = None) -> None:
        """Wait, but not longer than until a run reports trouble or the child exits."""
        nudge = self._nudges[spec.pool_id, spec.id]
        waits: list[asyncio.Task[Any]] = [
            asyncio.ensure_future(nudge.wait()),
            asyncio.ensure_future(self._clock.sleep(seconds)),
        ]
        if process is not None:
            waits.append(asyncio.ensure_future(process.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudge.clear()
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _check_alive(self, process: ReplicaProcess) -> None:
        if process.returncode is not None:
            raise Down(f"the engine process exited with code {process.returncode}")

    def _fell(self, spec: ReplicaSpec, error: Exception, process: ReplicaProcess | None, was_ready: bool) -> None:
        reason = str(error) or type(error).__name__
        tail = tuple(process.tail()[-20:]) if process is not None else ()
        self._core.replica_failed(spec.pool_id, spec.id, Fault("POOL_UNAVAILABLE", reason, self._clock.wall_ms(), tail))
        self._telemetry.event(
            "replica_down", f"{spec.pool_id}/{spec.id}: {reason}", pool_id=spec.pool_id, replica_id=spec.id
        )
        name = "orchestratord_replica_losses_total" if was_ready else "orchestratord_preloads_total"
        labels = {} if was_ready else {"outcome": "failed"}
        self._telemetry.count(name, pool_id=spec.pool_id, **labels)


def _facts(props: EngineProps) -> dict[str, Any]:
    return {
        "slots": props.slots,
        "ctx": props.ctx,
        "engine_version": props.engine_version,
        "model_id": props.model_id,
        "workloads": props.workloads,
        "chat_template": props.chat_template,
        "features": props.features,
        "quant": props.quant,
    }
