"""Embeddings and reranking on a vLLM server that runs a pooling model."""

from __future__ import annotations

import msgspec

from orchestratord.infra.engines.plumbing import Count, Server, read
from orchestratord.ports import Chunk, Deliver, EngineError, Job, JobEnd


class Usage(msgspec.Struct):
    prompt_tokens: Count
    completion_tokens: Count = 0


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: Usage


class _Rank(msgspec.Struct):
    index: Count
    relevance_score: float


class _Ranks(msgspec.Struct):
    results: list[_Rank]
    usage: Usage


async def pooled(server: Server, model: str, job: Job, deliver: Deliver) -> None:
    """Run an embedding or rerank job, as `Engine.run` does. Raises EngineError."""
    await (_embed if job.workload == "embedding" else _rank)(server, model, job, deliver)


async def _embed(server: Server, model: str, job: Job, deliver: Deliver) -> None:
    """One request per input: only so does vLLM say how many tokens each has."""
    total = 0
    for index, text in enumerate(job.inputs):
        body = {"model": model, "input": [text], "encoding_format": "float"}
        answer = read(_Embeddings, await server.work("/v1/embeddings", body, job), "vLLM's /v1/embeddings")
        if len(answer.data) != 1:
            raise EngineError("protocol", f"vLLM answers one input with {len(answer.data)} embeddings")
        total += answer.usage.prompt_tokens
        result = {
            "index": index,
            "embedding": answer.data[0].embedding,
            "tokens_in": answer.usage.prompt_tokens,
        }
        end = JobEnd("stop", total, 0) if index == len(job.inputs) - 1 else None
        if not deliver(Chunk(results=[result], end=end)):
            return


async def _rank(server: Server, model: str, job: Job, deliver: Deliver) -> None:
    body = {"model": model, "query": job.prompt, "documents": list(job.inputs)}
    answer = read(_Ranks, await server.work("/v1/rerank", body, job), "vLLM's /v1/rerank")
    if sorted(rank.index for rank in answer.results) != list(range(len(job.inputs))):
        raise EngineError("protocol", "vLLM did not rank every document once")
    results = [
        {"index": rank.index, "relevance_score": rank.relevance_score, "scale": "probability"}
        for rank in sorted(answer.results, key=lambda rank: (-rank.relevance_score, rank.index))
    ]
    deliver(Chunk(results=results, end=JobEnd("stop", answer.usage.prompt_tokens, 0)))
