"""A fake engine server: one dialect of the wire, spoken over real sockets, with faults on demand.

What it says is made of two parts. A `Wire` knows one engine's routes and the shape of its frames, learned from
recordings of the real server (TGI: from its documented protocol, since there is no server to record). The text in the
frames is the mock engine's. The server itself knows only bytes, so that every fault can be tried on every wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import mock_text
from orchestratord.ports import Engine, Job
from tests.engines.support import response, turn

Ending = Literal["clean", "cut", "reset", "hang", "endless"]


@dataclass(frozen=True)
class Fault:
    """What happens to one stream. edit: its events before they are sent; ending: what comes after the last of them;
    instead: a whole reply in place of the stream; step: bytes per write."""

    edit: Callable[[Sequence[bytes]], Sequence[bytes]] = lambda events: events
    ending: Ending = "clean"
    instead: bytes | None = None
    step: int = 1 << 20
    head: bool = True  # False: not even the head of a reply


class Wire(Protocol):
    """One engine's side of the wire."""

    name: str
    stream_path: str
    health_path: str
    not_ready: bytes  # what the health path answers while there is no model, as a whole reply

    def driver(self, url: str, **options: Any) -> Engine: ...

    def control(self, method: str, path: str, body: Any, busy: int) -> bytes | None:
        """The whole reply to a control request while it works on `busy` streams; None for a route it does not have."""

    def refusal(self, body: Any) -> bytes | None:
        """The whole reply to a stream request it does not take; None for one it does."""

    def events(self, body: Any) -> list[bytes]:
        """Every event of the stream that answers a request, ends included."""

    def error(self, message: str) -> bytes:
        """The event that reports a failure."""

    def full(self) -> bytes:
        """The whole reply of an engine that has no room."""


def event(document: Any) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def json_response(document: Any, status: str = "200 OK") -> bytes:
    return response(msgspec.json.encode(document), status)


@dataclass
class Text:
    """What a fake engine writes for a request, token by token, and why it stops."""

    tokens: list[str]
    reason: Literal["stop", "length"]
    prompt_tokens: int

    @classmethod
    def of(
        cls, prompt: str, max_tokens: int, seed: int, sampling: Sampling, *, keep_stop: bool = False, stop: Any = ()
    ) -> Text:
        """keep_stop: the stop string stays in the text, and the rest of the token it ends in."""
        greedy = sampling.temperature in (None, 0) or sampling.top_k == 1
        job = Job("completion", max_tokens, 0 if greedy else seed, prompt, sampling=Sampling(stop=tuple(stop)))
        tokens: list[str] = []
        source = mock_text.words(job) if keep_stop else mock_text.outputs(job)
        reason: Literal["stop", "length"] = "stop"
        for token in source:
            tokens.append(token)
            if keep_stop and any(text in "".join(tokens) for text in stop):
                break
            if len(tokens) >= max_tokens:
                hit = not keep_stop and any(text in "".join(tokens) for text in stop)
                reason = "stop" if hit else "length"
                break
        return cls(tokens, reason, mock_text.count(prompt))


class FakeServer:
    """Serves one wire. `requests` are the heads and bodies that came; `override` maps paths to replies said instead;
    `streams` counts those it is in the middle of; `left` is set when a client went away in a stream."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.override: dict[str, bytes | None] = {}  # None: say nothing at all
        self.streams = 0
        self.left = asyncio.Event()
        self._faults: deque[Fault] = deque()

    def play(self, *faults: Fault) -> None:
        """What happens to the next streams, one after the other."""
        self._faults.extend(faults)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        method, path, headers, raw = await read_request(reader)
        self.requests.append((method, path, headers, raw))
        body = msgspec.json.decode(raw) if raw else None
        if path in self.override:
            reply = self.override[path]
            if reply is None:
                await reader.read()
                return False
            writer.write(reply)
        elif path == self.wire.stream_path and method == "POST":
            await self._stream(body, reader, writer)
            return False
        else:
            writer.write(
                self.wire.control(method, path, body, self.streams) or json_response({"error": "Not Found"}, "404 Not")
            )
        await writer.drain()
        return headers.get("connection") != "close"

    async def _stream(self, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._faults.popleft() if self._faults else Fault()
        gone = asyncio.ensure_future(reader.read())  # ends when the client has gone
        self.streams += 1
        try:
            instead = fault.instead or self.wire.refusal(body)
            if instead is not None:
                await send(writer, instead, fault.step, gone)
            elif fault.head:
                await self._frames(body, fault, writer, gone)
            if fault.ending == "hang":
                await gone
            if fault.ending == "reset":
                writer.transport.abort()
        except ConnectionError:
            self.left.set()
            raise
        finally:
            if gone.done():
                self.left.set()
            gone.cancel()
            self.streams -= 1

    async def _frames(self, body: Any, fault: Fault, writer: asyncio.StreamWriter, gone: asyncio.Future[bytes]) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await send(writer, head, fault.step, gone)
        events = list(fault.edit(self.wire.events(body)))
        for data in events:
            await send(writer, b"%x\r\n%s\r\n" % (len(data), data), fault.step, gone)
            if gone.done():
                return
            await turn()  # a token takes time: the client sees it before the next one
        while fault.ending == "endless" and not gone.done():
            await send(writer, b"%x\r\n%s\r\n" % (len(events[0]), events[0]), fault.step, gone)
            await turn()
        if fault.ending == "clean":
            await send(writer, b"0\r\n\r\n", fault.step, gone)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    """One request: method, path, headers with lower-case names, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return method, path, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def send(writer: asyncio.StreamWriter, data: bytes, step: int, gone: asyncio.Future[bytes]) -> None:
    """Write `data`, cut into reads of their own if it is longer than `step`; gives up when the client has gone."""
    for at in range(0, len(data), step):
        if gone.done():
            return
        writer.write(data[at : at + step])
        await writer.drain()
        if len(data) > step:
            await turn()


@asynccontextmanager
async def fake_server(wire: Wire) -> AsyncIterator[FakeServer]:
    """A fake on a free loopback port."""
    fake = FakeServer(wire)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, limit=1 << 24)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
