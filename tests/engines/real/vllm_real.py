"""The vLLM adapter and the whole daemon with real vLLM servers on the CPU, with tiny models. `tox -e vllm`.

A server takes half a minute to start, so each is shared: one that writes, one that embeds, one that ranks; and one the
daemon starts itself, twice.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from orchestratord.infra.engines.vllm import Vllm
from orchestratord.ports import Engine, EngineError, Job
from orchestratord.testing.live import LiveApp, mock_settings
from tests.engines import conformance
from tests.engines.real.flows import Flows
from tests.engines.real.servers import CTX, SHORT_CTX, tiny_models, vllm_process
from tests.engines.real.shared_server import SharedServer
from tests.engines.support import CLOCK, Collected, collect, following, job, run

KEY = "sesame-open-up"
make = partial(Vllm, clock=CLOCK)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models(tmp_path_factory.mktemp("hf") / "models")


@pytest.fixture(scope="module")
def writer(models: Path) -> Iterator[SharedServer]:
    process = vllm_process(models / "tiny-llama", "--api-key", KEY)
    with SharedServer("vllm", process, partial(make, api_key=KEY)) as shared:
        yield shared


@pytest.mark.parametrize("claim", conformance.CAREFUL, ids=lambda claim: claim.__name__)
def test_conforms(claim: conformance.Claim, writer: SharedServer) -> None:
    """The adapter keeps every promise of the port (OC-ADAPT)."""

    async def body() -> None:
        engine = writer.engine(slots=4)
        try:
            await claim(engine)
        finally:
            await engine.close()

    run(body())


def test_what_a_token_takes(writer: SharedServer) -> None:
    """ORCH-3023: of a model of two layers with two heads of 32 numbers for K and V each, in 32 bits."""

    async def body() -> None:
        engine = writer.engine(slots=4)
        kv = (await engine.props()).kv
        assert kv is not None
        assert kv.full == 2 * 2 * 2 * 32 * 4
        assert kv.block > 1
        await engine.close()

    run(body())


def test_before_it_is_ready(writer: SharedServer) -> None:
    """Nothing listens while it loads."""
    assert set(writer.reasons) <= {"lost"}


def test_a_wrong_key_is_no_fault_of_the_request(writer: SharedServer) -> None:
    """And neither key is in the message."""

    async def body() -> None:
        engine = Vllm(writer.child.url, clock=CLOCK, api_key="swordfish-and-chips")
        with pytest.raises(EngineError, match="failed") as caught:
            await engine.props()
        assert "swordfish" not in str(caught.value)
        await engine.close()

    run(body())


def test_what_it_says_of_itself(writer: SharedServer) -> None:
    """Without being told the slots, it is given as many as its cache holds at full length."""

    async def body() -> None:
        engine = writer.engine()
        props = await engine.props()
        assert (props.engine_version, props.ctx, props.slots, props.chat_template) == ("0.32.0", CTX, 32, True)
        assert "prefix_cache" in props.features
        await engine.close()

    run(body())


def test_a_schema_and_a_grammar_are_followed(writer: SharedServer) -> None:
    """Random weights write what the schema or the grammar allows, and nothing else."""

    async def body() -> None:
        engine = writer.engine()
        grammar = conformance.Sampling(temperature=1.0, grammar='root ::= "yes" | "no"')
        assert (await collect(engine, job(max_tokens=20, sampling=grammar))).text in ("yes", "no")
        schema = conformance.Sampling(temperature=1.0, json_schema={"type": "boolean"})
        assert (await collect(engine, job(max_tokens=20, sampling=schema))).text.strip() in ("true", "false")
        await engine.close()

    run(body())


def test_embeddings(models: Path) -> None:
    """One unit vector per input, each with the engine's own count; nothing else is served there."""
    with SharedServer(
        "vllm", vllm_process(models / "tiny-embed", "--runner", "pooling", ctx=SHORT_CTX), make
    ) as shared:

        async def body() -> None:
            engine = shared.engine()
            props = await engine.props()
            assert (props.workloads, props.features, props.chat_template) == ({"embedding"}, (), False)
            collected = await collect(engine, Job("embedding", 1, 0, inputs=("ba fi", "go", "ba fi")))
            assert [result["index"] for result in collected.results] == [0, 1, 2]
            assert [result["tokens_in"] for result in collected.results] == [4, 3, 4]
            first, other, again = (result["embedding"] for result in collected.results)
            assert math.isclose(math.hypot(*first), 1, rel_tol=1e-3)
            assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(first, again, strict=True))
            assert not all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(first, other, strict=True))
            assert collected.end is not None
            assert (collected.end.tokens_in, collected.end.tokens_out) == (11, 0)
            long = await collect(engine, Job("embedding", 1, 0, inputs=("ba", "ba " * SHORT_CTX)))
            assert (long.kind, len(long.results)) == ("refused", 1)
            await conformance.unknown_work_is_refused(engine)
            await engine.close()

        run(body())


def test_reranking(models: Path) -> None:
    """Every document once, best first, as probabilities; the order of the documents does not change the scores."""
    with SharedServer(
        "vllm", vllm_process(models / "tiny-rerank", "--runner", "pooling", ctx=SHORT_CTX), make
    ) as shared:

        async def body() -> None:
            engine = shared.engine()
            assert (await engine.props()).workloads == {"rerank"}
            documents = ("ba fi", "x", "go no ba")
            forth = await collect(engine, Job("rerank", 1, 0, prompt="ba", inputs=documents))
            back = await collect(engine, Job("rerank", 1, 0, prompt="ba", inputs=documents[::-1]))
            scores = [result["relevance_score"] for result in forth.results]
            assert scores == sorted(scores, reverse=True)
            assert all(0 <= score <= 1 for score in scores)
            assert {result["scale"] for result in forth.results} == {"probability"}
            assert sorted(result["index"] for result in forth.results) == [0, 1, 2]
            by_document = {documents[r["index"]]: r["relevance_score"] for r in forth.results}
            for result in back.results:
                score = by_document[documents[::-1][result["index"]]]
                assert math.isclose(result["relevance_score"], score, abs_tol=1e-4)
            await conformance.unknown_work_is_refused(engine)
            await engine.close()

        run(body())


def test_a_dead_core_ends_the_stream_in_a_failure(models: Path) -> None:
    """vLLM itself ends it well, with [DONE] and a clean close; health says so, and then the server exits with 0."""
    with SharedServer("vllm", vllm_process(models / "tiny-llama"), make) as shared:

        async def body() -> None:
            engine = shared.engine()
            cores = _cores(shared.child.pid)
            assert cores
            reading = await _begun(engine)
            for core in cores:
                core.send_signal(signal.SIGKILL)
            collected = await reading
            assert collected.kind in ("failed", "lost")
            assert collected.end is None
            try:
                reason = await engine.ready()
            except EngineError as error:
                reason = error.kind
            assert reason is not None
            await engine.close()

        run(body())


async def _begun(engine: Engine) -> asyncio.Task[Collected]:
    """A long job that has given its first text already."""
    seen = asyncio.Event()

    async def read() -> Collected:
        collected = Collected()
        try:
            async with following(engine, job(max_tokens=CTX - 20)) as chunks:
                async for chunk in chunks:
                    collected.chunks.append(chunk)
                    seen.set()
        except EngineError as error:
            collected.error = error
        return collected

    task = asyncio.create_task(read())
    await seen.wait()
    return task


def _cores(pid: int) -> list[psutil.Process]:
    """The processes that compute for the server `pid`."""
    return [p for p in psutil.Process(pid).children(recursive=True) if "EngineCore" in p.name() or "Worker" in p.name()]


class TestFlows(Flows):
    engine = "vllm"
    templates = True

    @pytest.fixture(scope="class")
    @staticmethod
    def app(models: Path) -> Iterator[LiveApp]:
        pool = {
            "id": "home",
            "engine": "vllm",
            "model": "hf:tiny/llama",
            "replicas": [{"id": "r0", "process": vllm_process(models / "tiny-llama")}],
        }
        with LiveApp(mock_settings(pools=[pool]), manual=False) as app:
            yield app

    @staticmethod
    def servers() -> list[psutil.Process]:
        """The API server first, then its engine core and worker: all of them have to go. Not the one all other tests
        share, which has a key."""
        found = psutil.Process(os.getpid()).children(recursive=True)
        servers = [
            p
            for p in found
            if (line := p.cmdline())
            and "vllm.entrypoints" in str(line)
            and "warden" not in str(line)
            and KEY not in line
        ]
        return servers + [p for server in servers for p in server.children(recursive=True)]
