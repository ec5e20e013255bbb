"""Coroutines that run without a Task do what they would do in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from orchestratord.infra.clock import SystemClock
from orchestratord.infra.steps import Steps, as_task

WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def outside(begin: Callable[[], None]) -> None:
    """Call it where a server would: in no Task."""
    called = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            begin()
        except Exception as error:
            called.set_exception(error)
        else:
            called.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await called


def test_what_never_waits_is_over_at_once() -> None:
    async def scenario() -> None:
        told: list[str] = []
        running: set[Any] = set()

        async def work() -> None:
            told.append("done")

        await outside(Steps(work(), asyncio.get_running_loop(), running).begin)
        assert (told, running) == (["done"], set())

    run(scenario())


def test_it_goes_on_with_what_it_waited_for_and_in_its_own_context() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        told: list[Any] = []
        running: set[Any] = set()

        async def work() -> None:
            token = WHOSE.set("its own")
            told.append(await first)
            try:
                await asyncio.shield(second)
            except ValueError as error:
                told.append(str(error))
            told.append(WHOSE.get())
            WHOSE.reset(token)

        await outside(Steps(work(), loop, running).begin)
        assert WHOSE.get() == "nobody's"
        assert len(running) == 1
        first.set_result("one")
        await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop
        assert told == ["one"]
        second.set_exception(ValueError("two"))
        for _ in range(3):
            await asyncio.sleep(0)  # noqa: TID251
        assert (told, running) == (["one", "two", "its own"], set())

    run(scenario())


def test_it_gets_a_task_where_it_asks_for_one() -> None:
    """A limit needs one: it has to interrupt what it bounds."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        running: set[Any] = set()

        async def work() -> None:
            assert asyncio.current_task() is None
            try:
                async with SystemClock().limit(0.0):
                    await loop.create_future()
            except TimeoutError:
                await as_task()
                over.set_result(asyncio.current_task() is not None)

        await outside(Steps(work(), loop, running).begin)
        assert await over
        await asyncio.sleep(0)  # noqa: TID251
        assert running == set()

    run(scenario())


@pytest.mark.parametrize("in_a_task", [False, True])
def test_it_can_be_cancelled(in_a_task: bool) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        shared, told = loop.create_future(), []
        running: set[Any] = set()

        async def work() -> None:
            if in_a_task:
                await as_task()
            try:
                await asyncio.shield(shared)
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        await outside(Steps(work(), loop, running).begin)
        await asyncio.sleep(0)  # noqa: TID251
        (steps,) = running
        steps.cancel()
        for _ in range(3):
            await asyncio.sleep(0)  # noqa: TID251
        assert (told, running, shared.cancelled()) == (["cancelled"], set(), False)

    run(scenario())


def test_begun_within_a_task_it_is_not_taken_for_that_one() -> None:
    """The answer to one request may be what begins the next of its connection."""

    async def scenario() -> None:
        seen: list[Any] = []
        running: set[Any] = set()

        async def work() -> None:
            seen.append(asyncio.current_task())

        Steps(work(), asyncio.get_running_loop(), running).begin()
        assert (seen, len(running)) == ([], 1)
        await asyncio.sleep(0)  # noqa: TID251
        assert (seen, running) == ([None], set())

    run(scenario())


def test_what_it_raises_is_raised() -> None:
    async def scenario() -> None:
        async def work() -> None:
            raise LookupError("lost")

        with pytest.raises(LookupError):
            await outside(Steps(work(), asyncio.get_running_loop(), set()).begin)

    run(scenario())
