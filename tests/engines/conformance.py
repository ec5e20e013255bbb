"""What every driver must do, whatever it drives (OC-ADAPT). Each function is one claim; it gets a ready engine with at
least two slots, idle, and leaves it idle. `ALL` lists them. `faults` has what every driver must survive.

Engines differ in what they can tell. One without slots to list says None to `busy`; one without a tokenizer answers
`tokenize` with its bound; one that applies no template says so in its props.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from orchestratord.domain.request import Message, Sampling
from orchestratord.ports import Deliver, Engine, EngineError, Job
from tests.engines.support import CLOCK, LIMIT_S, Collected, collect, following, job

WARM = Sampling(temperature=1.0)
# At what a profile may say of a knob: neutral, and not.
KNOB_VALUES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 0.7),
    "top_p": (1.0, 0.9),
    "top_k": (0, 40),
    "min_p": (0.0, 0.1),
    "repetition_penalty": (1.0, 1.1),
    "presence_penalty": (0.0, 0.5),
    "frequency_penalty": (0.0, 0.5),
    "stop": ((), ("no such text",)),
}


async def idle(engine: Engine) -> None:
    """Return once no slot is busy; at once where the engine lists none."""
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
    assert await engine.busy() in (None, frozenset())
    assert set(props.features) <= {*Sampling.__slots__, "prefix_cache"}


async def long_job(engine: Engine) -> Job:
    """As many tokens as fit."""
    return job(max_tokens=(await engine.props()).ctx - engine.bound(job().prompt))


async def a_stream_ends_once(engine: Engine) -> None:
    """A job yields text, then exactly one end with the engine's own counts."""
    collected = await collect(engine, job(max_tokens=8))
    check_ended(collected)
    end = collected.end
    assert end is not None
    assert (end.finish_reason, end.tokens_out) == ("length", 8)
    tokens = await engine.tokenize(job().prompt)
    if tokens == engine.bound(job().prompt):  # it cannot count before
        assert end.tokens_in is None or end.tokens_in <= tokens
    else:
        assert end.tokens_in == tokens
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
    async with following(engine, await long_job(engine)) as chunks:
        async for _ in chunks:
            busy = await engine.busy()
            assert busy is None or len(busy) == 1
            break
    await idle(engine)
    check_ended(await collect(engine, job()))


async def a_cancelled_task_frees_the_slot(engine: Engine) -> None:
    """The same when the reading task is cancelled in the middle of a read."""
    begun = asyncio.Event()
    asked = await long_job(engine)

    async def read() -> None:
        async with following(engine, asked) as chunks:
            async for _ in chunks:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(engine)
    check_ended(await collect(engine, job()))


async def every_slot_works_at_once(engine: Engine) -> None:
    """As many jobs as there are slots run side by side."""
    slots = min((await engine.props()).slots, 16)
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


async def nothing_is_cut_to_fit(engine: Engine) -> None:
    """A prompt and max_tokens that fit alone but not together are refused; what just fits is written in full."""
    ctx, tokens = (await engine.props()).ctx, await engine.tokenize(job().prompt)
    collected = await collect(engine, job(max_tokens=ctx - 1))
    assert (collected.kind, collected.text) == ("refused", "")
    whole = await collect(engine, job(max_tokens=ctx - tokens))
    check_ended(whole)
    assert whole.end is not None
    assert whole.end.tokens_out == ctx - tokens


async def greedy_is_greedy(engine: Engine) -> None:
    """At temperature 0 the seed does not matter, and no other knob of the profile undoes that."""
    cold = Sampling(temperature=0.0, top_p=0.95, top_k=40)
    first = await collect(engine, job(sampling=cold, keep_cache=False))
    check_ended(first)
    assert (await collect(engine, job(seed=8, sampling=cold, keep_cache=False))).text == first.text


async def knobs_are_honoured_or_refused(engine: Engine) -> None:
    """Every knob the props list is taken, neutral and not; every other one is refused by name."""
    features = (await engine.props()).features
    for knob, values in KNOB_VALUES.items():
        for value in values:
            collected = await collect(engine, job(max_tokens=2, sampling=replace(WARM, **{knob: value})))
            if knob in features:
                check_ended(collected)
            else:
                assert collected.kind == "refused"
                assert collected.error is not None
                assert knob in collected.error.message


async def the_bound_holds(engine: Engine) -> None:
    """`bound` is never below the exact count, for any text."""
    for text in ("", " ", "ba fi gono", "größe 東京 🙂 👩‍🔬", "\x00\n\t \r\n", "<s></s><s>", "x" * 500, "  \n  " * 50):
        assert await engine.tokenize(text) <= engine.bound(text)


async def messages_become_a_prompt(engine: Engine) -> None:
    """The engine's own template is applied, and the prompt can be run; without one messages are refused."""
    if not (await engine.props()).chat_template:
        with pytest.raises(EngineError, match="refused"):
            await engine.render([Message("user", "hello there")])
        return
    prompt = await engine.render([Message("system", "be brief"), Message("user", "hello there")])
    assert "hello there" in prompt
    check_ended(await collect(engine, job(prompt)))


async def unknown_work_is_refused(engine: Engine) -> None:
    """A workload that props do not list is refused, never attempted."""
    missing = {"completion", "embedding", "rerank"} - (await engine.props()).workloads
    for workload in missing:
        with pytest.raises(EngineError) as caught:
            await engine.run(Job(workload, 1, 0, prompt="a", inputs=("b",)), Deliver(lambda chunk: True))  # type: ignore[arg-type]
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
    knobs_are_honoured_or_refused,
    the_bound_holds,
    messages_become_a_prompt,
    unknown_work_is_refused,
    closing_twice_is_closing,
)
# What drivers promise on top that find out for themselves whether a job fits. (llama-server and the mock leave that to
# admission; the mock writes something else for every seed.)
CAREFUL: tuple[Claim, ...] = (*ALL, nothing_is_cut_to_fit, greedy_is_greedy)
