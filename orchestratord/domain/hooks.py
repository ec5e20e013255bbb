"""What the core asks of the outside, in plain calls, and the figures it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestratord.domain.budget import Budget, Tariff
from orchestratord.domain.facts import Fact
from orchestratord.domain.outcome import CancelReason
from orchestratord.domain.pool import Lease
from orchestratord.domain.record import record
from orchestratord.domain.request import Caller, TaskRequest
from orchestratord.domain.task import Task


class Ticket(Protocol):
    """A fact's durability, as `ports.Ticket` specifies it."""

    def exception(self) -> BaseException | None: ...

    def result(self) -> Any: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the core asks of the outside, in plain calls."""

    record: Callable[[Fact], Ticket]
    encode: Callable[[int, str, dict[str, Any]], bytes]  # (event id, name, payload) -> frame
    tokens: Callable[[int, Sequence[str], int], list[bytes]]  # frames of texts: (event id, texts, index of the first)
    token_form: bytes  # what `%` makes a token's frame of: of (event id, quoted text, index)
    quote: Callable[[str], bytes]
    abort: Callable[[Lease], None]  # the lease's task is over: stop its engine call
    wake: Callable[[], None]  # there may be something to dispatch, or an earlier deadline
    admitted: Callable[[Task], None]  # the admission is durable
    ended: Callable[[Task, str, CancelReason | None], None]  # (task, phase queued|running, reason)
    archive: Callable[[str, Any], None]  # the transcript is durable in the journal: store it


@dataclass(frozen=True, slots=True)
class Limits:
    session_ttl_s: float = 600.0
    turns_max: int = 8
    budget: Budget = field(default_factory=Budget)
    tariff: Tariff = field(default_factory=Tariff)
    task_bytes: int = 8 * 1024 * 1024
    log_bytes: int = 64 * 1024 * 1024  # of finished tasks, in memory
    retain_s: float = 3600.0
    retain_tasks: int = 10_000
    transcripts: bool = True


@record
class Sized:
    """A request with what was found out about it before the decision."""

    request: TaskRequest
    fingerprint: bytes
    seed: int
    prompt_bound: int
    prompt_sha256: str | None
    caller: Caller
    strict_trust: bool = False
    waited_s: float = 0.0  # since its receipt: deadlines and predictions count from there
