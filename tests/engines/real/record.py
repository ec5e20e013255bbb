"""Record what real vLLM and Triton servers say, byte for byte, into tests/engines/recordings/ENGINE/NAME.resp.

    python -m tests.engines.real.record vllm|triton

Run it when an adapter is to learn a new version; the replay tests then have to pass on the new bytes. Paths in the
recordings are relative, so nothing of the recording machine gets in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.triton import Triton
from orchestratord.infra.engines.triton_model import Model, describe
from orchestratord.infra.engines.vllm import Vllm, _Model, _request
from orchestratord.infra.process import Child
from orchestratord.ports import Engine, Job
from tests.engines.real.servers import CTX, SHORT_CTX, server, tiny_models, triton_process, until_ready, vllm_process
from tests.engines.record import body, exchange, save
from tests.engines.support import CLOCK, job

GREEDY = Sampling(temperature=0.0)
WILD = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
KEY = "sesame-open-up"


async def ready(engine: Engine, child: Child) -> None:
    try:
        await until_ready(engine, child)
    finally:
        await engine.close()


async def vllm_writer() -> None:
    model = _Model("tiny-llama", CTX)
    async with server("vllm", vllm_process(Path("tiny-llama"), "--api-key", KEY)) as child:
        await ready(Vllm(child.url, clock=CLOCK, api_key=KEY), child)
        port = int(child.url.rpartition(":")[2])
        bearer = f"Authorization: Bearer {KEY}\r\n"

        async def get(name: str, path: str) -> None:
            save(f"vllm/{name}", await exchange(port, path, extra=bearer))

        async def post(name: str, path: str, raw: bytes, extra: str = bearer) -> bytes:
            reply = await exchange(port, path, raw, extra)
            save(f"vllm/{name}", reply)
            return reply

        async def complete(name: str, asked: Job, **changes: Any) -> bytes:
            return await post(name, "/v1/completions", body(**{**_request(asked, model), **changes}))

        await get("health", "/health")
        await get("version", "/version")
        await get("models", "/v1/models")
        await get("wrong_method", "/v1/completions")
        await get("no_route", "/v1/embeddings")
        await post("tokenize", "/tokenize", body(model="tiny-llama", prompt="ba fi gono"))
        messages = [{"role": "user", "content": "hi"}]
        made = body(model="tiny-llama", messages=messages, return_token_strs=True)
        chat = await post("tokenize_chat", "/tokenize", made)
        tokens = msgspec.json.decode(chat.rpartition(b"\r\n\r\n")[2])["tokens"]
        await post("detokenize", "/detokenize", body(model="tiny-llama", tokens=tokens))
        await post("tokenize_text", "/tokenize", body(model="tiny-llama", prompt="user: hi\nassistant:"))
        stream = await complete("stream", job(max_tokens=12, sampling=GREEDY))
        texts = [choice["text"] for frame in frames(stream) for choice in frame["choices"]]
        await complete("stream_stop", job(max_tokens=12, sampling=Sampling(temperature=0.0, stop=(texts[5],))))
        await complete("stream_wild", job(max_tokens=120, seed=3, sampling=WILD))
        await complete("stream_cut", job("ba " * (CTX - 40), max_tokens=100, sampling=GREEDY))
        await complete("overflow", job("ba fi " * CTX))
        await complete("too_many_tokens", job(max_tokens=CTX + 1))
        await complete("bad_grammar", job(sampling=Sampling(grammar="nonsense ::=")))
        await complete("unknown_model", job(), model="nobody")
        await post("bad_json", "/v1/completions", b"{bad")
        await post("unauthorized", "/v1/completions", body(**_request(job(), model)), extra="")
        cores = [p for p in psutil.Process(child.pid).children(recursive=True) if "EngineCore" in p.name()]
        raw = body(**_request(job(max_tokens=CTX - 20), model))
        save("vllm/stream_dying", await dying(port, raw, bearer, cores))


async def dying(port: int, raw: bytes, extra: str, cores: list[psutil.Process]) -> bytes:
    """The reply to a completion during which the engine is killed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{extra}"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    first = await reader.readuntil(b"data: ")
    for core in cores:
        core.send_signal(signal.SIGKILL)
    reply = first + await reader.read(-1)
    writer.close()
    return reply


def frames(reply: bytes) -> list[Any]:
    lines = [line for line in reply.splitlines() if line.startswith(b"data: {")]
    return [msgspec.json.decode(line.removeprefix(b"data: ")) for line in lines]


async def vllm_pooling(model: str, name: str, path: str, **fields: Any) -> None:
    async with server("vllm", vllm_process(Path(model), "--runner", "pooling", ctx=SHORT_CTX)) as child:
        await ready(Vllm(child.url, clock=CLOCK), child)
        port = int(child.url.rpartition(":")[2])
        save(f"vllm/{name}", await exchange(port, path, body(model=model, **fields)))


async def vllm() -> None:
    tiny_models(Path.cwd() / "models")
    os.chdir("models")
    await vllm_writer()
    inputs = {"input": ["ba fi"], "encoding_format": "float"}
    await vllm_pooling("tiny-embed", "embeddings", "/v1/embeddings", **inputs)
    await vllm_pooling("tiny-rerank", "rerank", "/v1/rerank", query="ba", documents=["ba fi", "x", "go no ba"])


async def triton_model(port: int, name: str) -> None:
    """What one model says, under its name."""
    path = f"/v2/models/{name}"

    async def get(kind: str, path: str) -> Any:
        reply = await exchange(port, path)
        save(f"triton/{name}_{kind}", reply)
        return msgspec.json.decode(reply.rpartition(b"\r\n\r\n")[2] or b"null")

    metadata, config = await get("metadata", path), await get("config", f"{path}/config")
    await get("ready", f"{path}/ready")
    model: Model = describe(metadata, config, ctx=None, slots=None)

    async def complete(kind: str, asked: Job) -> bytes:
        reply = await exchange(port, f"{path}/generate_stream", body(**model.request(asked)))
        save(f"triton/{name}_{kind}", reply)
        return reply

    whole = await complete("stream", job(max_tokens=12))
    stop = frames(whole)[5]["text_output"]
    await complete("stream_stop", job(max_tokens=12, sampling=Sampling(stop=(stop.strip()[1:],))))
    await complete("stream_exploded", job("please explode"))
    await complete("overflow", job("ba " * 2 * CTX))


async def triton() -> None:
    async with server("triton", triton_process(Path.cwd() / "models", broken=True)) as child:
        await ready(Triton(child.url, clock=CLOCK, model="vllm_model"), child)
        port = int(child.url.rpartition(":")[2])
        for name, path in (("live", "/v2/health/live"), ("ready", "/v2/health/ready"), ("server", "/v2")):
            save(f"triton/{name}", await exchange(port, path))
        save("triton/index", await exchange(port, "/v2/repository/index", b"{}"))
        save("triton/not_ready", await exchange(port, "/v2/models/broken/ready"))
        for name in ("ensemble", "vllm_model"):
            await triton_model(port, name)
        path = "/v2/models/ensemble/generate_stream"
        save("triton/wrong_type", await exchange(port, path, body(text_input="ba", max_tokens="many")))
        save("triton/unknown_model", await exchange(port, "/v2/models/nobody/generate_stream", body(text_input="ba")))
        for process in psutil.Process(child.pid).children(recursive=True):
            if "stub" in process.name():
                process.send_signal(signal.SIGKILL)
        save("triton/dead_stub", await exchange(port, path, body(text_input="ba", max_tokens=2, stream=True)))


ENGINES: dict[str, Callable[[], Any]] = {"vllm": vllm, "triton": triton}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        asyncio.run(ENGINES[sys.argv[1]]())


if __name__ == "__main__":
    main()
