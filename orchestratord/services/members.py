"""What there is to know of a replica and of what runs for it; and the proof that an engine works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from orchestratord.domain.operation import Model
from orchestratord.domain.pool import Pool, Replica
from orchestratord.domain.request import Sampling
from orchestratord.ports import Clock, Engine, EngineError, EngineProps, Job, ProcessSpec, ReplicaProcess


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Where one replica is, or how to start it. Exactly one of `url` and `process` is set."""

    id: str
    pool_id: str
    url: str | None = None
    process: ProcessSpec | None = None
    device_mask: str | None = None
    model_digest: str | None = None
    memory_bytes: int | None = None  # what it takes, as declared
    model: Model | None = None  # put in place of the configured one

    @property
    def model_is_foreign(self) -> bool:
        """Whoever runs the engine decides what it serves."""
        return self.process is None and not (self.url or "").startswith("mock:")

    def serving(self, model: Model | None) -> ReplicaSpec:
        """The same replica with another model."""
        if model is None:
            return self
        process = self.process
        if process is not None and model.path is not None:
            process = replace(process, model_path=model.path)
        return replace(self, process=process, model=model, model_digest=model.digest)


Connect = Callable[[ReplicaSpec, str], Engine]  # (spec, url) -> engine client
Vet = Callable[[Pool, ReplicaSpec], Awaitable[str | None]]  # the digest of its model, if it had to have one; or raises


class Down(Exception):
    """The replica stopped being ready, or did not become it; with the engine's last lines, if it was a child."""

    def __init__(self, reason: str, tail: tuple[str, ...] = ()) -> None:
        self.tail = tail
        super().__init__(reason)


@dataclass(slots=True)
class Trial:
    """The first life of a replica, as whoever waits for its outcome sees it."""

    up: asyncio.Future[None]
    probing: Callable[[], object]

    def passed(self) -> None:
        if not self.up.done():
            self.up.set_result(None)

    def failed(self, why: Down) -> None:
        if not self.up.done():
            self.up.set_exception(why)
            self.up.exception()  # somebody may have stopped waiting


@dataclass(slots=True)
class Member:
    """A replica and what runs for it."""

    spec: ReplicaSpec
    replica: Replica
    nudge: asyncio.Event
    engine: Engine | None = None
    process: ReplicaProcess | None = None
    digest: str | None = None  # of its model, where one had to be checked
    supervisor: asyncio.Task[None] | None = None
    leaving: asyncio.Future[None] | None = None  # the last stop of its engine


async def prove(engine: Engine, props: EngineProps, clock: Clock) -> None:
    """A minimal decode, then a longer one that is cancelled: both must work before anyone depends on them."""
    if "completion" not in props.workloads:
        return
    job = Job("completion", max_tokens=4, seed=1, prompt="ping", sampling=Sampling(temperature=0.0), keep_cache=False)
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
        await clock.sleep(pause)
        pause = min(pause * 2, 1.0)
