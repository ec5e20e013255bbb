"""Tickets: futures whose failure nobody has to look at, and the transcripts they resolve to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from orchestratord.domain.facts import Fact, Finished, TranscriptSource
from orchestratord.ports import Artifact, JournalUnavailable

TicketFuture = asyncio.Future[Any]


def resolve(ticket: TicketFuture, result: object = None) -> TicketFuture:
    if not ticket.done():  # a waiter that forgot `shield` may have cancelled it
        ticket.set_result(result)
    return ticket


def fail(ticket: TicketFuture, reason: str) -> TicketFuture:
    if not ticket.done():
        ticket.set_exception(JournalUnavailable(reason))
        ticket.exception()  # not every fact has a waiter: asyncio need not warn about the others
    return ticket


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
