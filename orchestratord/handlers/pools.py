"""Pools and capabilities."""

from __future__ import annotations

from typing import Any

from orchestratord.handlers import Services
from orchestratord.services.pools import operation_body
from orchestratord.wire import cursors
from orchestratord.wire.responses import Reply


async def list_pools(app: Services, limit: int | None, cursor: str | None) -> Reply:
    after = cursors.parse_text(cursor)
    found = (pool for pool in app.pools.all() if after is None or pool.id > after)
    page, following = cursors.page(found, limit, lambda pool: cursors.text(pool.id))
    return Reply(200, {"items": [app.pools.summary(pool) for pool in page], "next_cursor": following})


async def get_pool_health(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    return Reply(200, app.pools.health(id))


async def get_capabilities(app: Services) -> Reply:
    return Reply(200, app.pools.capabilities())


async def drain_pool(app: Services, id: str, body: dict[str, Any]) -> Reply:  # noqa: A002
    return Reply(202, operation_body(await app.operations.drain(id, body["deadline_ms"])))


async def reload_pool(app: Services, id: str, body: dict[str, Any]) -> Reply:  # noqa: A002
    return Reply(202, operation_body(await app.reloads.reload(id, body["new_model_ref"])))


async def resume_pool(app: Services, id: str) -> Reply:  # noqa: A002
    return Reply(202, operation_body(await app.operations.resume(id)))
