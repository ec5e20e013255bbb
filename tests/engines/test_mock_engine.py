"""The mock engine: a driver like any other, plus the faults and the books that tests rely on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.ports import Chunk, Deliver, EngineError, Job
from tests.engines import conformance
from tests.engines.support import CLOCK, collect, following, job, run


def engine(**options: object) -> MockEngine:
    return MockEngine(clock=CLOCK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("claim", conformance.ALL, ids=lambda claim: claim.__name__)
def test_conforms(claim: conformance.Claim) -> None:
    """The mock keeps every promise of the port (OC-ADAPT)."""
    run(claim(engine()))


def test_embeddings_are_unit_vectors() -> None:
    """One result per input, in order, deterministic, of length 1."""

    async def body() -> None:
        asked = Job("embedding", 1, 0, inputs=("a cat", "a kitten", "a cat"))
        collected = await collect(engine(), asked)
        assert [result["index"] for result in collected.results] == [0, 1, 2]
        first, second, third = (result["embedding"] for result in collected.results)
        assert len(first) == 8
        assert math.isclose(sum(value * value for value in first), 1)
        assert first == third != second
        assert collected.results[0]["tokens_in"] == 3
        assert collected.end is not None
        assert (collected.end.tokens_in, collected.end.tokens_out) == (9, 0)

    run(body())


def test_ranking_is_sorted() -> None:
    """Documents come back best first, with logits."""

    async def body() -> None:
        collected = await collect(engine(), Job("rerank", 1, 0, prompt="q", inputs=("x", "y", "z")))
        scores = [result["relevance_score"] for result in collected.results]
        assert scores == sorted(scores, reverse=True)
        assert sorted(result["index"] for result in collected.results) == [0, 1, 2]
        assert {result["scale"] for result in collected.results} == {"logit"}

    run(body())


@pytest.mark.parametrize(
    ("script", "kind", "outputs"),
    [
        (MockScript(refuse="bad grammar"), "refused", 0),
        (MockScript(full=True), "full", 0),
        (MockScript(die_after=0), "lost", 0),
        (MockScript(die_after=3), "lost", 3),
        (MockScript(garbage_after=2), "protocol", 2),
        (MockScript(error_after=1), "failed", 1),
    ],
)
def test_faults(script: MockScript, kind: str, outputs: int) -> None:
    """A scripted job fails as told after as many outputs as told, and the one after it is well."""

    async def body() -> None:
        mock = engine(burst=2)
        mock.play(script)
        collected = await collect(mock, job())
        assert (collected.kind, len(collected.texts)) == (kind, outputs)
        assert mock.busy_slots == mock.aborted == 0
        assert (await collect(mock, job())).end is not None

    run(body())


def test_scripts_apply_in_order() -> None:
    """Each script applies to its number of jobs, then the next; `clear` forgets the rest."""

    async def body() -> None:
        mock = engine()
        mock.play(MockScript(jobs=2, die_after=1), MockScript(jobs=math.inf, refuse="no"))
        kinds = [(await collect(mock, job())).kind for _ in range(4)]
        assert kinds == ["lost", "lost", "refused", "refused"]
        mock.clear()
        assert (await collect(mock, job())).kind is None

    run(body())


def test_endless_ignores_max_tokens() -> None:
    """An endless job goes on past max_tokens until it is left."""

    async def body() -> None:
        mock = engine()
        mock.play(MockScript(endless=True))
        async with following(mock, job(max_tokens=2)) as chunks:
            async for chunk in chunks:
                if chunk.tokens_out > 50:
                    break
        assert (mock.aborted, mock.busy_slots) == (1, 0)

    run(body())


def test_a_hanging_job_can_be_aborted() -> None:
    """Nothing comes after the hang; cancelling the reader frees the slot."""

    async def body() -> None:
        mock = engine()
        mock.play(MockScript(hang_after=2))
        texts: list[str] = []
        two = asyncio.Event()

        async def read() -> None:
            async with following(mock, job()) as chunks:
                async for chunk in chunks:
                    texts.extend(chunk.texts)
                    if len(texts) == 2:
                        two.set()

        task = asyncio.create_task(read())
        await two.wait()
        await collect(mock, job(max_tokens=50))  # time enough for a third one
        assert len(texts) == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (mock.aborted, mock.busy_slots) == (1, 0)

    run(body())


def test_an_ignored_abort_keeps_the_slot() -> None:
    """Such a slot stays busy until it is released; a job sent to it meanwhile is refused as full and counted."""

    async def body() -> None:
        mock = engine(slots=1)
        mock.play(MockScript(ignore_abort=True))
        await mock.run(job(), Deliver(lambda chunk: False))
        assert await mock.busy() == {0}
        assert (await collect(mock, job())).kind == "full"
        assert mock.overcommitted == 1
        mock.release()
        assert await mock.busy() == frozenset()
        assert (await collect(mock, job())).end is not None

    run(body())


def test_never_more_jobs_than_slots() -> None:
    """Jobs beyond the slots are turned away, however they arrive, and `peak` never exceeds the slots."""

    async def body() -> None:
        mock = engine(slots=2)
        kinds = [collected.kind for collected in await asyncio.gather(*(collect(mock, job()) for _ in range(5)))]
        assert sorted(kind or "" for kind in kinds) == ["", "", "full", "full", "full"]
        assert (mock.peak, mock.overcommitted, mock.calls, mock.busy_slots) == (2, 3, 5, 0)

    run(body())


async def _texts(chunks: AsyncIterator[Chunk], count: int) -> list[str]:
    texts: list[str] = []
    while len(texts) < count:
        texts.extend((await anext(chunks)).texts)
    return texts


def test_stepping() -> None:
    """While held, exactly as many outputs leave as were stepped, over all jobs; afterwards all of them."""

    async def body() -> None:
        mock = engine()
        mock.hold()
        mock.step(2)
        async with AsyncExitStack() as stack:
            chunks = await stack.enter_async_context(following(mock, job(max_tokens=5)))
            assert len(await _texts(chunks, 2)) == 2
            pending = asyncio.ensure_future(anext(chunks))
            while not mock.waiting:
                await mock.tokenize("")
                await asyncio.wait([pending], timeout=0)
            assert not pending.done()
            mock.step()
            assert (await pending).tokens_out == 3
            mock.release_hold()
            assert [chunk.tokens_out async for chunk in chunks][-1] == 5
        assert mock.aborted == 0

    run(body())


def test_an_aborted_step_is_not_lost() -> None:
    """A step given to a job that is cancelled in the same turn goes to the next job."""

    async def body() -> None:
        mock = engine()
        mock.hold()
        first = asyncio.ensure_future(collect(mock, job(max_tokens=1)))
        while not mock.waiting:
            await asyncio.wait([first], timeout=0)
        mock.step()
        first.cancel()
        assert (await collect(mock, job(max_tokens=1))).end is not None
        await asyncio.gather(first, return_exceptions=True)

    run(body())


def test_not_ready() -> None:
    """A loading engine says why, a dead one is lost; neither takes jobs."""

    async def body() -> None:
        mock = engine()
        mock.loading = "loading model"
        assert await mock.ready() == "loading model"
        assert (await collect(mock, job())).kind == "full"
        mock.loading, mock.down = None, True
        for call in (mock.ready, mock.props, mock.busy):
            with pytest.raises(EngineError, match="lost"):
                await call()
        assert (await collect(mock, job())).kind == "lost"

    run(body())


def test_impersonation() -> None:
    """It stands in for any protocol family and never hides that it is a mock."""

    async def body() -> None:
        mock = engine(engine="vllm", slots=3, ctx=64, chat_template=False)
        assert (mock.engine, mock.driver) == ("vllm", "mock")
        props = await mock.props()
        assert (props.engine_version, props.slots, props.ctx, props.chat_template) == ("mock-1", 3, 64, False)
        with pytest.raises(EngineError, match="chat template"):
            await mock.render([Message("user", "hi")])
        mock.change(model_id="other", engine_version="mock-2")
        assert (await mock.props()).model_id == "other"

    run(body())


def test_unknown_knobs_are_refused() -> None:
    """A sampling knob it cannot honour is named, never dropped in silence."""

    async def body() -> None:
        collected = await collect(engine(), job(sampling=Sampling(grammar="root ::= [a-z]")))
        assert collected.kind == "refused"
        assert collected.error is not None
        assert "grammar" in collected.error.message

    run(body())


def test_time_is_the_clocks() -> None:
    """Prefill and token times pass on the clock it was given and on no other."""

    class Recorder:
        """A clock on which time passes at once."""

        def __init__(self) -> None:
            self.slept: list[float] = []

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    async def body() -> None:
        clock = Recorder()
        mock = MockEngine(clock=clock, token_ms=20, prefill_ms=300)  # type: ignore[arg-type]
        await collect(mock, job(max_tokens=3))
        assert clock.slept == [0.3, 0.02, 0.02, 0.02]

    run(body())
