"""Who changed what: one line for each request that was granted and changed something.

Admissions have lines of their own, with more in them. Refusals change nothing and are not told: they come as fast as
somebody sends them.
"""

from __future__ import annotations

from typing import Any

from orchestratord.ports import Telemetry

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_TOLD_ELSEWHERE = frozenset({"createTask"})


def is_told(method: str, operation_id: str) -> bool:
    """Whether granted requests for this operation are told."""
    return method in _CHANGING and operation_id not in _TOLD_ELSEWHERE


def tell(telemetry: Telemetry, scope: dict[str, Any], status: int, identity: str, correlation_id: str) -> None:
    telemetry.event(
        "change_granted",
        f"{identity} asked for {scope['method']} {scope['path']}",
        method=scope["method"],
        path=scope["path"],
        status=status,
        identity=identity,
        correlation_id=correlation_id,
    )
