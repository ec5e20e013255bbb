"""The llama.cpp adapter and process host with a real llama-server on a tiny model.

Which server: the one named in the environment variable LLAMA_SERVER, else as `llamacpp_process` finds one.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines import llamacpp_process
from orchestratord.infra.engines.llamacpp import LlamaCpp
from orchestratord.infra.process import Child, ProcessHost
from orchestratord.ports import EngineError, ProcessSpec
from orchestratord.testing.tiny_gguf import FOREIGN, tiny_llama
from tests.engines import conformance
from tests.engines.support import CLOCK, LIMIT_S, Collected, collect, following, job, run, turn

pytestmark = pytest.mark.llamacpp


def spec(model: Path, *extra: str) -> ProcessSpec:
    return ProcessSpec("llamacpp", str(model), 2, 4096, 1, os.environ.get("LLAMA_SERVER") or None, extra, {}, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_llama(path)
    try:
        llamacpp_process.command(spec(path), 1)
    except FileNotFoundError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    return path


async def until_ready(engine: LlamaCpp, child: Child) -> list[str]:
    """Wait for the model; the different reasons why it was not ready."""
    gone = asyncio.ensure_future(child.wait())
    reasons: list[str] = []
    try:
        while not gone.done():
            try:
                reason = await engine.ready()
            except EngineError as error:
                reason = error.kind
            if reason is None:
                return reasons
            if reason not in reasons:
                reasons.append(reason)
        raise AssertionError("llama-server ended:\n" + "\n".join(child.tail()))
    finally:
        gone.cancel()


@asynccontextmanager
async def served(model: Path, *extra: str, api_key: str | None = None) -> AsyncIterator[tuple[LlamaCpp, Child]]:
    child = await ProcessHost(CLOCK).start(spec(model, *extra))
    engine = LlamaCpp(child.url, clock=CLOCK, api_key=api_key)
    try:
        await until_ready(engine, child)
        yield engine, child
    finally:
        await engine.close()
        await child.stop(LIMIT_S)


@pytest.mark.parametrize("claim", conformance.ALL, ids=lambda claim: claim.__name__)
def test_conforms(claim: conformance.Claim, model: Path) -> None:
    """The adapter keeps every promise of the port (OC-ADAPT)."""

    async def body() -> None:
        async with served(model) as (engine, _):
            await claim(engine)

    run(body())


def test_starting(model: Path) -> None:
    """Before the model is loaded the server is lost or loading, nothing else; then its limits are those asked for."""

    async def body() -> None:
        child = await ProcessHost(CLOCK).start(spec(model))
        engine = LlamaCpp(child.url, clock=CLOCK)
        assert set(await until_ready(engine, child)) <= {"lost", "loading model"}
        props = await engine.props()
        assert (props.ctx, props.slots, props.model_id, props.chat_template) == (4096, 2, str(model), True)
        await engine.close()
        await child.stop(LIMIT_S)
        assert await child.wait() in (0, -signal.SIGTERM)  # it minds the signal only from a moment after it is ready

    run(body())


def test_a_broken_model(tmp_path: Path, model: Path) -> None:
    """A damaged file ends the server at once; its last words say why."""

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:5000])

    async def body() -> None:
        child = await ProcessHost(CLOCK).start(spec(broken))
        assert await child.wait() == 1
        assert any("load" in line for line in child.tail())

    run(body())


def test_an_assumed_template_is_none(tmp_path: Path, model: Path) -> None:
    """A model without a chat template says so, whatever the server assumes for it."""

    async def body() -> None:
        plain = tmp_path / "plain.gguf"
        tiny_llama(plain, template=False)
        async with served(plain) as (engine, _):
            assert not (await engine.props()).chat_template

    run(body())


def test_characters_survive(model: Path) -> None:
    """Text made of single byte tokens arrives whole, and the figures count every token."""

    async def body() -> None:
        async with served(model) as (engine, _):
            rule = " ".join(msgspec.json.encode(" " + word).decode() for word in FOREIGN)
            collected = await collect(engine, job(max_tokens=200, sampling=Sampling(grammar=f"root ::= {rule}")))
            assert collected.error is None
            assert collected.text == "".join(" " + word for word in FOREIGN)
            assert collected.end is not None
            assert collected.end.tokens_out > len(collected.texts)

    run(body())


def test_a_schema_holds(model: Path) -> None:
    """With a JSON schema even nonsense is valid JSON of that shape, where the features promise it."""

    async def body() -> None:
        async with served(model) as (engine, _):
            schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
            collected = await collect(engine, job(max_tokens=200, sampling=Sampling(json_schema=schema)))
            if "json_schema" in (await engine.props()).features:
                assert isinstance(msgspec.json.decode(collected.text)["ok"], bool)
            else:  # a build that ignores it must not claim it
                assert not collected.text.lstrip().startswith("{")
            bad = await collect(engine, job(sampling=Sampling(grammar="nonsense")))
            assert bad.kind == "refused"

    run(body())


def test_tokens_are_counted_as_prompts_are(model: Path) -> None:
    """`tokenize` says exactly what the engine will report as tokens_in, special tokens in the text included."""

    async def body() -> None:
        async with served(model) as (engine, _):
            for prompt in ("ba fi", "größe <s> x</s>", await engine.render([Message("user", "hi")])):
                collected = await collect(engine, job(prompt, max_tokens=1))
                assert collected.end is not None
                assert collected.end.tokens_in == await engine.tokenize(prompt)

    run(body())


def test_the_slot_one_asks_for_is_the_slot_that_works(model: Path) -> None:
    """Pinning: sessions find their prefix again, and an abort is proven by the very slot (ORCH-3021, ORCH-3026)."""

    async def body() -> None:
        async with served(model) as (engine, _):
            for slot in (1, 0):
                async with following(engine, job(max_tokens=3000, slot=slot)) as chunks:
                    async for _chunk in chunks:
                        break
                    assert await engine.busy() == {slot}
                await conformance.idle(engine)

    run(body())


def test_how_full_the_kv_cache_is(model: Path) -> None:
    """OD-19: grows with the output of what runs, against all slots; what an idle slot still holds does not count."""

    async def body() -> None:
        async with served(model) as (engine, _):
            assert await engine.kv_usage() == 0
            prompt = "ba fi gono " * 30
            tokens = await engine.tokenize(prompt)
            async with following(engine, job(prompt, max_tokens=3000, slot=0)) as chunks:
                figures = []
                async for chunk in chunks:
                    figures.append((chunk.tokens_out, await engine.kv_usage()))
                    if chunk.tokens_out >= 40:
                        break
            for tokens_out, usage in figures:
                assert usage is not None
                assert usage * 2 * 4096 >= tokens + tokens_out - 1  # the last one is not in it yet
                assert usage <= 0.5  # the other slot is empty
            await conformance.idle(engine)
            assert await engine.kv_usage() == 0

    run(body())


def test_an_abort_in_prefill_frees_the_slot(model: Path) -> None:
    """A job cancelled before its first token gives its slot back too."""

    async def body() -> None:
        async with served(model) as (engine, _):
            task = asyncio.create_task(collect(engine, job("ba fi " * 600, max_tokens=1000, keep_cache=False)))
            while not await engine.busy():
                assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await conformance.idle(engine)
            conformance.check_ended(await collect(engine, job()))

    run(body())


def test_the_key(model: Path) -> None:
    """With the wrong key everything but health fails, which is no fault of the request; with the right one it works."""

    async def body() -> None:
        async with served(model, "--api-key", "sesame", api_key="sesame") as (engine, child):
            conformance.check_ended(await collect(engine, job()))
            stranger = LlamaCpp(child.url, clock=CLOCK, api_key="swordfish")
            collected = await collect(stranger, job())
            with pytest.raises(EngineError) as caught:
                await stranger.props()
            await stranger.close()
            for error in (collected.error, caught.value):
                assert error is not None
                assert error.kind == "failed"
                assert "swordfish" not in str(error)

    run(body())


async def begun(engine: LlamaCpp) -> asyncio.Task[Collected]:
    """A long job that has given its first text already."""
    first = asyncio.Event()

    async def read() -> Collected:
        collected = Collected()
        try:
            async with following(engine, job(max_tokens=4000)) as chunks:
                async for chunk in chunks:
                    collected.chunks.append(chunk)
                    first.set()
        except EngineError as error:
            collected.error = error
        return collected

    task = asyncio.create_task(read())
    await first.wait()
    return task


def test_kill_9_in_a_stream(model: Path) -> None:
    """The stream ends in `lost` after what had come, the child's code tells, and nothing listens any more."""

    async def body() -> None:
        async with served(model) as (engine, child):
            task = await begun(engine)
            os.kill(child.pid, signal.SIGKILL)
            collected = await task
            assert collected.kind == "lost"
            assert collected.text
            assert await child.wait() == -signal.SIGKILL
            with pytest.raises(EngineError, match="lost"):
                await engine.ready()

    run(body())


def test_stopping_in_a_stream(model: Path) -> None:
    """SIGTERM ends the server within its grace, or the kill after it does, and the stream ends in `lost`.

    Usually the server ends at the next ping, within 2 s; now and then its signal handler deadlocks and only the kill
    helps (seen with b11434).
    """

    async def body() -> None:
        async with served(model) as (engine, child):
            task = await begun(engine)
            await child.stop(3)
            assert await child.wait() in (0, -signal.SIGKILL)
            assert (await task).kind == "lost"

    run(body())


def test_a_frozen_server_is_silent(model: Path) -> None:
    """A stopped process answers nothing, so a caller's own limit ends the wait; stop still works."""

    async def body() -> None:
        async with served(model) as (engine, child):
            task = await begun(engine)
            os.kill(child.pid, signal.SIGSTOP)
            for _ in range(100):
                await turn()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await child.stop(0.05)
            assert await child.wait() == -signal.SIGKILL

    run(body())
