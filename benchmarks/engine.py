"""A fake llama-server in a process of its own: as cheap as it gets, so that what is in front of it shows.

`python -m benchmarks.engine SLOTS [SLOTS ...]` opens one server per argument and prints their ports on one line.
Token i of every answer is the text `t<i> `. A prompt that begins with `gated` waits until `POST /go` lets it out; one
that begins with `paced <ms>` gets its tokens so far apart, each with the time it was written: `t<i>@<monotonic ns> `.

It speaks llama.cpp's /completion and OpenAI's /v1/chat/completions, both as streams only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from urllib.parse import parse_qs

import httptools
import uvloop

CTX = 8192
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(payload: dict[str, Any]) -> bytes:
    """One frame of a /completion stream, as one HTTP chunk."""
    frame = b"data: %b\n\n" % json.dumps(payload, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def llama(text: str, index: int) -> dict[str, Any]:
    return {
        "index": 0,
        "content": text,
        "tokens": [1000 + index],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": index + 1,
        "tokens_evaluated": 4,
    }


def chat(text: str, index: int) -> dict[str, Any]:
    """The first chunk of a chat also says who speaks."""
    role = {"role": "assistant"} if index == 0 else {}
    choice = {"index": 0, "delta": {**role, "content": text}, "logprobs": None, "finish_reason": None}
    return {**CHAT, "choices": [choice]}


CHAT = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "fake"}
Shape = Callable[[str, int], dict[str, Any]]


@cache
def token_chunk(shape: Shape, index: int) -> bytes:
    return chunk(shape(f"t{index} ", index))


def stamped_chunk(shape: Shape, index: int) -> bytes:
    return chunk(shape(f"t{index}@{time.monotonic_ns()} ", index))


def end_chunk(shape: Shape, tokens: int) -> bytes:
    if shape is chat:
        last = {**CHAT, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]}
        return chunk(last) + b"e\r\ndata: [DONE]\n\n\r\n" + LAST_CHUNK
    end = {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": tokens, "tokens_evaluated": 4}
    return chunk(end) + LAST_CHUNK


class Server:
    """What the connections of one port share."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.busy = 0
        self.queue: deque[Stream] = deque()  # no slot yet
        self.gated: list[Stream] = []  # hold a slot and wait for /go
        self.asked: tuple[int, Connection] | None = None  # /gathered: how many, and whom to tell

    def enter(self, stream: Stream) -> None:
        self.queue.append(stream)
        self._fill()

    def leave(self, stream: Stream) -> None:
        if stream in self.queue:
            self.queue.remove(stream)
        elif not stream.over:
            if stream in self.gated:
                self.gated.remove(stream)
            self.busy -= 1
            self._fill()
        stream.over = True

    def _fill(self) -> None:
        while self.queue and self.busy < self.slots:
            self.busy += 1
            stream = self.queue.popleft()
            stream.connection.transport.write(STREAM_HEAD)
            if stream.gated:
                self.gated.append(stream)
            else:
                stream.start(stream.pace_s, 0.0)
        if self.asked is not None and len(self.gated) >= self.asked[0]:
            self.asked[1].answer(200, {"gathered": len(self.gated)})
            self.asked = None

    def gathered(self, count: int, connection: Connection) -> None:
        """Answer once `count` streams wait at the gate."""
        self.asked = (count, connection)
        self._fill()

    def go(self, pace_s: float) -> int:
        """Let out what waits, the streams' phases spread over one pace: every token is an event of its own."""
        out, self.gated = self.gated, []
        for place, stream in enumerate(out):
            stream.start(pace_s, place / len(out))
        return len(out)


class Stream:
    """One answer on its way."""

    def __init__(self, server: Server, connection: Connection, shape: Shape, tokens: int, prompt: str) -> None:
        self.server = server
        self.connection = connection
        self.shape = shape
        self.tokens = tokens
        self.gated = prompt.startswith("gated")
        self.pace_s = float(prompt.split()[1]) / 1000 if prompt.startswith("paced") else 0.0
        self._make = stamped_chunk if self.pace_s else token_chunk
        self.sent = 0
        self.over = False
        self._loop = asyncio.get_running_loop()

    def start(self, pace_s: float, phase: float) -> None:
        self.pace_s = pace_s
        self._origin = self._loop.time() + phase * pace_s
        self._step()

    def _step(self) -> None:
        """One token per turn of the loop and one write per token, as a real engine emits them."""
        if self.over:
            return
        if self.connection.paused is not None:
            self.connection.paused = self._step
            return
        if self.sent == self.tokens:
            self.server.leave(self)
            self.connection.ended(end_chunk(self.shape, self.tokens))
            return
        self.connection.transport.write(self._make(self.shape, self.sent))
        self.sent += 1
        if self.pace_s:
            self._loop.call_at(self._origin + self.sent * self.pace_s, self._step)
        else:
            self._loop.call_soon(self._step)


class Connection(asyncio.Protocol):
    """One client, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = bytearray()
        self._stream: Stream | None = None
        self.paused: Any = None  # what to call when the client reads again

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._server.leave(self._stream)

    def pause_writing(self) -> None:
        self.paused = self._nothing

    def resume_writing(self) -> None:
        step, self.paused = self.paused, None
        step()

    def _nothing(self) -> None:
        """Nobody waited."""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url = httptools.parse_url(self._url)
        query = {key: values[0] for key, values in parse_qs((url.query or b"").decode()).items()}
        body = json.loads(self._body) if self._body else {}
        self._url = b""
        self._body.clear()
        self._route(url.path.decode(), query, body)

    def _route(self, path: str, query: dict[str, str], body: dict[str, Any]) -> None:
        server = self._server
        match path:
            case "/health":
                self.answer(200, {"status": "ok"})
            case "/props":
                self.answer(200, self._props())
            case "/slots":
                self.answer(200, [{"id": i, "is_processing": i < server.busy} for i in range(server.slots)])
            case "/tokenize":
                self.answer(200, {"tokens": list(body["content"].encode())})
            case "/completion" if "json_schema" in body:
                self.answer(400, {"error": {"code": 400, "message": "no such schema", "type": "invalid_request"}})
            case "/completion":
                self._begin(Stream(server, self, llama, body["n_predict"], body["prompt"]))
            case "/v1/chat/completions":
                self._begin(Stream(server, self, chat, body["max_tokens"], body["messages"][-1]["content"]))
            case "/v1/models":
                self.answer(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
            case "/get_model_info" | "/model_info":
                self.answer(200, {"model_path": "fake", "tokenizer_path": "fake", "is_generation": True})
            case "/get_server_info" | "/server_info":
                self.answer(200, {"model_path": "fake", "served_model_name": "fake", "version": "0"})
            case "/gathered":
                server.gathered(int(query["streams"]), self)
            case "/go":
                self.answer(200, {"released": server.go(float(query["pace_ms"]) / 1000)})
            case _:
                self.answer(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found"}})

    def _begin(self, stream: Stream) -> None:
        self._stream = stream
        self._server.enter(stream)

    def _props(self) -> dict[str, Any]:
        return {
            "default_generation_settings": {"n_ctx": CTX},
            "total_slots": self._server.slots,
            "model_path": "fake.gguf",
            "chat_template": "",
            "build_info": "b0-fake",
        }

    def answer(self, status: int, payload: Any) -> None:
        body = json.dumps(payload).encode()
        head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.ended(head.encode() + body)

    def ended(self, last: bytes) -> None:
        self._stream = None
        self.transport.write(last)
        if not self._parser.should_keep_alive():
            self.transport.close()


async def serve(slots: list[int]) -> None:
    loop = asyncio.get_running_loop()
    shared = [Server(count) for count in slots]
    servers = [await loop.create_server(partial(Connection, s), "127.0.0.1", 0) for s in shared]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(serve([int(argument) for argument in sys.argv[1:]]))
