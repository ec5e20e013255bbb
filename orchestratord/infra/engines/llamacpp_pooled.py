"""Embedding and rerank on llama-server: one request per input.

A request with several inputs would take as many slots as it likes: the server spreads them, and pins none of them.
One by one a job takes one slot, its results go out as they come, and each has a token count of its own. Which slot
that is the server chooses. Nothing is streamed, so it notices a client that left only about once a second.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from orchestratord.infra.engines.plumbing import refusal
from orchestratord.infra.engines.transport import Transport
from orchestratord.ports import Chunk, Deliver, EngineError, Job, JobEnd

REPLY_BYTES = 4 << 20  # one vector of 65 536 numbers takes a third of it

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
TOO_LONG = re.compile(r"too large to process.*batch size: (\d+)|is larger than the max context size")


class _Used(msgspec.Struct):
    prompt_tokens: Count


class _Vector(msgspec.Struct):
    embedding: Annotated[list[float], msgspec.Meta(min_length=1, max_length=65_536)]


class _Embeddings(msgspec.Struct):
    data: Annotated[list[_Vector], msgspec.Meta(min_length=1, max_length=1)]
    usage: _Used


class _Score(msgspec.Struct):
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: Annotated[list[_Score], msgspec.Meta(min_length=1, max_length=1)]
    usage: _Used


async def run(http: Transport, job: Job, deliver: Deliver) -> None:
    """A result for each input as it comes, the end with the last. Raises EngineError."""
    tokens, last = 0, len(job.inputs) - 1
    for index, text in enumerate(job.inputs):
        payload, used = await (_embed if job.workload == "embedding" else _rank)(http, job, text)
        tokens += used
        end = JobEnd("stop", tokens, 0) if index == last else None
        if not deliver(Chunk(results=[{"index": index, **payload}], end=end)):
            return


async def _embed(http: Transport, job: Job, text: str) -> tuple[dict[str, Any], int]:
    reply = await _work(http, job, "/v1/embeddings", {"input": [text]}, _Embeddings)
    # Nine digits are all a 32-bit float has; the server writes it as a 64-bit one, with seventeen.
    vector = [float(f"{value:.9g}") for value in reply.data[0].embedding]
    return {"embedding": vector, "tokens_in": reply.usage.prompt_tokens}, reply.usage.prompt_tokens


async def _rank(http: Transport, job: Job, text: str) -> tuple[dict[str, Any], int]:
    reply = await _work(http, job, "/rerank", {"query": job.prompt, "documents": [text]}, _Ranking)
    return {"relevance_score": reply.results[0].relevance_score, "scale": "logit"}, reply.usage.prompt_tokens


async def _work(http: Transport, job: Job, path: str, fields: dict[str, Any], kind: Any) -> Any:
    """One input's answer. Leaving early closes the connection."""
    async with http.post(path, msgspec.json.encode(fields), extra=job.trace) as reply:
        body = await reply.body(REPLY_BYTES)
    if reply.status != 200:
        raise _failure(path, reply.status, body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # NaN comes as null
        raise EngineError("protocol", f"llama-server's {path} cannot be read: {error}") from None


def _failure(path: str, status: int, body: bytes) -> EngineError:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        parsed = None
    error = refusal("llama-server", path, status, parsed)
    # An input beyond the physical batch is a 500 in its words, but nothing is wrong with the server.
    return EngineError("refused", error.message) if TOO_LONG.search(error.message) else error
