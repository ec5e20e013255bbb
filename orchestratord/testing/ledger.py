"""The other half of the books: what the app started to answer, to be compared with what was verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from orchestratord.wire.responses import watched

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BELOW_THE_APP = frozenset({408, 414, 431, 503})  # statuses the HTTP server itself may answer with


@dataclass(frozen=True, slots=True)
class Entry:
    """One response the app started."""

    correlation_id: str
    status: int
    method: str
    path: str


class ServedLedger:
    """Outermost ASGI wrapper; changes nothing. Responses written by the HTTP server itself never pass it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = Lock()
        self._entries: list[Entry] = []

    @property
    def entries(self) -> list[Entry]:
        """A copy of all entries so far."""
        with self._lock:
            return list(self._entries)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        def told(status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
            named = {bytes(name).lower(): bytes(value) for name, value in headers}
            correlation_id = named.get(b"x-correlation-id", b"").decode("latin-1")
            with self._lock:
                self._entries.append(Entry(correlation_id, status, scope["method"], scope["path"]))

        await self._app(scope, receive, watched(scope, send, told) if scope["type"] == "http" else send)

    def balance(self, verified: Iterable[tuple[str, int]], *, below: Collection[int] = BELOW_THE_APP) -> list[str]:
        """Every response that stands in one of the two ledgers only.

        below: statuses that may be verified though the app never sent them.
        """
        entries = self.entries
        served = Counter((entry.correlation_id, entry.status) for entry in entries)
        seen = Counter(verified)
        unverified = served - seen
        lines = []
        for entry in reversed(entries):  # of equal ones the later ones are missing
            key = (entry.correlation_id, entry.status)
            if unverified[key] > 0:
                unverified[key] -= 1
                lines.append(f"served, not verified: {entry.method} {entry.path} {entry.status} {entry.correlation_id}")
        unserved = (seen - served).elements()
        ghosts = [f"verified, not served by the app: {status} {key}" for key, status in unserved if status not in below]
        return lines[::-1] + ghosts
