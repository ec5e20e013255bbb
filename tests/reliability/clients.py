"""Many small clients at once, as plain as can be: each request on a connection of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(url: str, method: str, path: str, body: Any = None) -> Got:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"{head}\r\n".encode() + data)
    try:
        answer = await reader.read()
    finally:
        writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    return Got(int(first.split()[1]), fields, rest)


def at_once(url: str, method: str, calls: Iterable[tuple[str, Any]]) -> list[Got]:
    """All of them in flight together; in the order they were given."""

    async def all_of_them() -> list[Got]:
        return await asyncio.gather(*(ask(url, method, path, body) for path, body in calls))

    return asyncio.run(all_of_them())
