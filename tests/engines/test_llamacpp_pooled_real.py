"""Embedding and rerank on a real llama-server: tiny BERT models, as processes started for the one and for the other."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestratord.domain.request import Workload
from orchestratord.infra.engines.llamacpp import LlamaCpp
from orchestratord.infra.process import Child, ProcessHost
from orchestratord.ports import Job, ProcessSpec
from orchestratord.testing.tiny_gguf import tiny_embed, tiny_llama, tiny_rerank
from tests.engines import conformance
from tests.engines.support import CLOCK, LIMIT_S, collect, following, job, run
from tests.engines.test_llamacpp_real import until_ready

pytestmark = pytest.mark.llamacpp

MAKERS: dict[str, Callable[[Path], None]] = {"completion": tiny_llama, "embedding": tiny_embed, "rerank": tiny_rerank}
CTX = 256


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in MAKERS}


@asynccontextmanager
async def served(model: Path, mode: Workload, *extra: str) -> AsyncIterator[tuple[LlamaCpp, Child]]:
    binary = os.environ.get("LLAMA_SERVER") or None
    child = await ProcessHost(CLOCK).start(
        ProcessSpec("llamacpp", str(model), 2, CTX, 1, binary, extra, {}, None, mode)
    )
    engine = LlamaCpp(child.url, clock=CLOCK)
    try:
        await until_ready(engine, child)
        yield engine, child
    finally:
        await engine.close()
        await child.stop(LIMIT_S)


def embed(*texts: str) -> Job:
    return Job("embedding", 1, 0, inputs=texts)


def rank(query: str, *texts: str) -> Job:
    return Job("rerank", 1, 0, prompt=query, inputs=texts)


@pytest.mark.parametrize(
    ("mode", "model", "extra", "workloads", "ctx"),
    [
        ("completion", "completion", (), {"completion"}, CTX),
        ("embedding", "embedding", (), {"embedding"}, CTX),
        ("rerank", "rerank", (), {"rerank"}, CTX),
        ("embedding", "completion", ("--pooling", "mean"), {"completion", "embedding"}, CTX),
        ("embedding", "completion", ("--pooling", "none"), {"completion"}, CTX),
        ("completion", "embedding", ("--embeddings",), {"embedding"}, 64),  # an input must fit into the small batch
        ("completion", "rerank", ("--reranking",), {"rerank"}, 64),
    ],
)
def test_props_are_true_to_what_the_server_does(
    models: dict[str, Path], mode: Workload, model: str, extra: tuple[str, ...], workloads: set[str], ctx: int
) -> None:
    """OC-CTRL-2061: however it was started, found out by trying; and a workload not listed is refused."""

    async def body() -> None:
        async with served(models[model], mode, *extra) as (engine, _):
            props = await engine.props()
            assert (props.workloads, props.ctx, props.slots) == (workloads, ctx, 2)
            await conformance.unknown_work_is_refused(engine)
            done = {"completion": job(), "embedding": embed("ba", "fi gono"), "rerank": rank("ba", "fi", "gono")}
            for workload in workloads:
                collected = await collect(engine, done[workload])
                assert collected.error is None
                assert collected.end is not None
                assert len(collected.results) == (0 if workload == "completion" else 2)
            await conformance.idle(engine)

    run(body())


def test_embeddings(models: dict[str, Path]) -> None:
    """Unit vectors, the same for the same text in whatever company; the engine's own token counts."""

    async def body() -> None:
        async with served(models["embedding"], "embedding") as (engine, _):
            collected = await collect(engine, embed("ba fi", "gono", "ba fi", ""))
            vectors = [result["embedding"] for result in collected.results]
            assert [result["index"] for result in collected.results] == [0, 1, 2, 3]
            for vector in vectors:
                assert len(vector) == 64
                assert math.isclose(math.fsum(value * value for value in vector), 1, abs_tol=1e-6)
            assert vectors[0] == pytest.approx(vectors[2], abs=1e-6)
            assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
            assert [r["tokens_in"] for r in collected.results] == [
                await engine.tokenize(text) for text in ("ba fi", "gono", "ba fi", "")
            ]
            assert collected.end is not None
            assert collected.end.tokens_in == sum(result["tokens_in"] for result in collected.results)
            assert collected.end.tokens_out == 0

    run(body())


def test_scores_follow_the_pair(models: dict[str, Path]) -> None:
    """A score per document, the same whatever stands beside it, another for another query."""

    async def body() -> None:
        async with served(models["rerank"], "rerank") as (engine, _):
            many = await collect(engine, rank("ba", "fi", "gono", "ba"))
            scores = [result["relevance_score"] for result in many.results]
            assert [result["index"] for result in many.results] == [0, 1, 2]
            assert len({round(score, 3) for score in scores}) == 3
            alone = await collect(engine, rank("ba", "gono"))
            other = await collect(engine, rank("fi", "gono"))
            assert alone.results[0]["relevance_score"] == pytest.approx(scores[1], abs=1e-4)
            assert other.results[0]["relevance_score"] != pytest.approx(scores[1], abs=1e-2)
            pairs = [await engine.tokenize("ba") + await engine.tokenize(text) for text in ("fi", "gono", "ba")]
            assert many.end is not None
            assert many.end.tokens_in is not None
            assert many.end.tokens_in <= sum(pairs), "admission must count no less than the engine"

    run(body())


@pytest.mark.parametrize("extra", [(), ("-b", "128", "-ub", "128")], ids=["the context", "the batch"])
def test_an_input_that_does_not_fit_is_the_requests_fault(models: dict[str, Path], extra: tuple[str, ...]) -> None:
    """ORCH-3016: one token more than props say is refused, though the server calls that its own failure."""

    async def body() -> None:
        async with served(models["embedding"], "embedding", *extra) as (engine, _):
            limit = (await engine.props()).ctx
            assert limit == (128 if extra else CTX)
            fits = "ba " * (limit - 2)  # and two marks
            assert await engine.tokenize(fits) == limit
            assert (await collect(engine, embed(fits))).error is None
            collected = await collect(engine, embed("ba", fits + "ba"))
            assert (collected.kind, len(collected.results)) == ("refused", 1)
            assert (await collect(engine, embed("ba"))).error is None

    run(body())


def test_leaving_between_two_inputs_frees_the_slot(models: dict[str, Path]) -> None:
    """ORCH-3026: what is left is not asked for any more."""

    async def body() -> None:
        async with served(models["embedding"], "embedding") as (engine, _):
            async with following(engine, embed(*["ba fi gono " * 50] * 100)) as chunks:
                async for chunk in chunks:
                    assert [result["index"] for result in chunk.results] == [0]
                    break
            await conformance.idle(engine)

    run(body())
