"""Waiting for a fact to be durable."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from orchestratord.domain.errors import StorageUnavailable
from orchestratord.ports import JournalUnavailable


async def durable(ticket: Any) -> None:
    """Return when the fact is safe. Shielded: a waiter that is cancelled must not cancel everybody's ticket.

    Raises StorageUnavailable when the journal failed.
    """
    try:
        await asyncio.shield(cast("asyncio.Future[Any]", ticket))
    except JournalUnavailable as error:
        raise StorageUnavailable(retry_after_ms=1000) from error
