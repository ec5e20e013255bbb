"""Tasks: admit, look up, stream, cancel."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.errors import InvalidParams
from orchestratord.domain.request import Caller
from orchestratord.handlers import Services
from orchestratord.wire import canonical, cursors
from orchestratord.wire.responses import EventStream, Reply
from orchestratord.wire.tasks import admission_body, budget_headers, parse_request, status_body


async def create_task(app: Services, body: dict[str, Any], caller: Caller, x_trust_policy: str | None) -> Reply:
    try:
        fingerprint = await canonical.fingerprint_of(body)
    except ValueError as error:
        raise InvalidParams(str(error), rule="body_syntax") from None
    request, strict = parse_request(body), x_trust_policy == "strict"
    del body  # a thousand may wait for one commit
    task, replay = await app.admission.admit(request, fingerprint, caller, strict_trust=strict)
    headers = [(b"location", f"/v1/tasks/{task.task_id}".encode())]
    headers += budget_headers(app.sessions.account(task.session_id))
    if replay:
        headers.append((b"x-idempotent-replay", b"true"))
    return Reply(202, admission_body(task.task_id, task.admitted.admission), headers)


async def list_tasks(
    app: Services, state: str | None, session_id: str | None, limit: int | None, cursor: str | None
) -> Reply:
    below = cursors.parse_order(cursor)
    found = app.tasks.newest(below, state, session_id.lower() if session_id else None)
    page, following = cursors.page(found, limit, lambda task: cursors.order(task.admitted.order))
    return Reply(200, {"items": [status_body(t, app.tasks.waiting(t)) for t in page], "next_cursor": following})


async def get_task(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    task = app.tasks.get(id.lower())
    return Reply(200, status_body(task, app.tasks.waiting(task)))


async def stream_task(
    app: Services,
    id: str,  # noqa: A002 - the contract's name
    after: int | None,
    last_event_id: str | None,
) -> Reply | EventStream:
    cursor = await app.streams.follow(id.lower(), last_event_id, after)
    if cursor is None:
        return Reply(204)
    return EventStream(cursor, budget_headers(app.sessions.account(cursor.task.session_id)))


async def cancel_task(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    seal = await app.tasks.cancel(id.lower())
    return Reply(204, headers=[(b"x-last-event-id", b"%d" % seal)])
