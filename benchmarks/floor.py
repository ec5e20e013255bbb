"""What cannot be undercut: a relay that only copies bytes, and an admission that only says 202.

`python -m benchmarks.floor copy ENGINE_PORT` or `python -m benchmarks.floor stub`; each prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop

ADMITTED = (
    b'{"task_id":"00000000-0000-4000-8000-000000000000","queue_position":0,"predicted_start_ms":0,"backoff_ms":0}'
)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ADMITTED))]


class Half(asyncio.Protocol):
    """One of a relay's two connections: what arrives here leaves there."""

    transport: asyncio.Transport
    peer: Half | None = None

    def __init__(self) -> None:
        self._early: list[bytes] = []
        self._write: Callable[[bytes], None] = self._early.append  # until the other side is there

    def join(self, peer: Half) -> None:
        self.peer = peer
        self._write = peer.transport.write
        for data in self._early:
            self._write(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._write(data)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            self.peer.transport.close()


class Front(Half):
    """The client's side: brings the engine's side up."""

    def __init__(self, engine_port: int) -> None:
        super().__init__()
        self._engine_port = engine_port

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        _, back = await asyncio.get_running_loop().create_connection(Half, "127.0.0.1", self._engine_port)
        back.join(self)
        self.join(back)


async def copy(engine_port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Front(engine_port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def admit(scope: Any, receive: Any, send: Any) -> None:
    """The least an ASGI application can do with POST /v1/tasks."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 202, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ADMITTED})


def stub() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        admit, http="httptools", loop="uvloop", ws="none", lifespan="off", log_config=None, access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1] == "copy":
        uvloop.run(copy(int(sys.argv[2])))
    else:
        stub()
