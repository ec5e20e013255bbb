"""What handlers return, and how it gets to the client. Headers are bytes; the correlation id is added here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson

from orchestratord.ports import OVER

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = list[tuple[bytes, bytes]]


class Exchange:
    """One request and the way back: past ASGI where the server offers its connection, else through `send`."""

    __slots__ = ("correlation_id", "receive", "scope", "send", "started", "wire")

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send, correlation_id: bytes) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.correlation_id = correlation_id
        self.started = False  # something of the answer is out
        self.wire: Wire | None = scope.get("extensions", {}).get(WIRE)

    def body(self) -> bytearray | None:
        """The request's body, if all of it is there and not empty."""
        return self.wire.whole() if self.wire is not None else None

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A complete answer."""
        wire = self.wire
        if wire is None or wire.full:
            await self._send_head(status, headers)
            await self.send({"type": "http.response.body", "body": body})
            return
        wire.reply(status, [*headers, (b"x-correlation-id", self.correlation_id)], body)
        self.started = True

    async def start(self, status: int, headers: Headers) -> None:
        """The head of an answer whose body follows, in chunks."""
        wire = self.wire
        if wire is None or wire.full:
            await self._send_head(status, headers)
            return
        wire.start(status, [*headers, (b"x-correlation-id", self.correlation_id)])
        self.started = True

    async def _send_head(self, status: int, headers: Headers) -> None:
        headers = [*headers, (b"x-correlation-id", self.correlation_id)]
        if self.wire is not None and self.wire.unread:
            headers.append((b"connection", b"close"))
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


class Answer(Protocol):
    """What handlers return."""

    @property
    def status(self) -> int: ...

    async def give(self, exchange: Exchange) -> None: ...


class Reply:
    """A complete answer. `body` None means no content at all; bytes go out as they are, the rest as JSON."""

    __slots__ = ("body", "headers", "media_type", "status")

    def __init__(
        self, status: int, body: Any = None, headers: Headers | None = None, media_type: bytes = b"application/json"
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers or []
        self.media_type = media_type

    async def give(self, exchange: Exchange) -> None:
        body = self.body
        if body is None:
            await exchange.reply(self.status, self.headers, b"")
            return
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        about = (b"content-type", self.media_type), (b"content-length", b"%d" % len(data))
        await exchange.reply(self.status, [*self.headers, *about], data)


class Source(Protocol):
    """Where a stream's bytes come from (`services.streams.Cursor`)."""

    def follow(
        self,
        notify: Callable[[], object],
        abort: Callable[[], object],
        write: Callable[[bytes], object] | None = None,
    ) -> None: ...

    def take(self) -> bytes: ...

    @property
    def flowing(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    def blocked(self) -> None: ...

    def unblocked(self) -> None: ...

    def close(self) -> None: ...


class Body(Protocol):
    """A body that is written past ASGI. The connection tells it what becomes of it."""

    def filled(self) -> None:
        """The client does not take what was written; nothing more should be."""

    def drained(self) -> None:
        """A full buffer has emptied."""

    def lost(self) -> None:
        """The client is gone."""


class Wire(Protocol):
    """The client's connection below ASGI (`connection.Protocol`), found in the scope's extensions under `WIRE`."""

    @property
    def unread(self) -> bool:
        """The request's body has not come to its end."""

    @property
    def full(self) -> bool:
        """The client does not take what was written; nothing more should be."""

    def whole(self) -> bytearray | None:
        """The request's body, if all of it is there; the connection keeps none of it."""

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A complete answer, in one write. Adds what HTTP wants, `Connection: close` too, and nothing else."""

    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer whose body follows, in chunks: see `bind`."""

    def bind(self, body: Body) -> Callable[[bytes], object]:
        """From now on the answer, whose head is out, is the body's until `end` or `lost`, also when the app has
        returned. Gives what writes a part of it, not empty: one function, since every token goes through it. It never
        raises: a connection that cannot be written is broken off, and the body told that it is lost."""

    def end(self) -> None:
        """The body is complete."""

    def abort(self, fault: Exception | None = None) -> None:
        """Break the connection off; what was not taken is dropped. A fault of ours that made it so is told."""


WIRE = "orchestratord.wire"


def _unheard(data: bytes) -> None:
    """Writes for a stream that is over."""


class _Pipe:
    """From one source into one connection, until either is done. `over` is called then."""

    __slots__ = ("_full", "_open", "_over", "_source", "_wire", "_write")  # there is one for each open stream

    def __init__(self, wire: Wire, source: Source, over: Callable[[], object] | None) -> None:
        self._wire = wire
        self._source = source
        self._over = over
        self._full = False
        self._open = True

    def begin(self) -> None:
        self._write = self._wire.bind(self)
        if self._open:
            self._source.follow(self._push, self._abort, self._write)
            if self._wire.full:
                self.filled()
            self._push()

    def _push(self) -> None:
        """Write what there is. Never raises: whoever has news for many readers must not fail at one of them."""
        if self._full:
            return  # `drained` goes on: a thousand readers who take nothing are told of every token
        source = self._source
        try:
            while self._open and not self._full:
                data = source.take()
                if data:
                    self._write(data)
                    if source.flowing:
                        break
                elif source.over:
                    self._wire.end()
                    self._close()
                    return
                else:
                    break
        except Exception as fault:
            self._wire.abort(fault)
            self._close()

    def filled(self) -> None:
        self._full = True
        self._source.blocked()

    def drained(self) -> None:
        self._full = False
        self._source.unblocked()
        self._push()

    def _abort(self) -> None:
        self._wire.abort()
        self._close()

    def lost(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._write = _unheard  # it knows this: a circle would wait for the collector
            self._source.close()
            if self._over is not None:
                self._over()


class EventStream:
    """A text/event-stream answer: writes whatever its source has, until the source or the client is done.

    Where the server offers its connection, parts of the body go straight into it, in the very call that found them, and
    the call of the app ends when the stream begins: what an open stream takes is a cursor and a connection, and no
    coroutine. Elsewhere they go through `send`.
    """

    __slots__ = ("headers", "source")
    status = 200

    def __init__(self, source: Source, headers: Headers | None = None) -> None:
        self.source = source
        self.headers: Headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *(headers or []),
        ]

    async def give(self, exchange: Exchange) -> None:
        wire = exchange.wire
        handed_over = False
        try:
            if wire is None:
                await self._through_asgi(exchange)
            else:
                await exchange.start(200, self.headers)
                handed_over = True
                _Pipe(wire, self.source, exchange.scope["extensions"].pop(OVER, None)).begin()
        finally:
            if not handed_over:
                self.source.close()

    async def _through_asgi(self, exchange: Exchange) -> None:
        # The pump has a task of its own: resuming it costs less than resuming the whole middleware chain, and the
        # request's task is free to notice that the client left.
        pump = asyncio.ensure_future(self._pump(exchange))
        gone = asyncio.ensure_future(self._gone(exchange.receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, exchange: Exchange) -> None:
        source = self.source
        more = asyncio.Event()
        pumping = asyncio.current_task()
        assert pumping is not None
        source.follow(more.set, pumping.cancel)
        send = exchange.send
        await exchange.start(200, self.headers)
        while True:
            more.clear()
            while data := source.take():
                source.blocked()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                source.unblocked()
            if source.over:
                break
            await more.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class _Watched:
    """A connection, and whoever wants to know how each answer begins."""

    def __init__(self, wire: Wire, told: Callable[[int, Headers], None]) -> None:
        self._wire = wire
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._told(status, headers)
        self._wire.reply(status, headers, body)

    def start(self, status: int, headers: Headers) -> None:
        self._told(status, headers)
        self._wire.start(status, headers)


def watched(scope: Any, send: Any, told: Callable[[int, Headers], None]) -> Any:
    """A `send` for the layer below. `told(status, headers)` is called when an answer begins, whichever way it takes."""
    extensions = scope.get("extensions", {})
    if WIRE in extensions:
        extensions[WIRE] = _Watched(extensions[WIRE], told)

    async def telling(message: Any) -> None:
        if message["type"] == "http.response.start":
            told(message["status"], message["headers"])
        await send(message)

    return telling
