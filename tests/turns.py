"""Turns of the event loop, for tests of what happens between two of them. No time passes."""

from __future__ import annotations

import asyncio


async def turn_of_loop() -> None:
    """Let everything run that is ready now."""
    await asyncio.sleep(0)  # noqa: TID251
