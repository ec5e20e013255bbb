"""Record what a real llama-server says, byte for byte, into tests/engines/recordings/NAME.resp.

    python -m tests.engines.record

Run it when an adapter is to learn a new build; `test_llamacpp_replay` then has to pass on the new bytes. Paths in the
recordings are relative, so nothing of the recording machine gets in.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.llamacpp import _request
from orchestratord.infra.process import ProcessHost
from orchestratord.ports import Job, ProcessSpec
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.engines.support import CLOCK, RECORDINGS, job

WILD = Sampling(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0)


async def exchange(port: int, path: str, body: bytes | None = None, extra: str = "") -> bytes:
    """One request on a connection of its own: every byte of the reply. extra: header lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method = "GET" if body is None else "POST"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{extra}"
    )
    writer.write(f"{head}Content-Length: {len(body or b'')}\r\n\r\n".encode() + (body or b""))
    reply = await reader.read(-1)
    writer.close()
    return reply


@asynccontextmanager
async def server(model: str, *extra: str, slots: int = 2, ctx: int = 256) -> AsyncIterator[int]:
    """A llama-server that accepts connections; its port. It may still be loading."""
    spec = ProcessSpec("llamacpp", model, slots, ctx, 1, os.environ.get("LLAMA_SERVER") or None, extra, {}, None)
    child = await ProcessHost(CLOCK).start(spec)
    port = int(child.url.rpartition(":")[2])
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                continue
            writer.close()
            break
        yield port
    finally:
        await child.stop(5)


async def loaded(port: int) -> bytes:
    """Wait for the model; what /health said before, or after when it was quick."""
    first = reply = await exchange(port, "/health")
    while not reply.startswith(b"HTTP/1.1 200"):
        reply = await exchange(port, "/health")
    return first


def save(name: str, reply: bytes) -> None:
    path = RECORDINGS / f"{name}.resp"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(reply)
    print(name, len(reply), reply.partition(b"\r\n")[0].decode())  # noqa: T201


def body(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


async def complete(port: int, asked: Job) -> bytes:
    return await exchange(port, "/completion", _request(asked))


async def record() -> None:
    tiny_llama("tiny.gguf")
    tiny_llama("tiny-eos.gguf", eos=True)
    tiny_llama("tiny-plain.gguf", template=False)
    async with server("tiny.gguf") as port:
        save("loading", await loaded(port))
        save("health", await exchange(port, "/health"))
        save("props", await exchange(port, "/props"))
        save("slots", await exchange(port, "/slots"))
        save("tokenize", await exchange(port, "/tokenize", body(content="ba fi gono", add_special=True)))
        messages = [{"role": "user", "content": "hi"}]
        save("apply_template", await exchange(port, "/apply-template", body(messages=messages)))
        greedy = Sampling(temperature=0.0)
        save("stream", await complete(port, job(max_tokens=12, sampling=greedy)))
        whole = body(prompt="ba fi gono", n_predict=3, temperature=0, stream=True)
        save("stream_whole_last_frame", await exchange(port, "/completion", whole))
        save("stream_wild", await complete(port, job(max_tokens=200, seed=3, sampling=WILD)))
        foreign = Sampling(grammar='root ::= " 東京" " 🙂" " größe" " мир"')
        save("stream_foreign", await complete(port, job(max_tokens=40, sampling=foreign)))
        plain = body(prompt="ba fi gono", n_predict=12, temperature=0)
        text = msgspec.json.decode((await exchange(port, "/completion", plain)).rpartition(b"\r\n\r\n")[2])["content"]
        stop = Sampling(temperature=0.0, stop=(text.split()[5],))
        save("stream_word", await complete(port, job(max_tokens=12, sampling=stop)))
        save("stream_context_full", await complete(port, job(max_tokens=400, sampling=greedy)))
        save("overflow", await complete(port, job("ba " * 600)))
        save("bad_grammar", await complete(port, job(sampling=Sampling(grammar="nonsense"))))
        schema = body(prompt="", n_predict=1, json_schema={"type": "no such type"})
        save("bad_schema", await exchange(port, "/completion", schema))
        save("bad_json", await exchange(port, "/completion", b"{bad"))
        save("not_found", await exchange(port, "/nowhere"))
    async with server("tiny-eos.gguf") as port:
        await loaded(port)
        warm = Sampling(temperature=1.5)
        save("stream_eos", await complete(port, job(max_tokens=200, seed=5, sampling=warm)))
    async with server("tiny-plain.gguf", "--api-key", "sesame", "--no-slots") as port:
        await loaded(port)
        save("unauthorized", await complete(port, job()))
        save("props_unauthorized", await exchange(port, "/props"))
    async with server("tiny-plain.gguf", "--no-slots") as port:
        await loaded(port)
        save("slots_off", await exchange(port, "/slots"))
        save("props_no_template", await exchange(port, "/props"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        asyncio.run(record())


if __name__ == "__main__":
    main()
