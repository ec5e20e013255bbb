"""How a task stands and how it ends: states and their legal moves, usage, failures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from orchestratord.domain.record import record

FinishReason = Literal["stop", "length", "canceled"]
CancelReason = Literal["client", "disconnect", "session_deleted", "shutdown", "deadline", "watchdog"]


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


@record
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
