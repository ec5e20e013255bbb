"""Blocking work in threads: a cancel leaves no thread behind that still has a file in its hands."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestratord.infra.fetch.threads import off_loop
from tests.engines.support import turn


def test_a_cancel_waits_for_its_thread_however_often_it_is_repeated() -> None:
    begun, go_on = threading.Event(), threading.Event()
    over: list[bool] = []

    def work() -> None:
        begun.set()
        go_on.wait(10)
        over.append(True)

    async def cancelled() -> None:
        task = asyncio.ensure_future(off_loop(work))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await turn()
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over == [True]

    asyncio.run(cancelled())


def test_what_the_thread_raises_comes_out() -> None:
    def work() -> None:
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        asyncio.run(off_loop(work))
