"""Operations: the long things an operator starts on a pool, and what of a pool has to survive a restart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

OperationKind = Literal["drain", "reload", "resume"]
OperationState = Literal[
    "pending",
    "draining",
    "fetching",
    "verifying",
    "preloading",
    "probing",
    "swapping",
    "succeeded",
    "failed",
    "rolled_back",
]
OVER = frozenset({"succeeded", "failed", "rolled_back"})
ERROR_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong last, with the engine's own last lines."""

    code: str
    message: str
    at_ms: int
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """What a pool serves: its name to clients, and where it is on disk if the daemon starts the engine itself."""

    ref: str
    path: str | None = None
    digest: str | None = None  # sha256:<64 hex>


@dataclass(frozen=True, slots=True)
class Operation:
    """One drain, reload or resume. `failed` changed nothing; `rolled_back` had begun to and undid it.

    `generation` is that of the pool: it counts the models the pool has come to serve. `*_ms` are Unix epoch,
    `deadline_ms` is the duration a drain was given.
    """

    id: str
    pool_id: str
    kind: OperationKind
    state: OperationState
    from_model_ref: str
    generation: int
    started_ms: int
    to_model_ref: str | None = None
    deadline_ms: int | None = None
    ended_ms: int | None = None
    error: Fault | None = None

    @property
    def over(self) -> bool:
        return self.state in OVER

    def same_wish(self, kind: OperationKind, to_model_ref: str | None, deadline_ms: int | None) -> bool:
        """Whether asking for this would ask for the same again."""
        return (self.kind, self.to_model_ref, self.deadline_ms) == (kind, to_model_ref, deadline_ms)

    def ended(self, state: OperationState, at_ms: int, error: Fault | None = None) -> Operation:
        if error is not None:
            error = replace(error, message=error.message[:ERROR_CHARS])
        return replace(self, state=state, ended_ms=at_ms, error=error)


@dataclass(frozen=True, slots=True)
class PoolChanged:
    """The fact that gates an operation's 2xx and a reload's swap: all of a pool that outlives the daemon.

    `configured` is the model of the configuration at that time: a configuration that was changed since then wins
    over `model`, which is None while the pool serves what is configured.
    """

    pool_id: str
    configured: str
    draining: bool
    generation: int
    model: Model | None
    operation: Operation

    def after_restart(self, at_ms: int) -> PoolChanged:
        """What it means to a daemon that starts. An operation that was running is over: wholly done or undone.

        A drain has nothing left to wait for. A reload is done once its swap is journaled, with the new model in the
        same fact; before that the old one was never given up.
        """
        operation = self.operation
        if operation.over:
            return self
        if operation.kind == "reload" and operation.state != "swapping":
            why = Fault("WORKER_RESET", "The daemon stopped during the reload; the old model is back.", at_ms)
            return replace(self, operation=operation.ended("rolled_back", at_ms, why))
        return replace(self, operation=operation.ended("succeeded", at_ms))
