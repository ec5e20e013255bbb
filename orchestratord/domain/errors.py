"""Refusals the domain and the services raise. The docstring is the default message; data rides along.

`code` is the contract's; which HTTP status and headers it becomes is `wire.errors`' business alone.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Refusal(Exception):
    """The request cannot be served."""

    code: ClassVar[str] = "INTERNAL"
    retriable: ClassVar[bool] = False
    at_placement = False  # no pool could be chosen

    def __init__(
        self,
        message: str | None = None,
        *,
        retriable: bool | None = None,
        retry_after_ms: int | None = None,
        policy_label: str | None = None,
        engine: str | None = None,
        pool_id: str | None = None,
        rule: str | None = None,
        **details: Any,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.is_retriable = type(self).retriable if retriable is None else retriable
        self.retry_after_ms = retry_after_ms
        self.policy_label = policy_label
        self.engine = engine
        self.pool_id = pool_id
        self.details: dict[str, Any] = {**({"rule": rule} if rule else {}), **details}
        super().__init__(self.message)


class InvalidParams(Refusal):
    """The request is valid JSON but cannot be served as it stands."""

    code = "INVALID_PARAMS"


class DeadlineUnmet(Refusal):
    """The task would most likely end after its deadline."""

    code = "DEADLINE_UNMET"
    retriable = True


class AdmissionReject(Refusal):
    """There is no room for this task now."""

    code = "ADMISSION_REJECT"
    retriable = True


class QueueFull(AdmissionReject):
    """The queue is full of interactive work, which is never dropped."""

    code = "QUEUE_FULL_DROP_LRU"


class PoolUnready(Refusal):
    """No pool that serves this task is ready."""

    code = "POOL_UNREADY"
    retriable = True


class PoolUnavailable(Refusal):
    """Every pool that serves this task is down."""

    code = "POOL_UNAVAILABLE"
    retriable = True


class ReplicaExhausted(Refusal):
    """Every replica that could serve this task keeps failing."""

    code = "REPLICA_EXHAUSTED"
    retriable = True


class Conflict(Refusal):
    """This contradicts what the server already has."""

    code = "CONFLICT"


class ModelDeprecated(Refusal):
    """This model is retired and takes no new work."""

    code = "MODEL_DEPRECATED"


class UntrustedArtifact(Refusal):
    """This model is not trusted as the policy asks."""

    code = "UNTRUSTED_ARTIFACT"


class NotFound(Refusal):
    """There is nothing under this id; it may have expired."""

    code = "NOT_FOUND"


class TooLarge(Refusal):
    """This is more than the server takes."""

    code = "PAYLOAD_TOO_LARGE"


class StorageUnavailable(Refusal):
    """The journal cannot be written now, so nothing was accepted. Try again shortly."""

    code = "STORAGE_UNAVAILABLE"
    retriable = True


class Overloaded(Refusal):
    """The server is shutting down or at its limits. Try again shortly."""

    code = "OVERLOADED"
    retriable = True
