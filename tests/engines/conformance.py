"""What every driver must do, whatever it drives (OC-ADAPT). Each function is one claim; it gets a ready engine with at
least two slots, idle, and leaves it idle. `ALL` lists them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from orchestratord.domain.request import Message, Sampling
from orchestratord.ports import Engine, EngineError, Job
from tests.engines.support import CLOCK, LIMIT_S, Collected, collect, following, job

WARM = Sampling(temperature=1.0)


async def idle(engine: Engine) -> None:
    """Return once no slot is busy."""
    async with CLOCK.limit(LIMIT_S):
        while await engine.busy():
            pass


def check_ended(collected: Collected) -> None:
    assert collected.error is None
    ends = [chunk.end for chunk in collected.chunks if chunk.end]
    assert len(ends) == 1
    assert collected.end is ends[0]  # in the last chunk: nothing follows it
    assert all(collected.texts)  # an empty text is none
    counts = [chunk.tokens_out for chunk in collected.chunks]
    assert counts == sorted(counts)


async def describes_itself(engine: Engine) -> None:
    """A ready engine names its version and model and the limits to admit against."""
    assert await engine.ready() is None
    props = await engine.props()
    assert props.engine_version
    assert props.model_id
    assert props.ctx > 0
    assert props.slots >= 2
    assert "completion" in props.workloads
    assert await engine.busy() == frozenset()


async def a_stream_ends_once(engine: Engine) -> None:
    """A job yields text, then exactly one end with the engine's own counts."""
    collected = await collect(engine, job(max_tokens=8))
    check_ended(collected)
    end = collected.end
    assert end is not None
    assert (end.finish_reason, end.tokens_out) == ("length", 8)
    assert end.tokens_in == await engine.tokenize(job().prompt)
    assert collected.text


async def equal_seeds_write_equal_texts(engine: Engine) -> None:
    """Prompt, seed and sampling decide the text; another seed or prompt gives another one (ORCH-3045)."""
    asked = job(max_tokens=24, sampling=WARM, keep_cache=False)
    first, again = await collect(engine, asked), await collect(engine, asked)
    assert first.text == again.text
    assert (await collect(engine, replace(asked, seed=8))).text != first.text
    assert (await collect(engine, replace(asked, prompt="tuga"))).text != first.text


async def a_stop_string_ends_the_text(engine: Engine) -> None:
    """A stop string ends the job with `stop` and is not part of the text."""
    asked = job(max_tokens=24, sampling=WARM, keep_cache=False)
    whole = (await collect(engine, asked)).texts
    stop = next(text for text in whole[3:] if len(text) > 2)
    collected = await collect(engine, replace(asked, sampling=replace(WARM, stop=(stop,))))
    check_ended(collected)
    assert collected.end is not None
    assert collected.end.finish_reason == "stop"
    assert stop not in collected.text
    assert "".join(whole).startswith(collected.text)


async def leaving_early_frees_the_slot(engine: Engine) -> None:
    """Leaving a stream aborts the job: its slot is free soon, and the next job is served (ORCH-3026)."""
    async with following(engine, job(max_tokens=3000)) as chunks:
        async for _ in chunks:
            assert len(await engine.busy() or ()) == 1
            break
    await idle(engine)
    check_ended(await collect(engine, job()))


async def a_cancelled_task_frees_the_slot(engine: Engine) -> None:
    """The same when the reading task is cancelled in the middle of a read."""
    begun = asyncio.Event()

    async def read() -> None:
        async with following(engine, job(max_tokens=3000)) as chunks:
            async for _ in chunks:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(engine)


async def every_slot_works_at_once(engine: Engine) -> None:
    """As many jobs as there are slots run side by side."""
    slots = (await engine.props()).slots
    for collected in await asyncio.gather(*(collect(engine, job(seed=seed)) for seed in range(slots))):
        check_ended(collected)
    await idle(engine)


async def a_prompt_over_the_context_is_refused(engine: Engine) -> None:
    """It is the request that is wrong, not the engine: `refused`, and the next job is served."""
    ctx = (await engine.props()).ctx
    collected = await collect(engine, job("ba " * (ctx + 1)))
    assert collected.kind == "refused"
    assert not collected.chunks
    check_ended(await collect(engine, job()))


async def the_bound_holds(engine: Engine) -> None:
    """`bound` is never below the exact count, for any text."""
    for text in ("", " ", "ba fi gono", "größe 東京 🙂 👩‍🔬", "\x00\n\t \r\n", "<s></s><s>", "x" * 500, "  \n  " * 50):
        assert await engine.tokenize(text) <= engine.bound(text)


async def messages_become_a_prompt(engine: Engine) -> None:
    """The engine's own template is applied, and the prompt can be run."""
    prompt = await engine.render([Message("system", "be brief"), Message("user", "hello there")])
    assert "hello there" in prompt
    check_ended(await collect(engine, job(prompt)))


async def unknown_work_is_refused(engine: Engine) -> None:
    """A workload that props do not list is refused, never attempted."""
    missing = {"completion", "embedding", "rerank"} - (await engine.props()).workloads
    for workload in missing:
        with pytest.raises(EngineError) as caught:
            await engine.run(Job(workload, 1, 0, prompt="a", inputs=("b",)), lambda chunk: True)  # type: ignore[arg-type]
        assert caught.value.kind == "refused"


async def closing_twice_is_closing(engine: Engine) -> None:
    """`close` is idempotent."""
    await engine.close()
    await engine.close()


Claim = Callable[[Engine], Coroutine[Any, Any, None]]
ALL: tuple[Claim, ...] = (
    describes_itself,
    a_stream_ends_once,
    equal_seeds_write_equal_texts,
    a_stop_string_ends_the_text,
    leaving_early_frees_the_slot,
    a_cancelled_task_frees_the_slot,
    every_slot_works_at_once,
    a_prompt_over_the_context_is_refused,
    the_bound_holds,
    messages_become_a_prompt,
    unknown_work_is_refused,
    closing_twice_is_closing,
)
