"""The Triton adapter against bytes a real tritonserver sent (recordings/triton, made by real/record.py)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.triton import Triton
from orchestratord.ports import EngineError, Job, JobEnd
from tests.engines.fake import Fault, event, fake_server
from tests.engines.support import CLOCK, Collected, collect, job, raw_server, response, run, sent_frames
from tests.engines.support import recorded as any_recorded
from tests.engines.wires import ALL

MODELS = ("ensemble", "vllm_model")


def recorded(name: str) -> bytes:
    return any_recorded(f"triton/{name}")


async def replay(model: str, reply: bytes | None, asked: Job | None = None, step: int = 1 << 20) -> Collected:
    """What the adapter makes of a reply to generate_stream, after it has read what the model says of itself."""
    replies = (recorded(f"{model}_metadata"), recorded(f"{model}_config"), reply)
    async with raw_server(*replies, step=step) as raw:
        engine = Triton(raw.url, clock=CLOCK, model=model)
        try:
            return await collect(engine, asked or job(max_tokens=12))
        finally:
            await engine.close()


@pytest.mark.parametrize("model", MODELS)
def test_streams(model: str) -> None:
    """Texts as they came and the model's own counts, whole or in small reads; its end is the body's."""

    async def body() -> None:
        reply = recorded(f"{model}_stream")
        texts = [frame["text_output"] for frame in sent_frames(reply)]
        for step in (1 << 20, 61, 1):
            collected = await replay(model, reply, step=step)
            assert (collected.texts, collected.error) == (texts, None)
            assert collected.end == JobEnd("length", 4, 12)

    run(body())


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_string(model: str) -> None:
    """Whether the model leaves it in the text or not, the text ends before it, and the reason is `stop`."""

    async def body() -> None:
        whole = [frame["text_output"] for frame in sent_frames(recorded(f"{model}_stream"))]
        stop = whole[5].strip()[1:]
        asked = job(max_tokens=12, sampling=Sampling(stop=(stop,)))
        collected = await replay(model, recorded(f"{model}_stream_stop"), asked)
        text = "".join(whole)
        assert collected.text == text[: text.index(stop)]
        assert collected.end is not None
        assert collected.end.finish_reason == "stop"

    run(body())


@pytest.mark.parametrize("model", MODELS)
def test_no_more_texts_than_tokens(model: str) -> None:
    """What only looked like a stop string goes out with the last token: a text of its own would be one too many, and
    cost the task its end."""

    async def body() -> None:
        reply = recorded(f"{model}_stream")
        texts = [frame["text_output"] for frame in sent_frames(reply)]
        asked = job(max_tokens=12, sampling=Sampling(stop=(texts[-1][-1] + "~",)))
        collected = await replay(model, reply, asked)
        assert collected.text == "".join(texts)
        assert len(collected.texts) <= len(texts)
        assert collected.end == JobEnd("length", 4, 12)

    run(body())


@pytest.mark.parametrize("model", MODELS)
def test_a_cut_stream(model: str) -> None:
    """Cut anywhere, even just before the last bytes of the framing, it is `lost`."""

    async def body() -> None:
        reply = recorded(f"{model}_stream")
        for cut in (*range(reply.index(b"\r\n\r\n") + 4, len(reply), 97), len(reply) - 1):
            collected = await replay(model, reply[:cut])
            assert (collected.kind, collected.end) == ("lost", None)

    run(body())


FAILURES = [
    ("overflow", "refused", "exceeds context"),
    ("stream_exploded", "failed", "exploded"),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "kind", "said"), FAILURES)
def test_failures(model: str, name: str, kind: str, said: str) -> None:
    """A 400 before the first token is the request's fault, a frame after it the model's; with its own words."""

    async def body() -> None:
        collected = await replay(model, recorded(f"{model}_{name}"))
        assert collected.error is not None
        assert (collected.kind, said in collected.error.message) == (kind, True)
        assert bool(collected.texts) == (kind == "failed")

    run(body())


@pytest.mark.parametrize("name", ["dead_stub", "unknown_model", "wrong_type"])
def test_the_servers_own_troubles(name: str) -> None:
    """A 400 that speaks of the server, and a model that has gone, are no fault of the request."""

    async def body() -> None:
        assert (await replay("ensemble", recorded(name))).kind == "failed"

    run(body())


def test_ready() -> None:
    """The server's own readiness does not count, the model's does; and the model is found by its usual name."""

    async def body() -> None:
        live, index = recorded("live"), recorded("index")
        async with raw_server(
            *(live, index, recorded("ensemble_ready"), live, index, recorded("not_ready")),
            *(live, response(b"[]"), recorded("ready"), live, index, recorded("wrong_type")),
        ) as raw:
            engine = Triton(raw.url, clock=CLOCK)
            assert await engine.ready() is None
            assert b"/v2/models/ensemble/ready" in raw.requests[2]
            assert "not ready" in (await engine.ready() or "")
            assert await engine.ready() == "no model is loaded"
            assert await engine.ready() == "health check answers 400"
            with pytest.raises(EngineError, match="failed"):
                await engine.ready()
            await engine.close()

    run(body())


async def props(model: str, **options: Any) -> Any:
    replies = (recorded(f"{model}_metadata"), recorded(f"{model}_config"), recorded("server"))
    async with raw_server(*replies) as raw:
        engine = Triton(raw.url, clock=CLOCK, model=model, **options)
        try:
            return await engine.props()
        finally:
            await engine.close()


def test_props() -> None:
    """Knobs are the model's inputs; limits come from its configuration, or from the operator."""

    async def body() -> None:
        plain = await props("ensemble")
        assert (plain.engine_version, plain.model_id, plain.ctx, plain.slots) == ("2.51.0", "ensemble:1", 2048, 1)
        assert set(plain.features) == {"temperature", "top_k", "top_p", "repetition_penalty", "stop"}
        assert (plain.chat_template, plain.exact_alone) == (False, False)
        one_text = await props("vllm_model", ctx=100, slots=7)
        assert (one_text.ctx, one_text.slots) == (100, 7)
        assert {"min_p", "presence_penalty"} <= set(one_text.features)
        assert not {"json_schema", "grammar"} & set(one_text.features)

    run(body())


WRONG_MODELS = [
    ({"name": "m", "inputs": [{"name": "text_input"}], "outputs": [{"name": "text_output"}]}, {}, "neither"),
    ({"name": "m", "inputs": [{"name": "INPUT0"}], "outputs": [{"name": "OUTPUT0"}]}, {}, "does not write"),
    (
        {"name": "m", "inputs": [{"name": "text_input"}, {"name": "max_tokens"}], "outputs": [{"name": "text_output"}]},
        {"parameters": {"max_model_len": {"string_value": "many"}}},
        "options = { ctx",
    ),
    ({"name": "m"}, {}, "metadata"),
]


@pytest.mark.parametrize(("metadata", "config", "said"), WRONG_MODELS)
def test_models_that_cannot_be_used(metadata: Any, config: Any, said: str) -> None:
    """What is missing is said, and what to do about it."""

    async def body() -> None:
        replies = (response(msgspec.json.encode(document)) for document in (metadata, config))
        async with raw_server(*replies) as raw:
            engine = Triton(raw.url, clock=CLOCK, model="m")
            with pytest.raises(EngineError) as caught:
                await engine.props()
            assert said in caught.value.message
            await engine.close()

    run(body())


def test_several_models() -> None:
    """When none has a usual name, one has to be named."""

    async def body() -> None:
        index = msgspec.json.encode([{"name": name, "state": "READY"} for name in ("b", "a")])
        async with raw_server(recorded("live"), response(index)) as raw:
            engine = Triton(raw.url, clock=CLOCK)
            with pytest.raises(EngineError, match="a, b"):
                await engine.ready()
            await engine.close()

    run(body())


def test_the_request() -> None:
    """Each dialect's own names, and no knob that was not given."""

    async def sent(name: str, asked: Job) -> Any:
        async with fake_server(ALL[name]) as fake:
            engine = ALL[name].driver(fake.url)
            assert (await collect(engine, asked)).error is None
            await engine.close()
            return msgspec.json.decode(fake.requests[-1][3])

    switches = dict.fromkeys(
        ("stream", "exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens"), True
    )

    async def body() -> None:
        sampling = Sampling(temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.1, stop=("x", "y"))
        asked = job("größe", max_tokens=3, seed=9, sampling=sampling)
        plain = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
        knobs = {**plain, "random_seed": 9, "max_tokens": 3, "stop_words": ["x", "y"]}
        assert await sent("triton", asked) == {"text_input": "größe", **switches, **knobs}
        greedy = await sent("triton", job(max_tokens=3, sampling=Sampling(temperature=0.0, top_p=0.9, top_k=40)))
        assert (greedy["top_k"], "temperature" in greedy, "top_p" in greedy) == (1, False, False)
        one = await sent("triton-one-text", asked)
        assert msgspec.json.decode(one.pop("sampling_parameters")) == {
            **plain,
            "max_tokens": 3,
            "seed": 9,
            "stop": ["x", "y"],
        }
        assert one == {"text_input": "größe", **switches, "return_finish_reason": True}

    run(body())


def test_a_model_without_counts_sends_a_token_a_response() -> None:
    """The last resort where nothing is counted."""

    async def body() -> None:
        async with fake_server(ALL["triton"]) as fake:
            engine = ALL["triton"].driver(fake.url)
            fake.play(Fault(edit=lambda events: [event({"text_output": text}) for text in ("a", "", "b")]))
            collected = await collect(engine, job(max_tokens=8))
            assert (collected.texts, collected.end) == (["a", "b"], JobEnd("stop", None, 3))
            await engine.close()

    run(body())


@pytest.mark.parametrize("model", MODELS)
def test_the_fake_speaks_as_the_real_one(model: str) -> None:
    """Frames of the fake have the keys, and the types, of recorded ones."""
    wire = ALL["triton" if model == "ensemble" else "triton-one-text"]
    given = {"max_tokens": 2, "random_seed": 1, "seed": 1}
    asked = {"text_input": "a", "exclude_input_in_output": True, **given}
    asked["sampling_parameters"] = msgspec.json.encode(given).decode()
    real, fake = (sent_frames(reply)[0] for reply in (recorded(f"{model}_stream"), wire.events(asked)[0]))
    assert {key: type(value) for key, value in fake.items()} == {key: type(value) for key, value in real.items()}
