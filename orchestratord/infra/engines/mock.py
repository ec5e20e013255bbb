"""An engine without a model: the same port, in this process, without sockets. For tests, demos and measurements.

What it writes is decided by prompt, seed and sampling alone. Time passes for it only through the Clock. It fails on
demand (`MockScript`), can be stepped token by token (`hold`, `step`, `release_hold`) and keeps the books a test asks
about. Its control methods are plain synchronous code; from another thread call them with `loop.call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import math
import types
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Workload
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.mock_script import Gate, MockScript
from orchestratord.ports import Chunk, Clock, Deliver, EngineError, EngineProps, Job, JobEnd

__all__ = ["MockEngine", "MockScript"]

# The knobs it takes: they change what it writes, and `stop` ends it.
KNOBS = (
    "frequency_penalty",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "stop",
    "temperature",
    "top_k",
    "top_p",
)


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """Let everything else that is ready run once."""
    yield


@dataclass(slots=True, eq=False)
class _Run:
    """One job at work."""

    job: Job
    script: MockScript
    done: int = 0  # outputs made
    pending: list[Any] = field(default_factory=list)  # of them, those not handed over yet
    ended: bool = False

    def take(self, output: Any) -> None:
        self.done += 1
        self.pending.append(output)

    def chunk(self, end: JobEnd | None = None) -> Chunk:
        given, self.pending = self.pending, []
        if self.job.workload == "completion":
            return Chunk(texts=[text for text in given if text], tokens_out=self.done, end=end)
        return Chunk(results=given, end=end)


class MockEngine:
    """See `ports.Engine`. `engine` is the protocol family it stands in for.

    token_ms, prefill_ms: what one output and a prompt take; 0 = as fast as the event loop turns. load_ms: what its
    model takes to load after each `start`. burst: outputs per chunk. Counters: `calls` (jobs asked for), `aborted`
    (left before their end), `busy_slots`, `peak` (most busy at once), `overcommitted` (jobs that came while every slot
    was busy: a caller's bug).
    """

    driver = "mock"
    taskless = True

    def __init__(
        self,
        url: str = "mock:",
        *,
        clock: Clock,
        api_key: str | None = None,
        engine: str = "llamacpp",
        model_id: str = "mock-model",
        slots: int = 4,
        ctx: int = 4096,
        token_ms: float = 0,
        prefill_ms: float = 0,
        load_ms: float = 0,
        burst: int = 1,
        workloads: frozenset[Workload] = frozenset({"completion", "embedding", "rerank"}),
        chat_template: bool = True,
    ) -> None:
        self.engine = engine
        self.url = url
        self.token_ms = token_ms
        self.prefill_ms = prefill_ms
        self.load_ms = load_ms
        self.burst = burst
        self.loading: str | None = None  # why it is not ready yet
        self.down = False  # nothing listens
        self.calls = self.aborted = self.busy_slots = self.peak = self.overcommitted = 0
        self._clock = clock
        self._loaded_at = -math.inf
        self._props = EngineProps(
            engine_version="mock-1",
            model_id=model_id,
            ctx=ctx,
            slots=slots,
            workloads=workloads,
            chat_template=chat_template,
            quant="mock",
            exact_alone=True,
            exact_warm=True,
            features=(*KNOBS, "prefix_cache"),
        )
        self._scripts: deque[MockScript] = deque()
        self._gate = Gate()
        self._runs: set[_Run] = set()
        self._slots: set[int] = set()  # that are worked on
        self._stuck: set[int] = set()  # of them, those whose job was left

    # -- control --------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Load the model: it takes `load_ms` from now on."""
        self._loaded_at = self._clock.now() + self.load_ms / 1000

    def play(self, *scripts: MockScript) -> None:
        """Queue faults: each script applies to its number of jobs, then the next one does."""
        self._scripts.extend(scripts)

    def clear(self) -> None:
        """Forget every queued script."""
        self._scripts.clear()

    def change(self, **props: Any) -> None:
        """Become another engine: fields of EngineProps."""
        self._props = replace(self._props, **props)

    def hold(self) -> None:
        """From now on no output leaves without a `step`."""
        self._gate.close()

    def step(self, outputs: int = 1) -> None:
        """Let that many outputs leave, of whichever jobs wait first."""
        self._gate.permit(outputs)

    def release_hold(self) -> None:
        """Let all outputs leave again."""
        self._gate.permit(math.inf)

    def release(self) -> None:
        """Free the slots of jobs that ignored their abort."""
        self.busy_slots -= len(self._stuck)
        self._slots -= self._stuck
        self._stuck = set()

    @property
    def waiting(self) -> int:
        """Jobs held back by `hold`."""
        return self._gate.waiting

    # -- the port -------------------------------------------------------------------------------------------
    async def ready(self) -> str | None:
        self._reach()
        return "loading model" if self._clock.now() < self._loaded_at else self.loading

    async def props(self) -> EngineProps:
        self._reach()
        if self.loading:
            raise EngineError("full", self.loading)
        return self._props

    async def busy(self) -> frozenset[int] | None:
        self._reach()
        return frozenset(self._slots)

    async def kv_usage(self) -> float | None:
        """See `ports.KvGauge`."""
        self._reach()
        tokens = sum(mock_text.tokens_in(run.job) + run.done for run in self._runs)
        return min(1.0, tokens / (self._props.ctx * self._props.slots))

    def bound(self, text: str) -> int:
        return len(text) + 1

    async def tokenize(self, text: str) -> int:
        self._reach()
        return mock_text.count(text)

    async def render(self, messages: Sequence[Message]) -> str:
        self._reach()
        if not self._props.chat_template:
            raise EngineError("refused", "this model has no chat template")
        return "".join(f"<{message.role}> {message.content}\n" for message in messages) + "<assistant>"

    async def close(self) -> None:
        pass

    async def run(self, job: Job, deliver: Deliver) -> None:
        self.calls += 1
        script = self._next_script()
        await _turn()  # as any engine would, it answers later
        self._admit(job, script)
        slot = next(i for i in range(self._props.slots) if i not in self._slots) if job.slot is None else job.slot
        self._slots.add(slot)
        self.busy_slots += 1
        self.peak = max(self.peak, self.busy_slots)
        run = _Run(job, script)
        self._runs.add(run)
        try:
            await self._work(run, deliver)
        finally:
            self._runs.discard(run)
            self.aborted += not run.ended
            if script.ignore_abort and not run.ended:
                self._stuck.add(slot)
            else:
                self._slots.discard(slot)
                self.busy_slots -= 1

    def _reach(self) -> None:
        if self.down:
            raise EngineError("lost", "nothing accepts connections")

    def _next_script(self) -> MockScript:
        if not self._scripts:
            return MockScript()
        script = self._scripts.popleft()
        if script.jobs > 1:
            self._scripts.appendleft(replace(script, jobs=script.jobs - 1))
        return script

    def _admit(self, job: Job, script: MockScript) -> None:
        """Raises EngineError for a job that will not be worked on."""
        self._reach()
        if self.loading:
            raise EngineError("full", self.loading)
        if script.refuse is not None:
            raise EngineError("refused", script.refuse)
        if job.workload not in self._props.workloads:
            raise EngineError("refused", f"this engine serves no {job.workload}")
        for knob in (knob.name for knob in fields(job.sampling)):
            if getattr(job.sampling, knob) is not None and knob not in self._props.features:
                raise EngineError("refused", f"this engine does not know {knob}")
        pair = f"{job.prompt} " if job.workload == "rerank" else ""
        tokens = max(map(mock_text.count, (job.prompt, *(pair + text for text in job.inputs))))
        if tokens > self._props.ctx:
            raise EngineError("refused", f"{tokens} tokens do not fit into a context of {self._props.ctx}")
        if script.full:
            raise EngineError("full", "no slot available")
        if self.busy_slots >= self._props.slots or job.slot in self._slots:
            self.overcommitted += 1
            raise EngineError("full", "no slot available")

    async def _fail(self, run: _Run) -> None:
        """Raise or hang where the script says so."""
        script, done = run.script, run.done
        run.ended = done in (script.die_after, script.garbage_after, script.error_after)  # by itself: not aborted
        if done == script.die_after:
            raise EngineError("lost", "the connection closed within the reply")
        if done == script.garbage_after:
            raise EngineError("protocol", "a frame that cannot be read")
        if done == script.error_after:
            raise EngineError("failed", "the engine exploded")
        if done == script.hang_after:
            await asyncio.get_running_loop().create_future()

    async def _work(self, run: _Run, deliver: Deliver) -> None:
        """Deliver everything a job produces, `burst` outputs a chunk, then its end."""
        script, completion = run.script, run.job.workload == "completion"
        limit = run.job.max_tokens if completion and not script.endless else math.inf
        reason: FinishReason = "stop"
        await self._clock.sleep(self.prefill_ms / 1000) if self.prefill_ms else await _turn()
        await self._fail(run)
        for output in mock_text.outputs(run.job):
            await self._gate.passage()
            if self.token_ms:
                await self._clock.sleep(self.token_ms / 1000)
            run.take(output)
            if len(run.pending) >= self.burst or run.done in script.breaks:
                await _turn()
                if not deliver(run.chunk()):
                    return
            await self._fail(run)
            if run.done >= limit:
                reason = "length"
                break
        run.ended = True
        deliver(run.chunk(JobEnd(reason, mock_text.tokens_in(run.job), run.done if completion else 0)))
