"""What the engine tests share: a runner, a collector of streams, and a raw server that says exactly what it is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orchestratord.infra.clock import SystemClock
from orchestratord.ports import Chunk, Deliver, Engine, EngineError, Job, JobEnd

CLOCK = SystemClock()
LIMIT_S = 20.0  # real time after which a test gives up on an event; never reached when all is well
RECORDINGS = Path(__file__).with_name("recordings")


def run(body: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine on a loop of its own, bounded."""

    async def bounded() -> None:
        async with CLOCK.limit(LIMIT_S):
            await body

    asyncio.run(bounded())


@dataclass
class Collected:
    """Everything one stream gave."""

    chunks: list[Chunk] = field(default_factory=list)
    error: EngineError | None = None

    @property
    def texts(self) -> list[str]:
        return [text for chunk in self.chunks for text in chunk.texts]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def results(self) -> list[dict[str, Any]]:
        return [result for chunk in self.chunks for result in chunk.results]

    @property
    def end(self) -> JobEnd | None:
        return self.chunks[-1].end if self.chunks else None

    @property
    def kind(self) -> str | None:
        return self.error.kind if self.error else None


def _into(take: Callable[[Chunk], object]) -> Deliver:
    """Whatever comes, as chunks."""
    return Deliver(lambda chunk: take(chunk) is None, lambda text, count: take(Chunk([text], tokens_out=count)) is None)


@asynccontextmanager
async def following(engine: Engine, job: Job) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The chunks of a job as they come; leaving aborts the job."""
    came: asyncio.Queue[Chunk | None] = asyncio.Queue()

    async def work() -> None:
        try:
            await engine.run(job, _into(came.put_nowait))
        finally:
            came.put_nowait(None)

    working = asyncio.create_task(work())

    async def chunks() -> AsyncIterator[Chunk]:
        while (chunk := await came.get()) is not None:
            yield chunk
        await working

    try:
        yield chunks()
    finally:
        working.cancel()
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()


async def collect(engine: Engine, job: Job) -> Collected:
    """Run `job` until it ends, well or not."""
    collected = Collected()
    try:
        await engine.run(job, _into(collected.chunks.append))
    except EngineError as error:
        collected.error = error
    return collected


async def turn() -> None:
    """Let the loop look at its sockets, and other threads run, once."""
    await asyncio.to_thread(lambda: None)


def recorded(name: str) -> bytes:
    """A reply as a real server sent it."""
    return (RECORDINGS / f"{name}.resp").read_bytes()


def sent_frames(reply: bytes) -> list[Any]:
    """The JSON documents in a stream of events, found without any of the code under test."""
    return [msgspec.json.decode(found) for found in re.findall(rb"^data: (\{.*\})\r?$", reply, re.MULTILINE)]


def job(prompt: str = "ba fi gono", *, max_tokens: int = 8, seed: int = 7, **rest: Any) -> Job:
    return Job("completion", max_tokens, seed, prompt=prompt, **rest)


class RawServer:
    """Answers the n-th request of all with the n-th of `replies`, sliced into writes of `step` bytes.

    A reply is raw HTTP; after it the connection closes, unless `keep` is set. None instead of a reply: close without a
    word. `requests` holds what came, head and body; `connections` counts.
    """

    def __init__(self, replies: Iterable[bytes | None], step: int, keep: bool, stall: bool) -> None:
        self._replies = iter(replies)
        self._step = step
        self._keep = keep
        self._stall = stall
        self.close_after = 1 << 30  # requests in all after which the connection closes, `keep` or not
        self.requests: list[bytes] = []
        self.connections = 0
        self.answered = 0  # replies sent in full
        self.closed = asyncio.Event()  # set when the client has closed a connection
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed.set()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        self.requests.append(head + await reader.readexactly(int(fields.get(b"content-length", b"0"))))
        reply = next(self._replies)
        if reply is None:
            return False
        for at in range(0, len(reply), self._step):
            writer.write(reply[at : at + self._step])
            await writer.drain()
            if self._step < len(reply):
                await turn()  # each slice a read of its own
        self.answered += 1
        if self._stall:
            await reader.read()  # say nothing more until the client has gone
            self.closed.set()
        return self._keep and len(self.requests) < self.close_after


@asynccontextmanager
async def raw_server(
    *replies: bytes | None, step: int = 1 << 20, keep: bool = False, stall: bool = False
) -> AsyncIterator[RawServer]:
    """A RawServer on loopback. keep: leave connections open between replies. stall: after a reply, wait for the client
    to go away."""
    raw = RawServer(replies, step, keep, stall)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, limit=1 << 24)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()


def response(body: bytes, status: str = "200 OK", content_type: str = "application/json", extra: str = "") -> bytes:
    """A plain HTTP response with a length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def stream(*parts: bytes, end: bool = True) -> bytes:
    """A chunked event stream: each part one HTTP chunk. end: with the terminal chunk."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + chunks + (b"0\r\n\r\n" if end else b"")
