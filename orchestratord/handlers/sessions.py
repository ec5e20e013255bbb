"""Sessions."""

from __future__ import annotations

from orchestratord.handlers import Services
from orchestratord.wire.responses import Reply
from orchestratord.wire.tasks import session_body


async def get_session(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    session, turns_max, ttl_left_s = app.sessions.get(id.lower())
    return Reply(200, session_body(session, turns_max, ttl_left_s))


async def delete_session(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    await app.sessions.delete(id.lower())
    return Reply(204)
