"""What llama-server's statuses and error bodies mean."""

from __future__ import annotations

from typing import Any

from orchestratord.infra.engines.transport import ErrorKind
from orchestratord.ports import EngineError


def kind(status: int) -> ErrorKind:
    """What a status means, of a reply or inside an error frame."""
    if status in (429, 503):  # no slot, or the model is still loading: no fault of the request or the engine
        return "full"
    if status == 501 or 400 <= status < 500:
        return "refused"
    return "failed" if status >= 500 else "protocol"


def said(parsed: Any, fallback: str) -> str:
    """The engine's own message out of an error body, bounded."""
    error = parsed.get("error") if isinstance(parsed, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return (message if isinstance(message, str) and message else fallback)[:500]


def refusal(path: str, status: int, parsed: Any) -> EngineError:
    return EngineError(kind(status), said(parsed, f"llama-server answers {path} with status {status}"))
