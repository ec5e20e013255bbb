"""One simulated world: a daemon that dies and comes back, its engines and disk, and what its clients were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, TypeVar

from orchestratord.app import Daemon
from orchestratord.config import Settings
from orchestratord.domain.pool import Lease
from orchestratord.domain.task import Task
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.infra.journal.memory import MemoryStore
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.testing.checker import RunRecord, TaskRecord, check
from orchestratord.testing.live import mock_pool, mock_settings
from orchestratord.wire import canonical
from orchestratord.wire.tasks import status_body
from tests.invariants import Broken, Counts, Watch, i17_counters, i26_rest
from tests.sim.faults import BAD_MODELS, FaultyJournal
from tests.sim.loop import SimLoop, Time

T = TypeVar("T")
REST_S = 900.0  # within this after the last fault everything has ended (I26)
TEMPTING = 0.04
MODELS = ("file:next.gguf", "file:other.gguf")  # never the one it began with: each reload has engines of its own


class Down(Exception):
    """The daemon went away before it answered."""


@dataclass
class Promise:
    """What a client was promised of one task."""

    record: TaskRecord
    fingerprint: bytes
    acked: bool = False
    seal: int | None = None  # what a 204 to a cancel named


@dataclass
class World:
    """Everything a seed decides. `sabotage` breaks each new daemon on purpose, to see who notices."""

    draw: Random
    loop: SimLoop
    time: Time
    sabotage: Any = None
    store: MemoryStore = field(default_factory=MemoryStore)
    artifacts: MemoryArtifacts = field(default_factory=MemoryArtifacts)
    promises: dict[str, Promise] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)  # their end was lost in an outage that a crash followed
    gapped: set[str] = field(default_factory=set)  # an outage left frames of theirs out of the journal
    drained: dict[str, bool] = field(default_factory=dict)  # pools, as last acknowledged
    daemon: Daemon | None = None
    watch: Watch | None = None
    misled: list[tuple[str, int]] = field(default_factory=list)
    known: list[MockEngine] = field(default_factory=list)  # of this life, also those that were replaced
    lives: int = 0
    looks: int = 0
    healed: bool = False
    crashes: bool = True

    def __post_init__(self) -> None:
        self.ours: set[asyncio.Task[Any]] = set()
        self.requests: set[asyncio.Task[Any]] = set()
        self.settings = self._settings()
        self.loop.after = self._after

    def _settings(self) -> Settings:
        draw = self.draw
        policy = draw.choice(["reject", "drop-lru", "shed-low-priority"])
        queue = {"full_policy": policy, "batch_age_ms": draw.choice([0, 0, 500])}
        if draw.random() < 0.3:
            queue["batch_capacity"] = 2
        watchdogs = {"first_token_ms": 5000, "idle_ms": 5000}
        shape = {"aliases": ["m"], "watchdogs": watchdogs}
        pools = [
            mock_pool("home", slots=draw.randint(1, 2), replicas=draw.randint(1, 2), **shape),
            mock_pool("away", slots=1, **shape),
        ]
        for pool in pools:
            pool["queue"] = {**queue, "capacity": draw.randint(2, 6)}
            for replica in pool["replicas"]:
                replica["mock"] |= {"token_ms": draw.choice([0, 3, 20, 60]), "prefill_ms": draw.choice([0, 10])}
                replica["memory_bytes"] = 10
        sessions: dict[str, Any] = {"turns_max": draw.choice([3, 1000])}
        if draw.random() < 0.4:
            sessions["budgets"] = {"tokens": draw.choice([60, 400])}
        return mock_settings(
            pools=pools[: draw.randint(1, 2)],
            journal={"kind": "sqlite"},  # what it remembers outlives the process
            models={"roots": ["/srv"], "memory_bytes": draw.choice([100, 30]), "load_ms": 20_000, "drain_ms": 2_000},
            sessions=sessions,
            retention={"transcripts_bytes": 0, "sweep_ms": 100},  # whatever may be dropped is dropped at once
        )

    @property
    def up(self) -> Daemon | None:
        """The daemon, while it serves."""
        return self.daemon if self.watch is not None else None

    # -- lives of the daemon ---------------------------------------------------------------------------------
    def tempt_fate(self) -> None:
        """Just told something: now and then the daemon is killed at this very moment."""
        if self.crashes and self.watch is not None and not self.healed and self.draw.random() < TEMPTING:
            self.crash()
            self.spawn(self._come_back())

    async def _come_back(self) -> None:
        await self.sleep(self.draw.random())
        await self.boot()

    async def boot(self) -> None:
        """Start a daemon unless one is up or on its way."""
        if self.daemon is not None:
            return
        clock = self.time.fresh()
        delay = self.draw.choice([0.0, 0.0, 0.005, 0.1])
        self.journal = FaultyJournal(
            lambda source: self.daemon._archive(source) if self.daemon else None,  # type: ignore[union-attr]
            self.store,
            clock,
            lambda: self.draw.random() * delay,
        )
        self.journal.note = self.loop.note
        self.journal.gapped = self.gapped
        daemon = Daemon(
            self.settings,
            clock=clock,
            journal=self.journal,
            store=self.artifacts,
            log=lambda _: None,
            draw_seed=lambda: self.draw.getrandbits(31),
        )
        daemon.replicas._connect = lambda spec, url: self._observed(daemon, daemon.engines.connect(spec, url))
        self.lives += 1
        self.known = []
        self.daemon = daemon
        if self.sabotage is not None:
            self.sabotage(daemon)
        await self.call(daemon.start())
        self._check_promises()
        self.watch = Watch(daemon.core, text=self._text, gapped=self.gapped)
        daemon.core.admit = self.watch.refused_for_nothing(daemon.core.admit)  # type: ignore[method-assign]

    def _observed(self, daemon: Daemon, engine: Any) -> Any:
        """Note jobs of tasks (not probes: they may try) that an engine has no slot for."""
        self.known.append(engine)
        admit = engine.__class__._admit

        def noting(job: Any, script: Any) -> None:
            if job.slot in engine._slots and job.slot is not None and daemon is self.daemon:
                self.misled.append((engine.url, job.slot))
            admit(engine, job, script)

        engine._admit = noting
        return engine

    def _text(self, task: Task, count: int) -> list[str] | None:
        assert self.daemon is not None
        pool = self.daemon.core.pools[task.pool_id]
        replica = next((r for r in pool.replicas.values() if r.features), None)
        if replica is None:
            return None  # none has been up yet: what knobs it has is not known
        lease = Lease(0, task, pool, replica, 0, 0)
        job = self.daemon.runs._job(lease, task.request)
        return list(islice(mock_text.outputs(job), count))

    def _after(self) -> None:
        if self.watch is not None and self.daemon is not None:
            self.watch.look()

    def crash(self) -> None:
        """kill -9: nothing of it runs on, and what was not durable is gone."""
        assert self.daemon is not None
        self._count_down()
        self.journal.dead = True
        self._gone()

    def _gone(self) -> None:
        assert self.daemon is not None
        self.doubtful |= self.journal.lost
        self.daemon.dispatch.stop()
        self.daemon = self.watch = None
        for task in asyncio.all_tasks() - self.ours:
            task.cancel()
        self.time.fresh()

    async def shut_down(self) -> None:
        """SIGTERM: let what runs finish, then stop."""
        daemon = self.daemon
        assert daemon is not None
        await self.call(daemon.drain(2.0))
        await self.call(daemon.stop())
        if self.daemon is daemon:
            self._count_down()
            self._gone()

    def _count_down(self) -> None:
        assert self.watch is not None
        self.watch.look()
        self.watch.check_settled()
        self.looks += self.watch.looks
        if self.misled:
            raise Broken(f"i4_slots: engines got jobs for slots that were busy: {self.misled}")

    def _check_promises(self) -> None:
        """I7: what was acknowledged before the last end of the process is still so."""
        assert self.daemon is not None
        core = self.daemon.core
        for task_id, promise in self.promises.items():
            task = core.tasks.get(task_id)
            if promise.acked and task is None:
                raise Broken(f"i7_durability: task {task_id} was accepted, and is forgotten")
            begun = any(seen.event == "token" for reader in promise.record.readers for seen in reader.events)
            if begun and task is not None and not task.terminal and task_id not in self.doubtful:
                raise Broken(f"i8_attempts: output of {task_id} was seen, and it is to run again")
            ends = task.log.terminal_id if task is not None and task_id not in self.doubtful else promise.seal
            if promise.seal is not None and ends != promise.seal:
                raise Broken(f"i7_durability: {task_id} was cancelled at {promise.seal}, now at {ends}")
        for pool_id, draining in self.drained.items():
            if core.pools[pool_id].draining is not draining:
                raise Broken(f"i7_durability: pool {pool_id} was acknowledged as draining={draining}")

    # -- for clients -----------------------------------------------------------------------------------------
    def spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Somebody who is not part of the daemon."""
        task = asyncio.get_running_loop().create_task(coro)
        self.ours.add(task)
        return task

    async def call(self, request: Coroutine[Any, Any, T]) -> T:
        """A request to the daemon. Raises Down when the daemon dies over it."""
        if self.daemon is None:
            request.close()
            raise Down
        inner = asyncio.get_running_loop().create_task(request)
        try:
            await asyncio.wait({inner})
        finally:
            inner.cancel()
        if inner.cancelled():
            raise Down
        return inner.result()

    async def sleep(self, seconds: float) -> None:
        await self.time.clients.sleep(seconds)

    def engines(self) -> list[MockEngine]:
        assert self.daemon is not None
        return list(dict.fromkeys([*self.known, *self.daemon.mocks.values()]))

    def new_model(self, bad: bool) -> str:
        """The next model, and what its engines will be like."""
        assert self.daemon is not None
        ref = self.draw.choice(MODELS)
        for replica in self.settings.pools[0].replicas:
            engine = MockEngine(clock=self.daemon.clock, model_id="next", slots=1, token_ms=5)
            if bad:
                engine.play(self.draw.choice(BAD_MODELS))
            self.daemon.mocks[self.settings.pools[0].id, f"{replica.id}@{ref}"] = engine
        return ref

    # -- the end ---------------------------------------------------------------------------------------------
    async def rest(self) -> None:
        """Faults stop, engines are healthy: everything comes to its end (I26), and then it is judged."""
        self.healed = True
        while self.up is None:
            await self.boot()
            await self.sleep(0.1)
        daemon = self.up
        self.journal.broken = None
        for pool in daemon.core.pools.values():
            if pool.draining and (pool.operation is None or pool.operation.over):
                await self.call(daemon.operations.resume(pool.id))
        ends = self.time.clients.now() + REST_S
        while (
            list(i26_rest(daemon.core)) or daemon.recorder.owed or len(daemon.artifacts.outbox)
        ) and self.time.clients.now() < ends:
            for engine in self.engines():
                engine.clear()
                engine.down = False
                engine.release()
            await self.sleep(5)
            for pool in daemon.core.pools.values():
                if pool.draining and pool.operation is not None and pool.operation.over:
                    await self.call(daemon.operations.resume(pool.id))
        self._judge(daemon)

    def _judge(self, daemon: Daemon) -> None:
        self._count_down()
        found = [f"i26_rest: {what}" for what in i26_rest(daemon.core)]
        if daemon.dispatch.running or daemon.streams.open_cursors:
            found.append(f"i26_rest: {daemon.dispatch.running} runs, {daemon.streams.open_cursors} cursors are left")
        if daemon.recorder.owed:
            found.append(f"i7_durability: {daemon.recorder.owed} facts were never journaled")
        found += [f"i17_counters: {what}" for what in i17_counters(daemon.core, counts(daemon))]
        for artifact in self.artifacts._whole.values():
            if canonical.id_of(artifact) != artifact.id:
                found.append(f"i18_artifacts: {artifact.id} is the id of something else")
        records = []
        for task_id, promise in self.promises.items():
            task = daemon.core.tasks.get(task_id)
            if not promise.acked or task_id in self.doubtful | self.gapped:
                continue
            record = promise.record
            record.final = status_body(task, None) if task is not None else None
            if task is not None and task.transcript_id in self.artifacts._whole:
                record.transcript = self.artifacts._whole[task.transcript_id].opened().content["text"]
            elif task is not None and task.transcript_id is not None:
                found.append(f"i18_artifacts: the transcript of {task_id} is nowhere")
            records.append(record)
        found += [f"i9_i13_history: {finding}" for finding in check(RunRecord(tasks=records))]
        found += [f"unhandled: {what}" for what in self.loop.unhandled]
        if found:
            raise Broken("; ".join(found[:5]))


def counts(daemon: Daemon) -> Counts:
    def total(name: str, **wanted: str) -> int:
        samples = [s for metric in daemon.metrics.families[name].collect() for s in metric.samples]
        return int(sum(s.value for s in samples if s.name == name and wanted.items() <= s.labels.items()))

    ended = "orchestratord_tasks_ended_total"
    return Counts(
        total("tasks_enqueued_total"),
        total("tasks_started_total"),
        total(ended, phase="queued"),
        total(ended, phase="running"),
    )


def reseed(seed: int) -> None:
    """What draws from the process-wide generator (the jitter of retries) is drawn from the seed, too."""
    random.seed(seed)
