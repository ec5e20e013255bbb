"""Tickets: when a fact is durable, and the transcripts that some resolve to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from orchestratord.domain.facts import Fact, Finished, TranscriptSource
from orchestratord.ports import Artifact, JournalUnavailable


class Ticket:
    """See `ports.Ticket`. Used on the loop's thread only.

    What depends on a fact is told in the very call that resolves its ticket: a future would tell it a turn of the loop
    later, and there are several facts before a first token. A refusal is told a turn later, when all that it takes
    along has been refused: it may come in the midst of the step that records the fact.
    """

    __slots__ = ("_done", "_error", "_loop", "_result", "_tell")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done = False
        self._result: Any = None
        self._error: JournalUnavailable | None = None
        self._tell: list[tuple[Callable[[Any], object], Context]] = []

    def done(self) -> bool:
        return self._done

    def result(self) -> Any:
        """Only of one that is done."""
        assert self._done, "nothing is decided yet"
        if self._error is not None:
            raise self._error
        return self._result

    def exception(self) -> JournalUnavailable | None:
        assert self._done, "nothing is decided yet"
        return self._error

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        if self._done:
            self._loop.call_soon(fn, self)
        else:
            self._tell.append((fn, copy_context()))

    def resolve(self, result: object = None) -> Ticket:
        self._done, self._result = True, result
        tell, self._tell = self._tell, []
        for fn, context in tell:
            try:
                context.run(fn, self)
            except Exception as error:  # as of a future: the others are told all the same
                report = {"message": "what waited for a fact failed", "exception": error}
                self._loop.call_exception_handler(report)
        return self

    def fail(self, error: JournalUnavailable) -> Ticket:
        self._done, self._error = True, error
        for fn, context in self._tell:
            self._loop.call_soon(fn, self, context=context)
        self._tell = []
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        """Each waiter has a future of its own: one that is cancelled takes nothing from the others."""
        if not self._done:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._tell.append((partial(_release, waiter), copy_context()))
            yield from waiter
        return self.result()


def _release(waiter: asyncio.Future[None], _: Ticket) -> None:
    if not waiter.done():
        waiter.set_result(None)


def transcripts_by(
    archive: Callable[[TranscriptSource], Artifact], loop: asyncio.AbstractEventLoop
) -> Callable[[Fact], Artifact | None]:
    """A function that gives the transcript a fact brings, if any, and never raises.

    An outcome must be stored even when its transcript cannot be made; the loop's handler hears of that.
    """

    def transcript(fact: Fact) -> Artifact | None:
        if not isinstance(fact, Finished) or fact.transcript is None:
            return None
        try:
            return archive(fact.transcript)
        except Exception as error:
            report = {"message": f"the transcript of task {fact.task_id} is lost", "exception": error}
            loop.call_soon_threadsafe(loop.call_exception_handler, report)
            return None

    return transcript
