"""The load: HTTP by hand, and what the daemon and the floors are asked. Every answer is checked token by token."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httptools

SSE_TOKEN = re.compile(rb'event: token\ndata: \{"t":"([^"]*)"')
LLAMA_TOKEN = re.compile(rb'"content": ?"([^"]+)"')  # of llama.cpp's frames and of OpenAI's
STAMP = re.compile(rb"@\d+")
CONNECTIONS = 8
KEY = "benchmark-key-of-no-secrecy"  # the daemon asks for it; the others do not care


class Wrong(Exception):
    """A peer did not do its work: there is nothing to measure."""


class Answer:
    """One answer while it comes."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.status = 0
        self.body = bytearray()
        self.asked_ns = time.monotonic_ns()
        self.marks: list[tuple[int, int]] = []  # length of the body after each read, and when that was
        self.head: asyncio.Future[None] = loop.create_future()
        self.first: asyncio.Future[None] = loop.create_future()  # byte of the body
        self.done: asyncio.Future[None] = loop.create_future()

    async def whole(self, status: int) -> bytes:
        await self.done
        if self.status != status:
            raise Wrong(f"status {self.status} instead of {status}: {bytes(self.body[:300])!r}")
        return bytes(self.body)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self.open = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer is not None:
            for future in (self._answer.head, self._answer.first, self._answer.done):
                if not future.done():
                    future.set_exception(Wrong("the connection closed within an answer"))
                    future.exception()  # one of them is waited for; the others need no complaint

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if data else ""
        fields = f"Host: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n{kind}Content-Length: {len(data)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{fields}\r\n"
        self._answer = Answer()
        self.transport.write(head.encode() + data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        self._answer.status = self._parser.get_status_code()
        self._answer.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        self._answer.body += body
        self._answer.marks.append((len(self._answer.body), time.monotonic_ns()))
        if not self._answer.first.done():
            self._answer.first.set_result(None)

    def on_message_complete(self) -> None:
        assert self._answer is not None
        answer, self._answer = self._answer, None
        if not self._parser.should_keep_alive():
            self.open = False
            self.transport.close()
        if not answer.first.done():
            answer.first.set_result(None)
        answer.done.set_result(None)


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    opened = [await connect(port) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.transport.abort()


async def call(port: int, method: str, path: str, status: int = 200) -> Any:
    """One small exchange on a connection of its own."""
    async with connections(port, 1) as (connection,):
        return json.loads(await connection.ask(method, path).whole(status))


async def shared(
    port: int, jobs: Iterable[Any], do: Callable[[Connection, Any], Awaitable[None]], connections: int = CONNECTIONS
) -> None:
    """Do every job, on so many connections at a time."""
    waiting = iter(jobs)

    async def work() -> None:
        connection = await connect(port)
        try:
            for job in waiting:
                if not connection.open:
                    connection = await connect(port)
                await do(connection, job)
        finally:
            connection.transport.abort()

    await asyncio.gather(*(work() for _ in range(connections)))


# -- what is asked --------------------------------------------------------------------------------------------
def task(pool: str, prompt: str, tokens: int, priority: str) -> dict[str, Any]:
    return {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "engine": "llamacpp",
        "model_ref": pool,
        "ctx": 4096,
        "max_tokens": tokens,
        "priority": priority,
        "deadline_ms": 3_600_000,
        "prompt": prompt,
        "seed": 1,
    }


async def admit(connection: Connection, body: dict[str, Any]) -> None:
    await connection.ask("POST", "/v1/tasks", body).whole(202)


async def admit_and_stream(connection: Connection, body: dict[str, Any]) -> None:
    await admit(connection, body)
    answer = connection.ask("GET", f"/v1/tasks/{body['task_id']}/stream")
    check_events(await answer.whole(200), body["max_tokens"])


def check_events(body: bytes, tokens: int) -> None:
    """The daemon's stream holds every token, in order, and the right end."""
    check_texts(SSE_TOKEN.findall(body), tokens, body)
    if b"event: end\n" not in body or b'"tokens_out":%d' % tokens not in body:
        raise Wrong(f"a stream without its end: {body[-300:]!r}")


def check_frames(body: bytes, tokens: int) -> None:
    """The relay's stream does."""
    check_texts(LLAMA_TOKEN.findall(body), tokens, body)


def check_texts(texts: list[bytes], tokens: int, body: bytes) -> None:
    wanted = [b"t%d " % i for i in range(tokens)]
    found = [STAMP.sub(b"", text) for text in texts]
    if found != wanted:
        pairs = enumerate(zip(found, wanted, strict=False))
        first = next((at for at, (got, want) in pairs if got != want), min(len(found), tokens))
        around = f"{found[max(0, first - 2) : first + 3]} at {first}, and at the end {body[-300:]!r}"
        raise Wrong(f"{len(found)} tokens instead of {tokens}, or not in order: {around}")
