"""A scripted llama-server: healthy by all it says, and now and then it lies to a task."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from orchestratord.infra.clock import SystemClock

SLOTS, CTX = 2, 512
CLINGS_S = 2.0
Frame = dict[str, Any]
LIES = ("garbage", "too many", "too few", "no end", "error", "silence", "late silence", "drip", "fails", "clings")


class LyingLlama:
    """Answers what the adapter asks. A task with `lie <name>` in its prompt is lied to so, once: a retry finds an
    honest server. `told` has the lie each prompt got, and may be shared.
    """

    def __init__(self, draw: Random, told: dict[str, str]) -> None:
        self._draw = draw
        self._clock = SystemClock()
        self._busy: set[int] = set()
        self._told = told
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(x.split(":")[1]) for x in head.split("\r\n") if x.lower().startswith("content-length")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else {}
            path = head.split(" ")[1]
            if path == "/completion" and body.get("stream"):
                await self._complete(body, reader, writer)
            else:
                status, answer = self._answer(path, body)
                data = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n".encode()
                    + data
                )
                await writer.drain()
        writer.close()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return 200, {"status": "ok"}
        if path == "/props":
            return 200, {
                "default_generation_settings": {"n_ctx": CTX},
                "total_slots": SLOTS,
                "build_info": "b0-lies",
                "model_path": "lies.gguf",
            }
        if path == "/slots":
            return 200, [{"id": n, "n_ctx": CTX, "is_processing": n in self._busy} for n in range(SLOTS)]
        if path == "/completion":
            return 400, {"error": {"code": 400, "message": "bad schema", "type": "invalid_request_error"}}
        return 501, {"error": {"code": 501, "message": "not supported", "type": "not_supported_error"}}

    async def _complete(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        slot = body.get("id_slot", 0)
        self._busy.add(slot)
        gone = asyncio.ensure_future(reader.read())
        talk = asyncio.ensure_future(self._talk(body, writer))
        try:
            await asyncio.wait((gone, talk), return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and self._lie(body) == "clings":
                await self._clock.sleep(CLINGS_S)
        finally:
            for each in (gone, talk):
                each.cancel()
            await asyncio.gather(gone, talk, return_exceptions=True)
            self._busy.discard(slot)

    @staticmethod
    def _lie(body: dict[str, Any]) -> str | None:
        _, found, lie = str(body["prompt"]).partition(" lie ")
        return lie.split(";")[0] if found else None

    async def _talk(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        lie, tokens = self._lie(body), int(body["n_predict"])
        honest = lie is None or body["prompt"] in self._told
        if not honest:
            self._told[body["prompt"]] = str(lie)
        after = 0 if lie == "silence" else self._draw.randint(1, tokens - 1)
        if lie == "fails" and not honest:
            data = b'{"error":{"code":500,"message":"out of memory","type":"server_error"}}'
            writer.write(b"HTTP/1.1 500 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(data), data))
            return await writer.drain()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for number in range(1, tokens + 1):
            if not honest and number > after and await self._betray(str(lie), number, tokens, writer):
                return None
            await self._send(writer, {"content": f" {number}", "stop": False, "tokens_predicted": number})
            await self._clock.sleep(0.002)
        return await self._send(writer, _end(tokens))

    async def _betray(self, lie: str, number: int, tokens: int, writer: asyncio.StreamWriter) -> bool:
        """Whether that was all."""
        if lie in ("silence", "late silence"):
            await asyncio.get_running_loop().create_future()
        if lie == "drip":  # comments are no output
            while True:
                writer.write(b":\n\n")
                await writer.drain()
                await self._clock.sleep(0.05)
        if lie == "clings":
            await self._clock.sleep(0.05)
            return False
        said: dict[str, Callable[[], Frame | bytes | None]] = {
            "garbage": lambda: b"data: {\x00\xff]\n\n",
            "too many": lambda: {"content": " x", "stop": False, "tokens_predicted": tokens + 1},
            "too few": lambda: _end(0) | {"content": " x"},
            "no end": lambda: None,
            "error": lambda: {"error": {"code": 500, "message": "the engine exploded"}},
        }
        await self._send(writer, said[lie]())
        return True

    async def _send(self, writer: asyncio.StreamWriter, frame: Frame | bytes | None) -> None:
        if frame is not None:
            writer.write(frame if isinstance(frame, bytes) else b"data: " + json.dumps(frame).encode() + b"\n\n")
            await writer.drain()


def _end(tokens: int) -> Frame:
    return {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": tokens, "tokens_evaluated": 3}


@asynccontextmanager
async def lying_llama(draw: Random, told: dict[str, str]) -> AsyncIterator[LyingLlama]:
    """One on loopback."""
    llama = LyingLlama(draw, told)
    server = await asyncio.start_server(llama.serve, "127.0.0.1", 0)
    llama.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield llama
    finally:
        server.close()
