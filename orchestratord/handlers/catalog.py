"""The model catalog."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.entry import ModelState
from orchestratord.handlers import Services
from orchestratord.wire import cursors
from orchestratord.wire.catalog import entry_body, parse_entry
from orchestratord.wire.responses import Reply


async def create_catalog_model(app: Services, body: dict[str, Any]) -> Reply:
    entry = await app.catalog.create(parse_entry(body))
    return Reply(201, entry_body(entry), [(b"location", f"/v1/catalog/models/{entry.id}".encode())])


async def list_catalog_models(app: Services, state: ModelState | None, limit: int | None, cursor: str | None) -> Reply:
    found = app.catalog.page(cursors.parse_key("models", cursor), state)
    page, following = cursors.page(found, limit, lambda entry: cursors.key("models", entry.created_ms, entry.id))
    return Reply(200, {"items": [entry_body(entry) for entry in page], "next_cursor": following})


async def get_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    return Reply(200, entry_body(app.catalog.get(id)))


async def delete_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002
    await app.catalog.delete(id)
    return Reply(204)


async def verify_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002
    await app.catalog.verify(id)
    return Reply(202, {"status": "started"})


async def set_catalog_model_state(app: Services, id: str, body: dict[str, Any]) -> Reply:  # noqa: A002
    entry = await app.catalog.set_state(id, body["state"], body.get("deadline_ms"))
    return Reply(202, entry_body(entry))
