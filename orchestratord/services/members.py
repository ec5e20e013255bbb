"""What there is to know of a replica and of what runs for it; and the proof that an engine works."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from orchestratord.domain.modelref import is_reference
from orchestratord.domain.operation import Model
from orchestratord.domain.pool import Pool, Replica
from orchestratord.domain.request import Sampling, Workload
from orchestratord.ports import (
    Chunk,
    Clock,
    Deliver,
    Engine,
    EngineError,
    EngineProps,
    Job,
    ModelFiles,
    ProcessSpec,
    ReplicaProcess,
)

T = TypeVar("T")


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
    vram_bytes: int | None = None  # the same of its devices, together
    model: Model | None = None  # put in place of the configured one
    restarts: tuple[int, float] = (20, 600.0)  # so many within so many seconds, then it stays down

    @property
    def model_is_foreign(self) -> bool:
        """Whoever runs the engine decides what it serves."""
        return self.process is None and not (self.url or "").startswith("mock:")

    @property
    def here(self) -> bool:
        """Whether it computes on this machine."""
        return not self.model_is_foreign or urlsplit(self.url or "").hostname in ("localhost", "127.0.0.1", "::1")

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


async def at_hand(spec: ReplicaSpec, files: ModelFiles, digest: str | None) -> ReplicaSpec:
    """The same replica with its model on this machine, where so far only a reference stood; fetched if need be.

    `digest` is what it must have. Raises ModelUnavailable.
    """
    process = spec.process
    if process is None or not is_reference(process.model_path):
        return spec
    path = await files.resolve(process.model_path, digest)
    found = await files.verify(path)
    return replace(spec, process=replace(process, model_path=path), model_digest=found or spec.model_digest)


class Down(Exception):
    """The replica stopped being ready, or did not become it; with the engine's last lines, if it was a child."""

    def __init__(self, reason: str, tail: tuple[str, ...] = (), code: str = "POOL_UNAVAILABLE") -> None:
        self.tail = tail
        self.code = code
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


class Restarts:
    """How often a replica was restarted lately: `limit` times within `window_s`, and no more."""

    def __init__(self, limit: int, window_s: float) -> None:
        self.limit, self.window_s = limit, window_s
        self._times: deque[float] = deque(maxlen=limit)

    def allows(self, now: float) -> bool:
        """Whether it may be restarted once more now; if so, that counts."""
        if len(self._times) == self.limit and now - self._times[0] < self.window_s:
            return False
        self._times.append(now)
        return True

    def clear(self) -> None:
        self._times.clear()


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
    restarts: Restarts = field(init=False)
    revived: asyncio.Event = field(default_factory=asyncio.Event)  # of one that was restarted too often

    def __post_init__(self) -> None:
        self.restarts = Restarts(*self.spec.restarts)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The engine's answer, asked for again after a timeout: a model that was just loaded may be slow at first.

    The caller sets the limit.
    """
    while True:
        try:
            return await ask()
        except EngineError as error:
            if error.kind != "timeout":
                raise


async def prove(engine: Engine, props: EngineProps, clock: Clock) -> dict[Workload, dict[str, Any]]:
    """A minimal decode, then a longer one that is cancelled: both must work before anyone depends on them.

    Of an engine that completes nothing, one result of each workload it has, which is returned.
    """
    if "completion" not in props.workloads:
        return {workload: await _one_result(engine, workload) for workload in sorted(props.workloads)}
    greedy = Sampling(temperature=0.0) if "temperature" in props.features else Sampling()
    job = Job("completion", max_tokens=4, seed=1, prompt="ping", sampling=greedy, keep_cache=False)
    made = 0

    def few(chunk: Chunk) -> bool:
        nonlocal made
        made = max(made, chunk.tokens_out)
        return made <= job.max_tokens

    await engine.run(job, Deliver(few))
    if made > job.max_tokens:
        raise Down("it makes more tokens than it is asked for")
    before = await _at_work(engine)  # somebody else may be using an engine we only attach
    long = Job("completion", max_tokens=props.ctx // 2, seed=1, prompt="ping", keep_cache=False)
    await engine.run(long, Deliver(lambda chunk: False))
    pause = 0.01
    while await _at_work(engine) > before:
        await clock.sleep(pause)
        pause = min(pause * 2, 1.0)
    return {}


async def _one_result(engine: Engine, workload: Workload) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    prompt = "ping" if workload == "rerank" else ""
    job = Job(workload, max_tokens=1, seed=1, prompt=prompt, inputs=("ping",))

    def keep(chunk: Chunk) -> bool:
        results.extend(chunk.results)
        return True

    await engine.run(job, Deliver(keep))
    if len(results) != 1:
        raise EngineError("protocol", f"the probe's {workload} gave {len(results)} results for one input")
    return results[0]


async def _at_work(engine: Engine) -> int:
    """How many slots the engine works on."""
    busy = await patiently(engine.busy)
    return len(busy or ())
