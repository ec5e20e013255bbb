"""What stands in for uvicorn's own state of a connection does what that does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections import deque
from typing import Any
from unittest.mock import Mock

from uvicorn.protocols.http.flow_control import FlowControl

from orchestratord.connection import Protocol
from orchestratord.frugal import Flow, Pipeline
from orchestratord.testing.live import LiveApp
from tests.http.support import RawConnection, readers, submit, wait_for


def free_to_write(flow: Flow) -> bool:
    """Whether `drain` returns at once."""
    drain = flow.drain()
    try:
        drain.send(None)
    except StopIteration:
        return True
    finally:
        drain.close()
    return False


def test_only_the_connection_that_is_full_waits() -> None:
    async def run() -> None:
        full, other = Flow(Mock()), Flow(Mock())
        assert free_to_write(full)
        full.pause_writing()
        other.resume_writing()
        opened_meanwhile = Flow(Mock())
        assert [free_to_write(flow) for flow in (full, other, opened_meanwhile)] == [False, True, True]
        assert [flow.write_paused for flow in (full, other, opened_meanwhile)] == [True, False, False]
        waiting = asyncio.ensure_future(full.drain())
        full.resume_writing()
        await waiting
        full.pause_writing()
        assert [free_to_write(flow) for flow in (full, other, opened_meanwhile)] == [False, True, True]

    asyncio.run(run())


def test_it_is_all_that_uvicorn_keeps() -> None:
    """A field that a new version adds is not forgotten."""
    assert vars(Flow(Mock())).keys() == vars(FlowControl(Mock())).keys()


def test_the_pipeline_keeps_the_order_of_a_deque() -> None:
    draw = random.Random(5)
    ours, theirs = Pipeline(), deque[Any]()
    for number in range(500):
        if draw.random() < 0.5:
            ours.appendleft(number)
            theirs.appendleft(number)
        elif theirs:
            assert ours.pop() == theirs.pop()
        assert list(ours) == list(theirs)
        assert bool(ours) == bool(theirs)


def test_an_open_stream_is_no_task_and_keeps_no_request() -> None:
    """What a reader costs is a cursor and a connection."""
    with LiveApp() as app, app.session() as session, contextlib.ExitStack() as opened:
        app.call(app.engine().hold)
        ids = [submit(session) for _ in range(5)]
        app.settle()
        before = app.call(lambda: len(asyncio.all_tasks()))
        for task_id in ids:
            connection = opened.enter_context(RawConnection(app.url))
            connection.get(f"/v1/tasks/{task_id}/stream")
            assert connection.head()[0] == 200
        app.settle()
        assert readers(app) == 5
        assert app.call(lambda: len(asyncio.all_tasks())) == before
        kept = app.call(lambda: [p for p in gc.get_objects() if type(p).__mro__[1:2] == (Protocol,)])
        assert [(p.scope, p.headers, p.url) for p in kept if p._bound is not None] == [({}, [], b"")] * 5
        app.call(app.engine().release_hold)
        wait_for(lambda: readers(app) == 0, "the streams end")
