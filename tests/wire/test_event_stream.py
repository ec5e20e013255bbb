"""The body of a stream on its way into the server's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from orchestratord.wire.responses import WIRE, Body, EventStream, Exchange
from tests.engines.support import turn


class Source:
    """Gives its parts one by one. The last is followed by the end; all but the first count as plain tokens."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)
        self.open = True
        self.flowing = False
        self.told: list[str] = []

    def follow(
        self,
        notify: Callable[[], object],
        abort: Callable[[], object],
        write: Callable[[bytes], object] | None = None,
    ) -> None:
        self.notify, self.abort = notify, abort

    def take(self) -> bytes:
        self.flowing = self.open and bool(self.parts)
        return self.parts.pop(0) if self.parts else b""

    @property
    def over(self) -> bool:
        return not self.open and not self.parts

    def blocked(self) -> None:
        self.told.append("blocked")

    def unblocked(self) -> None:
        self.told.append("unblocked")

    def close(self) -> None:
        self.told.append("closed")


class Connection:
    """Takes `room` bytes, then is full until told otherwise."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = b""
        self.ended = False
        self.unread = False
        self.faults: list[Exception | None] = []

    @property
    def full(self) -> bool:
        return len(self.got) >= self.room

    def start(self, status: int, headers: Any) -> None:
        self.begun = status, dict(headers)[b"x-correlation-id"]

    def bind(self, body: Body) -> Callable[[bytes], object]:
        self.body = body
        return self.write

    def end(self) -> None:
        assert not self.ended, "two ends"
        self.ended = True

    def write(self, data: bytes) -> None:
        assert not self.full, "written to a connection that is full"
        self.got += data
        if self.full:
            self.body.filled()

    def abort(self, fault: Exception | None = None) -> None:
        self.faults.append(fault)


def streamed(source: Source, connection: Connection, act: Callable[[], None]) -> list[dict[str, Any]]:
    """Stream, do something meanwhile, and give what was sent past the connection."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def scenario() -> None:
        scope = {"extensions": {WIRE: connection}}
        exchange = Exchange(scope, None, send, b"an-id")  # type: ignore[arg-type]
        stream = asyncio.ensure_future(EventStream(source).give(exchange))
        while not hasattr(source, "notify"):
            await turn()
        await turn()
        act()
        assert stream.done(), "the call outlasts the beginning of its stream"
        await stream

    asyncio.run(scenario())
    return sent


def test_a_full_connection_is_left_alone_until_it_drains() -> None:
    source, connection = Source(b"one", b"two"), Connection(room=3)

    def act() -> None:
        source.notify()
        assert connection.got == b"one"
        connection.room = 100
        source.notify()
        assert connection.got == b"one", "it has not said that it drained"
        source.open = False
        connection.body.drained()
        assert connection.got == b"onetwo"

    sent = streamed(source, connection, act)
    assert sent == []
    assert connection.begun == (200, b"an-id")
    assert connection.ended
    assert source.told == ["blocked", "unblocked", "closed"]  # once: there may be a thousand of them at every token


def test_tokens_are_written_as_they_come_and_the_end_is_noticed() -> None:
    source, connection = Source(), Connection(room=100)

    def act() -> None:
        for part in (b"a", b"b"):
            source.parts.append(part)
            source.notify()
        assert connection.got == b"ab"
        source.open = False
        source.parts.append(b"end")
        source.notify()

    streamed(source, connection, act)
    assert (connection.got, connection.ended) == (b"abend", True)
    assert source.told == ["closed"]


def test_a_reader_that_leaves_ends_the_stream_without_an_end() -> None:
    source, connection = Source(b"a"), Connection(room=100)

    def act() -> None:
        connection.body.lost()

    streamed(source, connection, act)
    assert not connection.ended
    assert source.told == ["closed"]


def test_a_source_that_fails_ends_its_own_stream_and_tells_why() -> None:
    """Whoever has news calls this for every reader in turn: it must come back."""
    source, connection = Source(b"a"), Connection(room=100)
    fault = ValueError("a fault of ours")

    def fail() -> bytes:
        raise fault

    def act() -> None:
        source.take = fail  # type: ignore[method-assign]
        source.notify()

    streamed(source, connection, act)
    assert (connection.got, connection.ended) == (b"a", False)
    assert connection.faults == [fault]
    assert source.told == ["closed"]
