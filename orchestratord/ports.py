"""The ports: what services ask of the outside world. The docstring of each method is its specification.

Every implementation of a port, the test doubles included, passes the same suite in `tests/ports`.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from orchestratord.domain.device import Device
from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import Fact, JournaledTask, SessionDeleted
from orchestratord.domain.kv import KvLayout
from orchestratord.domain.operation import PoolChanged
from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Sampling, Workload

# -- answers -----------------------------------------------------------------------------------------------
# In a scope's extensions: a layer's function, to be called when the answer is over. Who goes on with an answer after
# the app has returned takes it out and calls it; what is still there then, the layer calls itself.
OVER = "orchestratord.over"


# -- time --------------------------------------------------------------------------------------------------
class Timer(Protocol):
    def cancel(self) -> None:
        """Drop the call if it has not happened yet. Idempotent."""


class Clock(Protocol):
    """The only way time enters. `now` never goes back; wall time is only ever displayed."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wall_ms(self) -> int:
        """Unix epoch milliseconds."""

    def call_at(self, when: float, fn: Callable[[], None]) -> Timer:
        """Call `fn` on the event loop at monotonic time `when`, or on its next turn if that has passed."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""

    def limit(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Bound the body: TimeoutError when it takes longer than `seconds`."""


# -- journal -----------------------------------------------------------------------------------------------
class Ticket(Protocol):
    """An asyncio.Future: resolved on the event loop when the fact is durable. Wait on it through `shield`.

    Its result is None, except for `Finished` with a transcript source: then the transcript (`Artifact`).
    Its exception is a `JournalUnavailable`.
    """

    def __await__(self) -> Generator[Any, None, Any]: ...

    def done(self) -> bool: ...

    def result(self) -> Any: ...

    def exception(self) -> BaseException | None: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


class JournalUnavailable(Exception):
    """The journal could not make the fact durable; it is as if it had never been appended.

    Where the store failed, `reason` is what the system calls that (ENOSPC, SQLITE_FULL) and `remedy` what an operator
    does about it; neither quotes a fact.
    """

    def __init__(self, message: str, *, reason: str = "", remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(message)


class CatalogStore(Protocol):
    """Where the catalog is kept. Every journal is one: its entries are facts like others, so that there is one order
    of decisions and one writer. An entry is `CatalogChanged` as a whole, and gone with `CatalogRemoved`.
    """

    def append(self, fact: Fact) -> Ticket:
        """See `Journal.append`: durable when the ticket resolves, and without trace when it fails."""

    def catalog(self) -> list[CatalogEntry]:
        """Every entry as its last fact left it, as found by `open`, by id."""


class Journal(CatalogStore, Protocol):
    """Facts in decision order. `append` is synchronous; durability comes later, as a ticket."""

    def append(self, fact: Fact) -> Ticket:
        """Add a fact to the order now. Tickets resolve in append order, on the loop that called `open`.

        While the journal is not healthy, the ticket fails at once with JournalUnavailable. While it is too far
        behind, `Admitted` fails likewise, and `Frames` are left out: that task's later ones as well, so that what
        is stored has no gap; their tickets resolve at once.
        """

    async def open(self) -> list[JournaledTask]:
        """Open or create the store and return every task it knows, in admission order.

        Raises JournalUnavailable with a message that says what to do (locked by another daemon, newer schema,
        not writable).
        """

    def transcripts(self) -> list[tuple[str, Artifact]]:
        """(task id, transcript) of every `Finished` not yet `Archived`, as found by `open`."""

    def deleted_sessions(self) -> list[SessionDeleted]:
        """Every session deletion that still concerns a task `open` returned."""

    def changed_pools(self) -> list[PoolChanged]:
        """The last fact of every pool an operator ever changed, as found by `open`, by pool id."""

    async def log(self, task_id: str) -> bytes | None:
        """The whole event log of a finished task, byte for byte as far as it was journaled; None where the journal
        keeps nothing that memory does not. Raises JournalUnavailable.
        """

    @property
    def healthy(self) -> bool:
        """False from a failed commit until the store accepts writes again."""

    def watch(self, changed: Callable[[JournalUnavailable | None], object]) -> None:
        """Have `changed` called on the loop from now on: with why, whenever the store stops accepting writes after it
        was opened, and with None when it accepts them again.
        """

    @property
    def backlog(self) -> int:
        """Bytes appended and not yet durable."""

    async def close(self) -> None:
        """Make everything appended durable and release the store. Idempotent."""


# -- artifacts ---------------------------------------------------------------------------------------------
class Encoded(bytes):
    """A content as the JSON text it will be stored as."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A content-addressed document: `id` is the SHA-256 of the RFC 8785 form of the five client fields.

    On its way to a store the content may be `Encoded`; whoever reads it gets objects.
    """

    id: str
    kind: str
    content: Any
    tags: tuple[str, ...]  # a sorted set
    parent: str | None
    metadata: dict[str, Any]
    created_ms: int

    def opened(self) -> Artifact:
        """The same with its content as objects."""
        return replace(self, content=json.loads(self.content)) if isinstance(self.content, Encoded) else self


class ArtifactCorrupt(Exception):
    """The stored bytes no longer hash to the artifact's id."""


class ArtifactTooLarge(Exception):
    """More bytes than the store takes for one artifact; the message says how many those are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store knows of an artifact without reading it. `artifact` has no content; `size` is in bytes."""

    artifact: Artifact
    size: int
    automatic: bool


class ArtifactStore(Protocol):
    """Content-addressed documents. Writes are atomic, reads are verified.

    What the daemon itself has put is `automatic` and may be dropped. What anybody else has put, be it once and before
    or after the daemon, is kept for good. The mark outlives a restart.
    """

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        """Store it unless its id is there already; return what is stored (the first `created_ms` wins).

        Until this returns neither the artifact nor the one it names as its parent is dropped. Raises ArtifactTooLarge,
        and OSError when the store cannot be written.
        """

    async def put_all(self, artifacts: Sequence[Artifact]) -> int:
        """`put` of one or more automatic ones, in order and at the price of few; returns how many of them are stored.

        Raises what `put` would if that is none.
        """

    async def get(self, artifact_id: str) -> Artifact | None:
        """The artifact, or None. Raises ArtifactCorrupt when its bytes were damaged."""

    async def list(self, *, limit: int, after: tuple[int, str] | None, tag: str | None) -> list[Artifact]:
        """Newest first by (created_ms, id), beginning below the key `after`; `content` may be left as None."""

    def oldest(self, *, limit: int, after: tuple[int, str] | None) -> builtins.list[Stored]:
        """Automatic artifacts, oldest first by (created_ms, id), beginning above the key `after`."""

    async def drop(self, artifact_id: str) -> bool:
        """Remove an automatic artifact that no other one names as its parent; False, and it stays, for all others.

        Decided before the first await. A later `put` stores it anew. Whatever happens, it is there whole or not at
        all. Raises OSError, and then it is there.
        """

    @property
    def automatic_bytes(self) -> int:
        """Bytes of all automatic artifacts."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of all others."""


# -- engines -----------------------------------------------------------------------------------------------
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
    """One running engine server. Construct with (url, *, clock, api_key=None); it keeps a connection pool."""

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


class ReplicaProcess(Protocol):
    """An engine server run as a child: own process group, dead with the daemon even on its kill -9."""

    @property
    def url(self) -> str:
        """Where the child listens: http://127.0.0.1:port."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """The exit code once the child is gone, else None."""

    async def wait(self) -> int:
        """Return the exit code once the child is gone (negative: a signal). May be awaited by several."""

    async def stop(self, grace: float) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL, to the whole group. Returns when all are gone. Idempotent."""

    def tail(self) -> list[str]:
        """The last lines the child wrote to stdout and stderr (at most 200 lines of 500 characters)."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run an engine: its own options, as the configuration gives them."""

    driver: str
    model_path: str  # or a model reference, until it is resolved
    slots: int
    ctx: int  # per slot
    threads: int
    binary: str | None
    extra_args: tuple[str, ...]
    env: dict[str, str]
    device_mask: str | None
    mode: Workload = "completion"  # for engines that must be told at their start
    api_key_env: str | None = None  # the one secret of the daemon's environment that is the engine's, too


@runtime_checkable
class Startable(Protocol):
    """What the class of a driver has besides whose engine the daemon can start: what to run, and in which environment.

    Both are called on the class, before there is an engine, and quick enough for the event loop.
    """

    def command(self, spec: ProcessSpec, port: int) -> list[str]:
        """Program and arguments of a server on 127.0.0.1:`port` that serves `spec.model_path`.

        Raises OSError when it cannot be started; the message names the fix (FileNotFoundError: how to get the program).
        """

    def environment(self, spec: ProcessSpec) -> dict[str, str]:
        """Its whole environment: ours where it needs that, what keeps it to `spec.device_mask`, then `spec.env`."""


class ReplicaHost(Protocol):
    """Starts engine servers."""

    async def start(self, spec: ProcessSpec) -> ReplicaProcess:
        """Start one on a free loopback port. Raises OSError when it cannot be started (message names the fix)."""


class GpuProbe(Protocol):
    """The GPUs of this machine."""

    async def read(self) -> list[Device]:
        """All of them as they are now; [] where there are none or they cannot be seen. Never raises."""


class HostMemory(Protocol):
    """What memory there is. None where the system does not say. Quick enough for the event loop."""

    def available(self) -> int | None:
        """Bytes that can be taken without swapping."""

    def resident(self, pid: int) -> int | None:
        """Bytes a process has in memory."""

    def private(self, pid: int) -> int | None:
        """Of these, the bytes that come back when it ends: without files, which the system may drop at any time."""

    def taken(self) -> float | None:
        """Of the memory this process and its group may have, the share they take; None if there is no limit."""

    def file_size(self, path: str) -> int:
        """Bytes of a local file; 0 if it cannot be seen."""


# -- models ------------------------------------------------------------------------------------------------
class ModelUnavailable(Exception):
    """A model cannot be had; the message says what to do. `code` is one of

    UNTRUSTED_ARTIFACT: the policy forbids it, or it is not what was asked for;
    NOT_FOUND: there is nothing, or nothing definite, under the reference;
    FETCH_FAILED: it cannot be reached or read now; what came of it already is gone on with the next time;
    DISK_FULL: there is no room for it;
    NOT_INSTALLED: an optional part of the package is needed.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the bytes of a model are. `digest` is that of the file, or, for a folder and for numbered files, of the list
    `sha256sum` makes of them, sorted by path: `<64 hex>  <path>` and a line feed each.
    """

    digest: str
    files: tuple[tuple[str, int], ...]  # (digest, bytes) of each file


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature is: the root that made it, None if none of those asked about did."""

    root: str | None
    algo: str


class ModelProofs(Protocol):
    """Evidence about files of this machine. Nothing of this blocks the loop, and all of it can be cancelled.

    Every method raises ModelUnavailable: NOT_FOUND for what cannot be read, UNTRUSTED_ARTIFACT for what is not what it
    should be.
    """

    @property
    def roots(self) -> frozenset[str]:
        """Names of the keys that may have signed."""

    async def measure(self, path: str, *, fresh: bool = False) -> Measured:
        """Read all of a model. Unless `fresh`, files that have not changed since are not read again."""

    async def digest(self, path: str) -> str:
        """The digest of a small file beside the model."""

    async def signature(self, path: str, model: str, measured: Measured, roots: Collection[str]) -> Signed:
        """Whether the signature in `path` is one of these roots' over the model that was measured at `model`."""

    async def listed(self, path: str) -> frozenset[str]:
        """The digests a bill of materials lists."""


class ModelFiles(Protocol):
    """From a model reference (`domain.modelref`) to a file or folder on this machine.

    What is fetched lies in a cache addressed by content: no name from outside becomes a path. Fetching is off unless
    the configuration allows the scheme and the host; it reaches no private address that is not named as such.
    """

    def check(self, ref: str) -> None:
        """Whether the policy allows the reference at all, without looking anywhere. Raises ModelUnavailable."""

    async def resolve(self, ref: str, digest: str | None = None) -> str:
        """The path of the model, fetched if need be. `digest` (sha256:<64 hex>) is what it must have.

        A model of several files is a folder, or the first of its numbered files. Whoever asks for what is being
        fetched already joins; when nobody waits any more, fetching stops and can be gone on with. What an earlier
        fetch of the reference brought serves while its server cannot be asked. Raises ModelUnavailable; a file with
        another digest than was asked for is never left behind.
        """

    async def verify(self, path: str) -> str | None:
        """The file is whole and of a kind engines load; its digest (sha256:<64 hex>) where one had to be checked.

        Raises ModelUnavailable.
        """

    def progress(self, ref: str) -> tuple[int, int] | None:
        """Bytes there and bytes in all (0: not known) of a reference that is being fetched; None if it is not."""


@dataclass(frozen=True, slots=True)
class Used:
    """Models that somebody uses: by references in their one form, by paths, and by digests (sha256:<64 hex>)."""

    refs: frozenset[str]
    paths: frozenset[str]
    digests: frozenset[str]


class ModelCache(Protocol):
    """What was fetched, within a bound. The bound is in bytes; there may be none."""

    async def trim(self, used: Callable[[], Used]) -> tuple[int, int]:
        """Remove what was used least recently until the rest is within the bound: (bytes removed, bytes left).

        That waits for a moment when nothing is being fetched. `used` is asked at that moment; what it names stays, and
        whoever wants to fetch something then waits for the end. Raises OSError.
        """


# -- telemetry ---------------------------------------------------------------------------------------------
class Telemetry(Protocol):
    """Domain words in, metrics and log lines out. Never raises, never blocks, never sees a prompt or a token."""

    def event(self, name: str, human: str = "", /, **fields: Any) -> None:
        """Something worth a log line: past-tense snake_case name, a short sentence, flat fields."""

    def count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter of the metrics table."""

    def observe(self, series: str, value: float, /, **labels: str) -> None:
        """Add an observation to a histogram of the metrics table, or set a gauge to the value."""

    def meter(self, series: str, /, **labels: str) -> Callable[[float], None]:
        """What `count` or `observe` would do with the values it is called with: for whoever does so often."""
