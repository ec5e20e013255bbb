"""Facts: what the journal keeps. A fact is written once, in decision order, and never changed.

Three of them gate what anyone may see: `Admitted` the 202, `Started` the first token, `Finished` the terminal
event and a cancel's 204. Recovery is a pure function of them (`domain.recovery`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestratord.domain.budget import Amounts
from orchestratord.domain.entry import CatalogChanged, CatalogRemoved
from orchestratord.domain.operation import PoolChanged
from orchestratord.domain.outcome import Admission, Failure, TaskState, Usage
from orchestratord.domain.placement import Decision
from orchestratord.domain.record import changed, record
from orchestratord.domain.request import Caller, DeterminismClass, TaskRequest


@record
class Admitted:
    """A task was accepted. `request` holds the prompt: the journal erases it in the transaction of `Finished`."""

    request: TaskRequest
    fingerprint: bytes
    order: int
    seed: int
    determinism_class: DeterminismClass
    admission: Admission
    decision: Decision
    pool_id: str
    created_ms: int
    prompt_sha256: str | None
    prompt_bound: int  # upper bound of prompt tokens it was admitted on
    held: Amounts  # reserved from the session's budgets
    caller: Caller
    started_frame: bytes  # the log's first event, so that a restart serves the very same bytes
    strict_trust: bool = False  # the client asked for it

    @property
    def task_id(self) -> str:
        return self.request.task_id

    def without_content(self) -> Admitted:
        """The same fact with nothing left of what the client asked."""
        return changed(self, request=changed(self.request, prompt=None, messages=None, inputs=None))


@dataclass(frozen=True, slots=True)
class Started:
    """The engine produced its first output; from here on the task is never run again."""

    task_id: str
    pool_id: str
    replica_id: str
    engine_version: str
    model_digest: str | None
    started_ms: int
    first_token_ms: int


@dataclass(frozen=True, slots=True)
class Frames:
    """A batch of encoded log frames, journaled behind the readers (at most 250 ms or 64 KiB late)."""

    task_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The task is over: outcome, usage and the terminal frame."""

    task_id: str
    state: TaskState
    usage: Usage
    used: Amounts  # settled against the session's budgets
    finish_reason: str | None
    failure: Failure | None
    ended_ms: int
    terminal_id: int
    terminal_frame: bytes
    transcript: TranscriptSource | None = None


@dataclass(frozen=True, slots=True)
class TranscriptSource:
    """Everything a transcript is made of. The journal turns it into an artifact off the event loop."""

    frames: bytes  # the whole log, terminal event included
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    created_ms: int


@dataclass(frozen=True, slots=True)
class Archived:
    """The transcripts of these tasks are safe in the artifact store; no start need make them again."""

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SessionDeleted:
    """The client ended its session; its earlier turns no longer count."""

    session_id: str
    after_order: int  # tasks up to and including this order belonged to the deleted session


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Retention dropped a finished task."""

    task_id: str


Fact = (
    Admitted
    | Started
    | Frames
    | Finished
    | Archived
    | SessionDeleted
    | PoolChanged
    | CatalogChanged
    | CatalogRemoved
    | Forgotten
)


@dataclass(frozen=True, slots=True)
class JournaledTask:
    """One task as the journal knows it at start-up. A finished one has lost its prompt, messages and inputs."""

    admitted: Admitted
    started: Started | None
    frames: bytes  # journaled token frames after `started_frame`, whole frames only
    finished: Finished | None
    transcript_id: str | None
