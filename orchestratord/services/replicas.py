"""Replicas: attach or start each engine, prove that it decodes and can be cancelled, watch it, bring it back.

One supervisor task per replica. A replica is ready only after a minimal decode and a cancel succeeded on it
(OC-POOL-30xx). What fails is retried with exponential backoff and full jitter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from orchestratord.domain.core import Core
from orchestratord.domain.pool import Lease, Pool, Replica
from orchestratord.ports import (
    Clock,
    Engine,
    EngineError,
    EngineProps,
    ModelFiles,
    ReplicaHost,
    ReplicaProcess,
    Telemetry,
)
from orchestratord.services.deaths import Deaths
from orchestratord.services.fitness import known_digest, replaced
from orchestratord.services.members import Connect, Down, Member, ReplicaSpec, Trial, Vet, at_hand, patiently, prove

T = TypeVar("T")

POLL_S = 2.0
LOADING_POLL_S = 0.1
PROBE_LIMIT_S = 60.0
HEALTH_LIMIT_S = 2.0
LATE_S = 0.05  # a timer that goes off so long after it was due says that we were kept from the loop, not the engine
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
STOP_GRACE_S = 5.0
SILENT = f"it did not answer its health check within {HEALTH_LIMIT_S:g} s"
UNPROVEN = f"it did not decode and let go of a job within {PROBE_LIMIT_S:g} s"
SLOTS_MAX, CTX_MAX, VERSION_CHARS = 4096, 2**31 - 1, 128  # of one replica


class Replicas:
    def __init__(
        self,
        core: Core,
        clock: Clock,
        telemetry: Telemetry,
        host: ReplicaHost,
        connect: Connect,
        jitter: Callable[[float], float],
        vet: Vet,
        files: ModelFiles,
    ) -> None:
        self._core = core
        self._clock = clock
        self._telemetry = telemetry
        self._host = host
        self._connect = connect
        self._jitter = jitter
        self._vet = vet
        self._files = files
        self._deaths = Deaths(core, clock, telemetry)
        self._members: dict[Replica, Member] = {}

    # -- what the rest of the services needs -------------------------------------------------------------
    def engine_of(self, lease: Lease) -> Engine | None:
        if lease.replica.incarnation != lease.incarnation:
            return None
        member = self._members.get(lease.replica)
        return member.engine if member is not None else None

    def any_engine(self, pool: Pool) -> Engine | None:
        """An engine of the pool that can be asked about prompts."""
        return next((self._members[r].engine for r in pool.ready_replicas if r in self._members), None)

    def serving(self) -> list[tuple[ReplicaSpec, Replica, Engine]]:
        """Every ready replica with its engine."""
        members = [m for m in self._members.values() if m.replica.state == "ready"]
        return [(m.spec, m.replica, m.engine) for m in members if m.engine is not None]

    def suspect(self, lease: Lease, why: str) -> None:
        """A run saw this replica misbehave: look at it now instead of at the next poll."""
        member = self._members.get(lease.replica)
        if member is not None:
            member.nudge.set()

    def specs(self, pool: Pool) -> list[ReplicaSpec]:
        """Of the replicas that serve the pool."""
        return [self._members[r].spec for r in pool.replicas.values()]

    def all_specs(self) -> list[ReplicaSpec]:
        """Of every replica, also of those that a reload brings up or retires."""
        return [member.spec for member in self._members.values()]

    def pids(self, pool: Pool) -> dict[str, int]:
        """Of the engines that run for the pool as children of ours, by replica."""
        found = {r.id: self._members[r].process for r in pool.replicas.values() if r in self._members}
        return {replica_id: process.pid for replica_id, process in found.items() if process is not None}

    def all_pids(self) -> list[int]:
        """Of every engine that runs as a child of ours."""
        return [member.process.pid for member in self._members.values() if member.process is not None]

    # -- supervision -------------------------------------------------------------------------------------
    def register(self, specs: Iterable[ReplicaSpec]) -> None:
        """Know these replicas; nothing is started yet."""
        for spec in specs:
            replica = Replica(spec.id, "process" if spec.process else "external", spec.device_mask)
            self._core.add_replica(spec.pool_id, replica)
            self._members[replica] = Member(spec, replica, asyncio.Event())

    def supervise(self, pool: Pool) -> None:
        """Bring up every replica of the pool, and bring it back whenever it falls."""
        for replica in pool.replicas.values():
            self._join(self._members[replica].spec, replica)

    async def load(self, pool: Pool) -> None:
        """The same; returns when each has come up or failed to, the first time. Raises Down when none has come up.

        What failed is tried again until it is `stood_down`, too.
        """
        first = [self.bring_back(self._members[r].spec, r) for r in pool.replicas.values()]
        outcomes = await asyncio.gather(*first, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(failures) == len(outcomes):
            raise failures[0] if failures else Down("it has no replicas")

    async def try_out(self, spec: ReplicaSpec, probing: Callable[[], object]) -> Replica:
        """Bring up a replica that serves nobody yet; returns once it is proven. Raises Down, and then it is gone."""
        replica = Replica(spec.id, "process" if spec.process else "external", spec.device_mask)
        self._core.pools[spec.pool_id].shadows.append(replica)
        try:
            await self._first_life(spec, replica, probing)
        except BaseException:
            await self.retire(spec.pool_id, replica)
            raise
        return replica

    async def bring_back(self, spec: ReplicaSpec, replica: Replica) -> None:
        """Supervise a replica again that was `stood_down`; returns once it is proven. Raises Down, and goes on."""
        await self._first_life(spec, replica, lambda: None)

    async def _first_life(self, spec: ReplicaSpec, replica: Replica, probing: Callable[[], object]) -> None:
        trial = Trial(asyncio.get_running_loop().create_future(), probing)
        self._join(spec, replica, trial)
        await asyncio.shield(trial.up)

    def adopt(self, replica: Replica) -> None:
        """It serves now, so it is brought back when it falls; also if it just has."""
        member = self._members[replica]
        if member.supervisor is None or member.supervisor.done():
            self._join(member.spec, replica)

    def _join(self, spec: ReplicaSpec, replica: Replica, trial: Trial | None = None) -> None:
        member = self._members[replica] = Member(spec, replica, asyncio.Event())
        name = f"replica-{spec.pool_id}-{spec.id}"
        member.supervisor = asyncio.get_running_loop().create_task(self._supervise(member, trial), name=name)

    def revive(self, pool: Pool) -> None:
        """An operator wants replicas that were restarted too often to be tried again."""
        for replica in pool.replicas.values():
            if replica in self._members:
                self._members[replica].revived.set()

    async def stand_down(self, replica: Replica) -> None:
        """Stop its engine; the replica stays where it is."""
        member = self._members[replica]
        if member.supervisor is not None:
            member.supervisor.cancel()
            await asyncio.gather(member.supervisor, return_exceptions=True)
        if member.leaving is not None:
            await asyncio.shield(member.leaving)

    async def retire(self, pool_id: str, replica: Replica) -> None:
        """Stop its engine and forget it. Idempotent."""
        if replica in self._members:
            await self.stand_down(replica)
            del self._members[replica]
        replica.state = "dead"
        pool = self._core.pools[pool_id]
        pool.shadows = [shadow for shadow in pool.shadows if shadow is not replica]

    async def stop(self) -> None:
        """Stop every engine we started and let go of the others."""
        supervisors = [m.supervisor for m in self._members.values() if m.supervisor is not None]
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        leaving = [m.leaving for m in self._members.values() if m.leaving is not None]
        await asyncio.gather(*leaving, return_exceptions=True)

    async def _supervise(self, member: Member, trial: Trial | None) -> None:
        spec, replica = member.spec, member.replica
        backoff = BACKOFF_S
        while True:
            was_ready = started = False
            try:
                if spec.process is not None:
                    pins = self._core.pools[spec.pool_id].spec.pins
                    spec = member.spec = await at_hand(spec, self._files, pins.model_digest)
                    assert spec.process is not None
                    member.digest = await self._vet(self._core.pools[spec.pool_id], spec)
                    started = True
                    member.process = await self._host.start(spec.process)
                url = member.process.url if member.process is not None else spec.url
                assert url is not None
                member.engine = self._connect(spec, url)
                await self._come_up(member, trial)
                was_ready, backoff = True, BACKOFF_S
                if trial is not None:
                    trial.passed()
                    trial = None
                await self._watch(member)
            except Exception as error:  # whatever it was, the replica is down and will be tried again
                fallen = await self._deaths.fell(member, error, was_ready=was_ready)
                if trial is not None:
                    trial.failed(fallen)
                    trial = None
            finally:
                await self._let_go(member)
            if self._core.pools[spec.pool_id].replicas.get(spec.id) is not replica:
                return  # on trial, or retiring: nobody waits for it to come back
            if started and not member.restarts.allows(self._clock.now()):
                self._deaths.given_up(member)
                member.revived.clear()
                await member.revived.wait()
                member.restarts.clear()
                backoff = BACKOFF_S
            await self._pause(member, self._jitter(backoff))
            backoff = min(backoff * 2, BACKOFF_MAX_S)
            if started:
                self._telemetry.count("orchestratord_replica_restarts_total", pool_id=spec.pool_id)

    async def _let_go(self, member: Member) -> None:
        """Stop what runs for it, whole: being cancelled twice must not leave an engine behind."""
        member.leaving = asyncio.ensure_future(self._stop_engine(member.engine, member.process))
        member.engine = member.process = None
        await asyncio.shield(member.leaving)

    @staticmethod
    async def _stop_engine(engine: Engine | None, process: ReplicaProcess | None) -> None:
        if engine is not None:
            await engine.close()
        if process is not None:
            await process.stop(STOP_GRACE_S)

    async def _come_up(self, member: Member, trial: Trial | None) -> None:
        spec, engine = member.spec, member.engine
        assert engine is not None
        await self._until_loaded(member, engine)
        mute = f"it did not say within {PROBE_LIMIT_S:g} s what it serves"
        props = await self._within(PROBE_LIMIT_S, patiently(engine.props), mute)
        digest = known_digest(self._core.pools[spec.pool_id].spec.pins, member, props)
        if trial is not None:
            trial.probing()
        results = await self._within(PROBE_LIMIT_S, prove(engine, props, self._clock), UNPROVEN)
        self._core.replica_gave(member.replica, results)
        self._core.replica_ready(spec.pool_id, member.replica, **_facts(props), model_digest=digest)
        self._telemetry.event(
            "replica_ready",
            f"{spec.pool_id}/{spec.id} decodes and cancels; {props.slots} slots of {props.ctx} tokens",
            pool_id=spec.pool_id,
            replica_id=spec.id,
            engine_version=props.engine_version,
        )
        self._telemetry.count("orchestratord_preloads_total", pool_id=spec.pool_id, outcome="ready")

    async def _within(self, seconds: float, answer: Awaitable[T], otherwise: str) -> T:
        """What it answers. Raises Down(`otherwise`) when that takes longer."""
        try:
            async with self._clock.limit(seconds):
                return await answer
        except TimeoutError:
            raise Down(otherwise) from None

    async def _until_loaded(self, member: Member, engine: Engine) -> None:
        """Poll until the model is loaded. A child may take its time; a URL that nothing listens on is dead."""
        process = member.process
        while True:
            if process is not None:
                self._check_alive(process)
            try:
                reason = await engine.ready()
            except EngineError as error:
                if process is None:
                    raise
                reason = "starting" if error.kind == "lost" else error.message
            if reason is None:
                return
            self._core.replica_loading(member.spec.pool_id, member.replica, reason)
            await self._clock.sleep(LOADING_POLL_S)

    async def _watch(self, member: Member) -> None:
        """Poll health until it fails. Raises Down or EngineError."""
        engine, process = member.engine, member.process
        assert engine is not None
        while True:
            await self._pause(member, self._poll_s(member.replica))
            if process is not None:
                self._check_alive(process)
            if await self._answers(member, engine):
                await self._release_quarantined(member.replica, engine)
                await self._close_breaker(member.replica, engine)

    async def _answers(self, member: Member, engine: Engine) -> bool:
        """Whether it says in time that it is well. Late will do while its tasks get tokens: no dead engine makes them,
        and it may be we who are slow. If our own timer shows that we were, it is asked once more. Raises Down
        or EngineError."""
        begun = [(lease.task, lease.task.token_frames) for lease in member.replica.leases.values()]
        due = self._clock.now() + HEALTH_LIMIT_S
        reason = await self._ask(member, engine)
        if reason is SILENT:
            if any(task.token_frames > before for task, before in begun):
                return False
            if self._clock.now() >= due + LATE_S:
                reason = await self._ask(member, engine)
        if reason is not None:
            raise Down(reason)
        return True

    async def _ask(self, member: Member, engine: Engine) -> str | None:
        """Why it is not well; SILENT when it does not say in time. Raises EngineError."""
        try:
            async with self._clock.limit(HEALTH_LIMIT_S):
                reason = await engine.ready()
                return reason or await replaced(self._core.pools[member.spec.pool_id].spec.pins, member, engine)
        except TimeoutError:
            return SILENT

    def _poll_s(self, replica: Replica) -> float:
        """Until the next look: the poll, or sooner when a probe is due."""
        due = replica.breaker.open_until
        return POLL_S if due is None else max(0.0, min(POLL_S, due - self._clock.now()))

    async def _close_breaker(self, replica: Replica, engine: Engine) -> None:
        """Probe a replica that failed task after task, when its pause is over. A probe that fails brings it down."""
        if replica.breaker.due(self._clock.now()):
            await self._within(PROBE_LIMIT_S, self._probe(engine), UNPROVEN)
            self._core.replica_probed(replica)

    async def _probe(self, engine: Engine) -> None:
        await prove(engine, await engine.props(), self._clock)

    async def _release_quarantined(self, replica: Replica, engine: Engine) -> None:
        quarantined = [lease for lease in replica.leases.values() if lease.quarantined]
        if quarantined:
            busy = await engine.busy() or frozenset()
            for lease in quarantined:
                if lease.let_go(busy):
                    self._core.release(lease)

    async def _pause(self, member: Member, seconds: float) -> None:
        """Wait, but not longer than until a run reports trouble or the child exits."""
        nudge, process = member.nudge, member.process
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


def _facts(props: EngineProps) -> dict[str, Any]:
    """What an engine says of itself, within what answers may show."""
    return {
        "slots": min(props.slots, SLOTS_MAX),
        "ctx": min(props.ctx, CTX_MAX),
        "engine_version": props.engine_version[:VERSION_CHARS] or "unknown",
        "model_id": props.model_id,
        "workloads": props.workloads,
        "chat_template": props.chat_template,
        "features": props.features,
        "quant": props.quant,
        "exact_alone": props.exact_alone,
        "exact_warm": props.exact_warm,
        "kv": props.kv,
        "kv_tokens": props.kv_tokens,
    }
