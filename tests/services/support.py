"""What the tests of the services share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.infra.journal.tickets import Ticket
from orchestratord.testing.live import LiveApp
from orchestratord.testing.session import VerifyingSession
from orchestratord.wire.transcript import transcript
from tests.http.support import state_of, submit, task, wait_for

__all__ = [
    "BreakingJournal",
    "health",
    "leases",
    "records",
    "running",
    "soon",
    "state_of",
    "submit",
    "task",
    "wait_for",
]


class BreakingJournal(MemoryJournal):
    """Once `breaking`, it takes the next fact and then fails to write it, and everything after it."""

    def __init__(self) -> None:
        super().__init__(transcript)
        self.breaking = False

    def append(self, fact: Any) -> Ticket:
        ticket = super().append(fact)
        if self.breaking:
            self.broken = "no space left on device"
        return ticket

    def mend(self) -> None:
        self.breaking, self.broken = False, None


def leases(app: LiveApp) -> int:
    """Slots held, over all pools."""
    return app.call(lambda: sum(len(pool.leases) for pool in app.daemon.core.pools.values()))


def health(session: VerifyingSession, pool: str = "home") -> dict[str, Any]:
    found: dict[str, Any] = session.get(f"/v1/pools/{pool}/health").json()
    return found


def records(app: LiveApp, event: str | None = None) -> Iterator[dict[str, Any]]:
    """The log so far, or the records of one event."""
    for line in app.log.getvalue().splitlines():
        record = json.loads(line)
        if event is None or record["event"] == event:
            yield record


def running(app: LiveApp, session: VerifyingSession, **fields: Any) -> str:
    """A task that has given one token and now waits."""
    app.call(app.engine().hold)
    task_id = submit(session, **fields)
    app.settle()
    app.call(lambda: app.engine().step(1))
    app.settle()
    assert state_of(session, task_id) == "running"
    return task_id


def soon(fn: Callable[[], object]) -> None:
    """Call `fn` on the running loop's next turn."""
    asyncio.get_running_loop().call_soon(fn)
