"""A coroutine without a Task: begun at once, in the very call that brought its work.

Most requests never wait, or wait once; a Task, which begins a turn of the loop later and is entered in the list of all
tasks, costs some microseconds that they do not need. What does need one (`asyncio.current_task`) awaits `as_task`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, Protocol


@types.coroutine
def as_task() -> Generator[None, None, None]:
    """From here on the caller runs in a Task; it does already, unless `Steps` runs it."""
    if asyncio.current_task() is None:
        yield


class Running(Protocol):
    """Who has it from its first wait on, to cancel it, and is told of its end: a set, or what acts as one."""

    def add(self, steps: Any, /) -> None: ...

    def discard(self, steps: Any, /) -> None: ...


class Steps:
    """`running` has it from its first wait until its end, as uvicorn has its tasks: to be cancelled."""

    __slots__ = ("_cancelled", "_context", "_coroutine", "_loop", "_running", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, running: Running) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._running = running
        self._context = copy_context()
        self._cancelled = False
        self._waits_for: asyncio.Future[Any] | None = None

    def begin(self, *, soon: bool = False) -> None:
        """Its first step: now, and raises what that raises; a turn later where it would take a Task for its own, or,
        `soon`, where the caller is in the midst of something."""
        if soon or asyncio.current_task(self._loop) is not None:
            self._running.add(self)
            self._loop.call_soon(self._step, context=self._context)
            return
        self._context.run(self._step)
        if self._waits_for is not None:
            self._running.add(self)

    def _step(self, _: Any = None) -> None:
        coroutine = self._coroutine
        try:
            if self._cancelled:
                self._cancelled = False
                waits_for = coroutine.throw(asyncio.CancelledError())
            else:
                waits_for = coroutine.send(None)
        except BaseException as error:
            self._waits_for = None
            self._running.discard(self)
            if not isinstance(error, StopIteration | asyncio.CancelledError):
                raise
            return
        if waits_for is None:  # it wants a Task
            waits_for = self._loop.create_task(coroutine, context=self._context)
            waits_for.add_done_callback(self._over)
        else:
            waits_for._asyncio_future_blocking = False
            waits_for.add_done_callback(self._step, context=self._context)
        self._waits_for = waits_for
        if self._cancelled and waits_for.cancel():  # cancelled by what it did itself
            self._cancelled = False

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(self)

    def cancel(self, msg: Any = None) -> None:
        """As Task.cancel."""
        if self._waits_for is None or not self._waits_for.cancel():
            self._cancelled = True
