"""Artifacts."""

from __future__ import annotations

from typing import Any

from orchestratord.handlers import Services
from orchestratord.wire import cursors
from orchestratord.wire.artifacts import artifact_body, artifact_ref
from orchestratord.wire.responses import Reply


async def create_artifact(app: Services, body: dict[str, Any]) -> Reply:
    artifact = await app.artifacts.create(
        body["kind"], body["content"], body.get("tags", []), body.get("parent"), body.get("metadata", {})
    )
    return Reply(201, artifact_ref(artifact), [(b"location", f"/v1/artifacts/{artifact.id}".encode())])


async def list_artifacts(app: Services, limit: int | None, cursor: str | None, tag: str | None) -> Reply:
    after = cursors.parse_key("artifacts", cursor)
    size = cursors.size(limit)
    found = await app.artifacts.list(size + 1, after, tag)
    page, following = cursors.page(found, limit, lambda a: cursors.key("artifacts", a.created_ms, a.id))
    return Reply(200, {"items": [artifact_ref(a) for a in page], "next_cursor": following})


async def get_artifact(app: Services, id: str, if_none_match: str | None) -> Reply:  # noqa: A002
    artifact = await app.artifacts.get(id)
    etag = f'"{artifact.id}"'
    headers = [(b"etag", etag.encode())]
    held = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if etag in held or held == ["*"]:  # RFC 9110 13.1.2
        return Reply(304, headers=headers)
    return Reply(200, artifact_body(artifact), headers)
