"""A task: its admission, which never changes, and where it stands since."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestratord.domain.facts import Admitted
from orchestratord.domain.log import EventLog
from orchestratord.domain.outcome import MOVES, TERMINAL, Failure, FinishReason, TaskState, Usage
from orchestratord.domain.request import DeterminismClass, TaskRequest


@dataclass(slots=True, eq=False)
class Task:
    """An admitted task. Only `domain.core.Core` changes one. `*_ms` are Unix epoch, the others monotonic seconds."""

    admitted: Admitted
    log: EventLog
    created: float
    deadline: float  # bounds the terminal event
    determinism_class: DeterminismClass
    state: TaskState = TaskState.QUEUED
    committed: bool = False  # its `Admitted` fact is durable: it may be dispatched
    recovered: bool = False  # admitted by an earlier process
    replica_id: str | None = None
    kv_warm: bool = False  # its slot held the session's prefix when it was leased
    quant: str | None = None
    engine_version: str | None = None
    model_digest: str | None = None
    profile: str | None = None  # the sampler profile it runs with; None: its pool is gone
    started: float | None = None
    started_ms: int | None = None
    first_token: float | None = None
    first_token_ms: int | None = None
    last_output: float | None = None
    token_frames: int = 0
    journaled: int = 0  # bytes of the log that the journal has been given
    tokens_in: int | None = None  # these three as `Usage` has them
    tokens_out: int = 0
    decode_ms: int = 0
    attempts: int = 0  # leases it has had
    tried: tuple[str, ...] = ()  # replicas that failed it before its first output
    not_before: float = 0.0  # when it may get its next lease
    retrying: bool = False  # between two leases
    ended: float | None = None
    ended_ms: int | None = None
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    transcript_id: str | None = None
    unsaved: bool = False  # its end could not be journaled, and will be as soon as the journal can be written
    pool_id: str = field(init=False)  # where it was admitted to, or moved to since
    # Of what was admitted: asked for dozens of times.
    request: TaskRequest = field(init=False)
    task_id: str = field(init=False)
    session_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.pool_id, self.request = self.admitted.pool_id, self.admitted.request
        self.task_id, self.session_id = self.request.task_id, self.request.session_id

    def drop_content(self) -> None:
        """Nobody needs what it was asked any more."""
        self.admitted = self.admitted.without_content()
        self.request = self.admitted.request

    @property
    def usage(self) -> Usage:
        return Usage(self.tokens_in, self.tokens_out, self.decode_ms)

    @usage.setter
    def usage(self, usage: Usage) -> None:
        self.tokens_in, self.tokens_out, self.decode_ms = usage.tokens_in, usage.tokens_out, usage.decode_ms

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def waits(self) -> bool:
        """For a lease: its first, or another one."""
        return self.state is TaskState.QUEUED or self.retrying

    def move(self, state: TaskState) -> None:
        """Change state; an illegal move is a bug and raises AssertionError."""
        assert state in MOVES[self.state], f"task {self.task_id}: {self.state} -> {state}"
        self.state = state
