"""The one table from error codes to HTTP: status, headers and the ErrorEnvelope. Nothing else knows an error status."""

from __future__ import annotations

from math import ceil
from typing import Any

import orjson

from orchestratord.domain.errors import Refusal

STATUS: dict[str, int] = {
    "INVALID_PARAMS": 400,
    "DEADLINE_UNMET": 400,
    "UNTRUSTED_ARTIFACT": 400,
    "MISSING_TOKEN": 401,
    "BAD_TOKEN": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "MODEL_DEPRECATED": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "URI_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "ADMISSION_REJECT": 429,
    "QUEUE_FULL_DROP_LRU": 429,
    "HEADERS_TOO_LARGE": 431,
    "INTERNAL": 500,
    "NOT_IMPLEMENTED": 501,
    "POOL_UNREADY": 503,
    "POOL_UNAVAILABLE": 503,
    "REPLICA_EXHAUSTED": 503,
    "OVERLOADED": 503,
    "STORAGE_UNAVAILABLE": 503,
}

Headers = list[tuple[bytes, bytes]]


class HttpError(Refusal):
    """A refusal of the HTTP layer itself: its code is given, not a class's, and it may bring headers."""

    def __init__(self, code: str, message: str, headers: Headers | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.code = code  # type: ignore[misc]
        self.headers = headers or []


def internal() -> HttpError:
    """What the client learns of an unforeseen exception: nothing but that it happened."""
    return HttpError(
        "INTERNAL", "The server failed on this request. The log has the details under this correlation id."
    )


def envelope(error: Refusal) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.engine is not None:
        body["engine"] = error.engine
    if error.pool_id is not None:
        body["pool_id"] = error.pool_id
    status = STATUS[error.code]
    if status in (429, 503) or error.is_retriable:
        body["retriable"] = error.is_retriable
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
    if error.policy_label is not None:
        body["policy_label"] = error.policy_label
    if error.details:
        body["details"] = error.details
    return body


def render(error: Refusal) -> tuple[int, Headers, bytes]:
    """Status, headers (without the correlation id) and body of an error answer.

    429 and retriable 503 carry Retry-After in whole seconds, rounded up (RFC 9110 10.2.3), and X-Backoff-Ms.
    """
    status = STATUS[error.code]
    if error.retry_after_ms is None and (status == 429 or (status == 503 and error.is_retriable)):
        error.retry_after_ms = 1000
    body = orjson.dumps(envelope(error))
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_ms is not None and status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_ms / 1000))))
        headers.append((b"x-backoff-ms", b"%d" % error.retry_after_ms))
    headers += getattr(error, "headers", [])
    return status, headers, body


def short(text: str) -> str:
    """A message that quotes somebody, cut in the middle."""
    return text if len(text) <= 200 else f"{text[:60]} ... {text[-120:]}"
