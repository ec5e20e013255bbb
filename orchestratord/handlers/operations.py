"""Operational routes: metrics, health, readiness, documentation, the contracts themselves."""

from __future__ import annotations

import asyncio

from orchestratord import contract
from orchestratord.handlers import Services
from orchestratord.wire.docs import docs_page
from orchestratord.wire.responses import Reply


async def get_metrics(app: Services) -> Reply:
    content_type, text = app.metrics()
    return Reply(200, text, media_type=content_type)


async def get_health(app: Services) -> Reply:
    return Reply(200, {"status": "ok"})


async def get_readiness(app: Services) -> Reply:
    reasons = app.readiness()
    return Reply(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})


async def get_docs(app: Services) -> Reply:
    return Reply(200, docs_page(), media_type=b"text/html; charset=utf-8")


async def get_contract(app: Services, name: str) -> Reply:
    document, _, notation = name.partition(".")
    if notation == "json":
        return Reply(200, contract.load(document))
    text = await asyncio.to_thread(contract.as_yaml, document)  # the first time it takes a while
    return Reply(200, text, media_type=b"application/yaml")
