"""What uvicorn keeps for each connection, in 2 KiB less: an Event and a deque each begin with room for 64 items."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

SET = asyncio.Event()  # of every connection that takes what is written to it, or is streamed to; nobody clears it
SET.set()


class Flow(FlowControl):
    """Makes its event when there is something to wait for: seldom."""

    __slots__ = ()

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = SET

    def pause_writing(self) -> None:
        if not self.write_paused:
            self._is_writable_event = asyncio.Event()
        super().pause_writing()


class Pipeline(list[Any]):
    """A deque as far as uvicorn uses one: short (`server.PIPELINED`), and nearly always empty."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)
