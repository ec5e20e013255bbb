"""Coroutines that run without a Task do what they would do in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from orchestratord.infra.clock import SystemClock
from orchestratord.infra.steps import Steps, as_task
from tests.turns import turn_of_loop

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
        await turn_of_loop()
        assert told == ["one"]
        second.set_exception(ValueError("two"))
        for _ in range(3):
            await turn_of_loop()
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
        await turn_of_loop()
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
        await turn_of_loop()
        (steps,) = running
        steps.cancel()
        for _ in range(3):
            await turn_of_loop()
        assert (told, running, shared.cancelled()) == (["cancelled"], set(), False)

    run(scenario())


def test_it_can_be_cancelled_between_the_end_of_a_wait_and_what_follows() -> None:
    """As a Task: what it waited for is there, and all the same it goes on no further than to its `finally`."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        there, told = loop.create_future(), []
        running: set[Any] = set()

        async def work() -> None:
            try:
                await there
                told.append("went on")
            finally:
                told.append("settled")

        await outside(Steps(work(), loop, running).begin)
        there.set_result(None)
        (steps,) = running
        steps.cancel("as uvicorn does")
        await turn_of_loop()
        assert (told, running) == (["settled"], set())

    run(scenario())


@pytest.mark.parametrize("late", [False, True], ids=["of what it waits for", "after that"])
def test_a_cancellation_that_is_caught_is_over(late: bool) -> None:
    """It is raised once: the next wait is a wait again."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        there, later, told = loop.create_future(), loop.create_future(), []
        running: set[Any] = set()

        async def work() -> None:
            try:
                await there
            except asyncio.CancelledError:
                told.append(await later)

        await outside(Steps(work(), loop, running).begin)
        if late:
            there.set_result(None)
        (steps,) = running
        steps.cancel()
        await turn_of_loop()
        assert (told, running) == ([], {steps})
        later.set_result("later")
        await turn_of_loop()
        assert (told, running) == (["later"], set())

    run(scenario())


def test_cancelled_before_it_began_it_does_not_begin() -> None:
    async def scenario() -> None:
        told: list[str] = []
        running: set[Any] = set()

        async def work() -> None:
            told.append("begun")

        def caller() -> None:
            steps = Steps(work(), asyncio.get_running_loop(), running)
            steps.begin(soon=True)
            steps.cancel()

        await outside(caller)
        await turn_of_loop()
        assert (told, running) == ([], set())

    run(scenario())


def test_it_begins_a_turn_later_where_its_caller_is_in_the_midst_of_something() -> None:
    async def scenario() -> None:
        told: list[str] = []
        running: set[Any] = set()

        async def work() -> None:
            told.append("begun")

        def caller() -> None:
            Steps(work(), asyncio.get_running_loop(), running).begin(soon=True)
            assert len(running) == 1
            told.append("done")

        await outside(caller)
        await turn_of_loop()
        assert (told, running) == (["done", "begun"], set())

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
        await turn_of_loop()
        assert (seen, running) == ([None], set())

    run(scenario())


def test_what_it_raises_is_raised() -> None:
    async def scenario() -> None:
        async def work() -> None:
            raise LookupError("lost")

        with pytest.raises(LookupError):
            await outside(Steps(work(), asyncio.get_running_loop(), set()).begin)

    run(scenario())


def test_what_it_does_may_cancel_it() -> None:
    """As in a Task: the next thing it waits for is cancelled."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        running: set[Any] = set()
        first, never = loop.create_future(), loop.create_future()

        async def work() -> None:
            await first
            (steps,) = running
            steps.cancel()
            await never

        await outside(Steps(work(), loop, running).begin)
        first.set_result(None)
        for _ in range(3):
            await turn_of_loop()
        assert (never.cancelled(), running) == (True, set())

    run(scenario())
