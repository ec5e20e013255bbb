"""What handlers return: ASGI responses, nothing more. Headers are bytes, the correlation id is added further out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson

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

    abort: Callable[[], object]
    sending_since: float | None

    async def next(self) -> bytes: ...

    def sending(self) -> None: ...

    def sent(self) -> None: ...

    def close(self) -> None: ...


class EventStream:
    """A text/event-stream answer: writes whatever its source has, until the source or the client is done."""

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
        # The pump has a task of its own: resuming it costs less than resuming the whole middleware chain, and the
        # request's task is free to notice that the client left.
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(self._gone(receive))
        self.source.abort = pump.cancel
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.source.close()
            for task in (pump, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, send: Send) -> None:
        source = self.source
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        while data := await source.next():
            source.sending()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            source.sent()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
