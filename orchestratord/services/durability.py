"""Waiting for a fact to be durable."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.errors import StorageUnavailable
from orchestratord.ports import JournalUnavailable


async def durable(ticket: Any) -> None:
    """Return when the fact is safe. Raises StorageUnavailable when the journal failed."""
    try:
        await ticket
    except JournalUnavailable as error:
        raise StorageUnavailable(retry_after_ms=1000) from error
