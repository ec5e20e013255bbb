"""A task: what was asked for, where it stands, and which moves its state may make."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from orchestratord.domain.log import EventLog
from orchestratord.domain.placement import Decision


class TaskState(StrEnum):
    """Life of an admitted task; the last three are terminal."""

    QUEUED = "queued"
    STARTING = "starting"  # holds a lease, the engine has not produced anything yet
    RUNNING = "running"  # first output seen
    ENDED = "ended"
    CANCELED = "canceled"
    FAILED = "failed"


TERMINAL = frozenset({TaskState.ENDED, TaskState.CANCELED, TaskState.FAILED})
MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset({TaskState.STARTING, TaskState.CANCELED, TaskState.FAILED}),
    TaskState.STARTING: frozenset({TaskState.RUNNING, *TERMINAL}),
    TaskState.RUNNING: TERMINAL,
    **{state: frozenset() for state in TERMINAL},
}

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
Workload = Literal["completion", "embedding", "rerank"]
DeterminismClass = Literal["exact", "best_effort"]
FinishReason = Literal["stop", "length", "canceled"]
CancelReason = Literal["client", "disconnect", "session_deleted", "shutdown", "deadline", "watchdog"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; the engine's own template turns a list of them into a prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Per-task overrides of single sampling knobs; None leaves the profile's value."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class PlacementHints:
    """What the client says about where its task may run (ORCH-39xx)."""

    mode: Literal["pin", "prefer", "auto"] = "auto"
    pin_pool_id: str | None = None
    prefer_pools: tuple[str, ...] = ()
    avoid_pools: tuple[str, ...] = ()
    require_device_mask: str | None = None
    allow_fallback: bool = True


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The TaskRequest of the contract, field for field. Durations are milliseconds from receipt."""

    task_id: str
    session_id: str
    workload: Workload
    model_ref: str
    engine: str
    ctx: int
    priority: Priority
    max_tokens: int
    deadline_ms: int
    seed: int | None = None
    determinism: Literal["strict", "best_effort"] = "best_effort"
    sampler_profile_version: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    inputs: tuple[str, ...] | None = None
    expected_tokens: int | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    output_mode: str | None = None
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    placement: PlacementHints = field(default_factory=PlacementHints)
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def max_events(self) -> int:
        """Upper bound of log events before the terminal one: `started` and every token or result."""
        return 1 + (self.max_tokens if self.workload == "completion" else len(self.inputs or ()))

    @property
    def units(self) -> int:
        """Work asked for at most: output tokens, or inputs for the workloads that produce none."""
        return self.max_tokens if self.workload == "completion" else len(self.inputs or ())


@dataclass(frozen=True, slots=True)
class Admission:
    """What the 202 said; an idempotent replay says it again."""

    queue_position: int
    predicted_start_ms: int
    backoff_ms: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The payload of an `error` event and of TaskStatus.error."""

    code: str
    message: str
    engine: str
    retriable: bool = False
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token figures as the engine counts them; None where it never said."""

    tokens_in: int | None = None
    tokens_out: int = 0
    decode_ms: int = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: its correlation id, and `localhost` or `token:<6 hex>`, never the token."""

    correlation_id: str
    identity: str


@dataclass(slots=True, eq=False)
class Task:
    """An admitted task. Only `domain.core.Core` changes one."""

    request: TaskRequest
    fingerprint: bytes  # SHA-256 of the body's RFC 8785 form: idempotency compares it
    order: int  # place in admission order; never reused, survives a restart
    seed: int
    determinism_class: DeterminismClass
    admission: Admission
    decision: Decision
    pool_id: str
    log: EventLog
    created_ms: int  # Unix epoch, for display and for the deadline across a restart
    created: float  # monotonic seconds
    deadline: float  # monotonic seconds; bounds the terminal event
    prompt_sha256: str | None = None
    prompt_bound: int = 0  # upper bound of prompt tokens it was admitted on
    caller: Caller = Caller("", "")
    state: TaskState = TaskState.QUEUED
    committed: bool = False  # its `Admitted` fact is durable: it may be dispatched
    replica_id: str | None = None
    engine_version: str | None = None
    model_digest: str | None = None
    usage: Usage = field(default_factory=Usage)
    token_frames: int = 0
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    started_ms: int | None = None
    first_token_ms: int | None = None
    ended_ms: int | None = None
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    last_output: float | None = None
    transcript_id: str | None = None
    journaled: int = 0  # bytes of the log that the journal has been given
    recovered: bool = False

    @property
    def task_id(self) -> str:
        return self.request.task_id

    @property
    def session_id(self) -> str:
        return self.request.session_id

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    def move(self, state: TaskState) -> None:
        """Change state; an illegal move is a bug and raises AssertionError."""
        assert state in MOVES[self.state], f"task {self.task_id}: {self.state} -> {state}"
        self.state = state
