"""What stands in for uvicorn's own state of a connection does what that does."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any
from unittest.mock import Mock

from uvicorn.protocols.http.flow_control import FlowControl

from orchestratord.frugal import Flow, Pipeline


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
