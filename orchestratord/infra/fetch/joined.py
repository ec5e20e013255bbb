"""One piece of work for all who ask for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Shared(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0
    ending: bool = False


class Joined(Generic[T]):
    """Whoever asks for what is on its way shares the outcome. When nobody waits any more, the work is cancelled."""

    def __init__(self) -> None:
        self._running: dict[str, _Shared[T]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while (shared := self._running.get(key)) is not None and shared.ending:
            await asyncio.wait([shared.task])
        if shared is None:
            shared = self._running[key] = _Shared(asyncio.get_running_loop().create_task(work(), name=f"fetch {key}"))
            shared.task.add_done_callback(lambda task: self._over(key, task))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                shared.ending = True
                shared.task.cancel()
                await asyncio.wait([shared.task])

    def _over(self, key: str, task: asyncio.Task[T]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did any more, it is no news

    async def close(self) -> None:
        """Cancel everything and wait for its end. Idempotent."""
        tasks = [shared.task for shared in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
