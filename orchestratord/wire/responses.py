"""What handlers return: ASGI responses, nothing more. Headers are bytes, the correlation id is added further out."""

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

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body = self.body
        headers = self.headers
        if body is None:
            data = b""
        else:
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            headers = [*headers, (b"content-type", self.media_type), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


class Source(Protocol):
    """Where a stream's bytes come from (`services.streams.Cursor`)."""

    def follow(self, notify: Callable[[], object], abort: Callable[[], object]) -> None: ...

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

    def drained(self) -> None:
        """A full buffer has emptied."""

    def lost(self) -> None:
        """The client is gone."""


class Wire(Protocol):
    """The client's connection below ASGI (`server.Protocol`), found in the scope's extensions under `WIRE`."""

    @property
    def unread(self) -> bool:
        """The request's body has not come to its end."""

    @property
    def full(self) -> bool:
        """The client does not take what was written; nothing more should be."""

    def bind(self, body: Body) -> None:
        """From now on the answer is the body's until `end` or `lost`, also when the app has returned."""

    def write(self, data: bytes) -> bool:
        """Write a part of the body, not empty, whose head went out through ASGI. Returns `full`."""

    def end(self) -> None:
        """The body is complete."""

    def abort(self) -> None:
        """Break the connection off; what was not taken is dropped."""


WIRE = "orchestratord.wire"


class _Pipe:
    """From one source into one connection, until either is done. `over` is called then."""

    __slots__ = ("_full", "_open", "_over", "_source", "_wire")  # there is one for each open stream

    def __init__(self, wire: Wire, source: Source, over: Callable[[], object] | None) -> None:
        self._wire = wire
        self._source = source
        self._over = over
        self._full = wire.full
        self._open = True

    def begin(self) -> None:
        self._source.follow(self._push, self._abort)
        self._wire.bind(self)
        self._push()

    def _push(self) -> None:
        source = self._source
        while self._open and not self._full:
            data = source.take()
            if data:
                self._full = self._wire.write(data)
                if source.flowing:
                    break
            elif source.over:
                self._wire.end()
                self._close()
                return
            else:
                break
        if self._full:
            source.blocked()

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

    def __init__(self, source: Source, headers: Headers | None = None) -> None:
        self.source = source
        self.headers: Headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *(headers or []),
        ]

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        wire: Wire | None = scope["extensions"].get(WIRE)
        handed_over = False
        try:
            if wire is None:
                await self._through_asgi(receive, send)
            else:
                await send({"type": "http.response.start", "status": 200, "headers": self.headers})
                handed_over = True
                _Pipe(wire, self.source, scope["extensions"].pop(OVER, None)).begin()
        finally:
            if not handed_over:
                self.source.close()

    async def _through_asgi(self, receive: Receive, send: Send) -> None:
        # The pump has a task of its own: resuming it costs less than resuming the whole middleware chain, and the
        # request's task is free to notice that the client left.
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(self._gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, send: Send) -> None:
        source = self.source
        more = asyncio.Event()
        pumping = asyncio.current_task()
        assert pumping is not None
        source.follow(more.set, pumping.cancel)
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
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
