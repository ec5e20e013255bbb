"""Who may be in the cache at one time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Many together, or one alone. Whoever wants to be alone waits for a moment without anybody, however long that
    takes, and keeps nobody out meanwhile.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._taken = False
        self._left = asyncio.Event()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        while self._taken:
            await self._left.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._leave()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        while self._inside or self._taken:
            await self._left.wait()
        self._taken = True
        try:
            yield
        finally:
            self._taken = False
            self._leave()

    def _leave(self) -> None:
        """Wake everybody who waits; who comes later waits for the next one to leave."""
        self._left.set()
        self._left = asyncio.Event()
