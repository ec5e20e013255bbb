"""Sessions as clients see them."""

from __future__ import annotations

from orchestratord.domain.budget import Account
from orchestratord.domain.core import Core
from orchestratord.domain.session import Session
from orchestratord.ports import Clock
from orchestratord.services.durability import durable


class Sessions:
    def __init__(self, core: Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock

    def get(self, session_id: str) -> tuple[Session, int, float]:
        """(session, turns_max, seconds to live). Raises NotFound; never creates one."""
        now = self._clock.now()
        session = self._core.session(session_id, now)
        return session, self._core.sessions.turns_max, self._core.sessions.ttl_left(session, now)

    def account(self, session_id: str) -> Account | None:
        """The session's spending; None once it is gone."""
        session = self._core.sessions.get(session_id, self._clock.now())
        return session.account if session is not None else None

    async def delete(self, session_id: str) -> None:
        """Cancel its tasks and forget it, durably. Raises NotFound, StorageUnavailable."""
        tickets = self._core.delete_session(session_id, self._clock.now(), self._clock.wall_ms())
        for ticket in tickets:
            await durable(ticket)
