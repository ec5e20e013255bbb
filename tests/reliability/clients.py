"""Many small clients at once, as plain as can be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Request = tuple[str, str, Any]  # method, path, body


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, path: str, body: Any = None, *fields: str) -> bytes:
    """The bytes of a request; `body` is sent as JSON, or as it is if it is bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Kept:
    """One connection that is kept for the next request, as good clients do."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None, *fields: str) -> Got:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        try:
            writer.write(request(method, path, body, *fields))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            answer = await reader.readexactly(int(headers.get("content-length", "0")))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return Got(int(first.split()[1]), headers, answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def ask(url: str, method: str, path: str, body: Any = None) -> Got:
    """One request on a connection of its own."""
    return await Kept(url).ask(method, path, body, "Connection: close")


def at_once(url: str, method: str, calls: Iterable[tuple[str, Any]]) -> list[Got]:
    """All of them in flight together, each on a connection of its own; in the order they were given."""

    async def all_of_them() -> list[Got]:
        return await asyncio.gather(*(ask(url, method, path, body) for path, body in calls))

    return asyncio.run(all_of_them())


def crowd(url: str, asked: Iterable[Request], see: Callable[[Request, Got], object], clients: int = 16) -> None:
    """Requests without end over a few kept connections; `see` is shown each answer."""
    rest = iter(asked)

    async def client() -> None:
        kept = Kept(url)
        for one in rest:
            see(one, await kept.ask(*one))
        kept.close()

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    asyncio.run(all_of_them())
