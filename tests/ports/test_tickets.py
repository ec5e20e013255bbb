"""What a ticket tells, whom, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

from orchestratord.infra.journal.tickets import Ticket
from orchestratord.ports import JournalUnavailable

WHOSE: ContextVar[str] = ContextVar("WHOSE", default="nobody's")


def in_a_loop(body: Callable[[asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
    async def run() -> None:
        await body(asyncio.get_running_loop())

    asyncio.run(run())


def test_what_waits_for_a_fact_is_told_in_the_call_that_resolves_it() -> None:
    """In order, and each in the context in which it asked."""

    async def body(loop: asyncio.AbstractEventLoop) -> None:
        ticket, told = Ticket(loop), []
        for whose in ("a", "b"):
            WHOSE.set(whose)
            ticket.add_done_callback(lambda ticket: told.append((WHOSE.get(), ticket.result())))
        WHOSE.set("c")
        ticket.resolve("stored")
        assert told == [("a", "stored"), ("b", "stored")]

    in_a_loop(body)


def test_who_asks_too_late_or_of_a_refusal_is_told_a_turn_later() -> None:
    """It is in the midst of the step that has recorded the fact."""

    async def body(loop: asyncio.AbstractEventLoop) -> None:
        resolved, refused, late, told = Ticket(loop), Ticket(loop), Ticket(loop), []
        refused.add_done_callback(lambda ticket: told.append("refused"))
        late.fail(JournalUnavailable("no"))
        late.add_done_callback(lambda ticket: told.append("late"))
        resolved.resolve()
        resolved.add_done_callback(lambda ticket: told.append("resolved"))
        refused.fail(JournalUnavailable("no"))
        assert not told
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn
        assert told == ["late", "resolved", "refused"]

    in_a_loop(body)


def test_a_callback_that_fails_keeps_nothing_from_the_others() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        reports, told, ticket = [], [], Ticket(loop)
        loop.set_exception_handler(lambda _, report: reports.append(report["exception"]))
        ticket.add_done_callback(lambda ticket: 1 // 0)
        ticket.add_done_callback(lambda ticket: told.append(ticket.exception()))
        ticket.resolve()
        assert told == [None]
        assert [type(error) for error in reports] == [ZeroDivisionError]

    in_a_loop(body)


def test_a_waiter_that_is_cancelled_takes_nothing_from_the_others() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        async def wait() -> str:
            return str(await ticket)

        ticket = Ticket(loop)
        first, second = loop.create_task(wait()), loop.create_task(wait())
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn
        first.cancel()
        await asyncio.wait({first})
        assert (first.cancelled(), ticket.done()) == (True, False)
        ticket.resolve("stored")
        assert await second == "stored"

    in_a_loop(body)
