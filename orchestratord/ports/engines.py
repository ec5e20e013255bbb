"""Engines: one running server each, and what goes to it and comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from orchestratord.domain.kv import KvLayout
from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Sampling, Workload


@dataclass(frozen=True, slots=True)
class EngineProps:
    """What a loaded engine says of itself."""

    engine_version: str
    model_id: str
    ctx: int  # tokens one slot, or one input, can hold: the figure to admit against
    slots: int
    workloads: frozenset[Workload]
    chat_template: bool
    quant: str | None = None  # how its weights are quantised
    exact_alone: bool = False  # one request at a time: equal seeds give equal tokens (same build, model and options)
    exact_warm: bool = False  # also where it reuses a prefix from its KV cache
    features: tuple[str, ...] = ()  # sampling knobs it honours, and `prefix_cache` if it keeps prompts in its KV cache
    model_digest: str | None = None  # sha256:<64 hex>, of engines that say so
    kv: KvLayout | None = None  # what tokens take in its KV cache, where that is certain
    kv_tokens: int | None = None  # it keeps so many, of whoever came last; None: each slot keeps its last prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One task as an engine gets it."""

    workload: Workload
    max_tokens: int
    seed: int
    prompt: str = ""
    inputs: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    keep_cache: bool = True  # let the engine reuse and keep this prompt's KV cache
    slot: int | None = None  # which of its slots to use, for engines that let one choose; it is free
    trace: Mapping[str, str] = field(default_factory=dict)  # header fields by which an engine that traces joins in


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The engine's own closing figures."""

    finish_reason: FinishReason
    tokens_in: int | None
    tokens_out: int


@dataclass(slots=True)
class Chunk:
    """Everything one read from the engine brought: texts in order, then results, then perhaps the end.

    `tokens_out` is the engine's running count so far (0 where it gives none before the end): never a count of
    frames, since a token may come without one.
    """

    texts: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)  # payloads of `result` events
    tokens_out: int = 0
    end: JobEnd | None = None


def _keep_nothing(text: str, tokens_out: int) -> bool:
    return False


class Deliver:
    """Where the output of a run goes: called with a chunk. False: nothing more is wanted.

    text: takes one text and the engine's running count, the same as a chunk of that text alone in as few steps as can
    be. False: it has done nothing, and the text has to come as a chunk. Both are called on the event loop, in order.
    """

    __slots__ = ("_chunk", "text")

    def __init__(self, chunk: Callable[[Chunk], bool], text: Callable[[str, int], bool] = _keep_nothing) -> None:
        self._chunk = chunk
        self.text = text

    def __call__(self, chunk: Chunk) -> bool:
        return self._chunk(chunk)


class EngineError(Exception):
    """An engine did not do its work. One rule for all drivers says which kind of failure it is:

    `refused`: it says the request is wrong (400, 413, 422, 501 and their like), and whoever asked can change it. Never
    retried, never counts against the replica. `full`: it has no room, or not yet (429, 503). `failed`: it reports an
    error of its own (5xx), or does not know our key, model or path (401, 403, 404, 405), which no client can change.
    `lost`: the connection was refused, reset or closed before the end. `timeout`. `protocol`: it sent what cannot be
    understood. The same holds for a status inside an error frame under 200; a frame without one is `failed`.
    """

    def __init__(self, kind: Literal["refused", "full", "lost", "timeout", "protocol", "failed"], message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(f"{kind}: {message}")


class Engine(Protocol):
    """One running engine server. Construct with (url, *, clock, api_key=None); it keeps a connection pool.

    One that has besides an attribute `taskless` that is true needs no Task for `run`: it awaits futures and what the
    Clock has, but nothing like `asyncio.timeout`. Then a job is sent in the very turn in which its task gets the slot.
    """

    engine: str  # protocol family clients ask for: llamacpp, vllm, tgi, triton
    driver: str  # the entry point's name

    async def ready(self) -> str | None:
        """None when the model is loaded and answers; otherwise why not ("loading model"). Never raises EngineError
        for a server that is merely starting; raises EngineError(lost) when nothing listens."""

    async def props(self) -> EngineProps:
        """Identity and limits of the loaded model. Raises EngineError."""

    async def run(self, job: Job, deliver: Deliver) -> None:
        """Run a job to its end.

        `deliver` is called on the event loop with what each read brought, in the call that read it; the chunk with
        `end` is the last. When it returns False, or when `run` is cancelled, the job is aborted: the connection is
        closed at once, without waiting for the engine. Bytes that end before the engine's own end raise
        EngineError(lost); EngineError also for a job that is not taken (refused, full) or fails.
        """

    async def busy(self) -> frozenset[int] | None:
        """The slots the engine is working on right now; None if it cannot tell. Raises EngineError."""

    def bound(self, text: str) -> int:
        """A cheap upper bound of the tokens `text` becomes as a prompt, special tokens included."""

    async def tokenize(self, text: str) -> int:
        """Exact tokens of `text` as a prompt, special tokens included. Raises EngineError."""

    async def render(self, messages: Sequence[Message]) -> str:
        """The prompt the engine's own chat template makes. Raises EngineError."""

    async def close(self) -> None:
        """Close every connection. Idempotent."""


@runtime_checkable
class KvGauge(Protocol):
    """What an engine that knows how full its KV cache is has besides."""

    async def kv_usage(self) -> float | None:
        """The share of its KV cache that running jobs take, 0..1; None if it cannot tell. Raises EngineError."""
