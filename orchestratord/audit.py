"""Who changed what: one line for each request that was granted and changed something.

Admissions have lines of their own, with more in them. Refusals change nothing and are not told: they come as fast as
somebody sends them.
"""

from __future__ import annotations

from typing import Any

from orchestratord.ports import Telemetry

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
TOLD_ELSEWHERE = frozenset({"/v1/tasks"})


class Audit:
    """Behind the guard: whoever gets here has an identity."""

    def __init__(self, app: Any, *, telemetry: Telemetry) -> None:
        self.app = app
        self._telemetry = telemetry

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in CHANGING or scope["path"] in TOLD_ELSEWHERE:
            await self.app(scope, receive, send)
            return

        async def told(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                self._tell(scope, message["status"])
            await send(message)

        await self.app(scope, receive, told)

    def _tell(self, scope: dict[str, Any], status: int) -> None:
        state = scope["state"]
        identity = state["identity"]
        self._telemetry.event(
            "change_granted",
            f"{identity} asked for {scope['method']} {scope['path']}",
            method=scope["method"],
            path=scope["path"],
            status=status,
            identity=identity,
            correlation_id=state["correlation_id"],
        )
