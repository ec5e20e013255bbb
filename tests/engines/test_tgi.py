"""The TGI adapter. There is no real server to record: these are the documented rules, as the fake (wires/tgi) has them,
and events spelled out by hand from the router's documentation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines.tgi import Tgi
from orchestratord.ports import EngineError, Job, JobEnd
from tests.engines.fake import Fault, event, fake_server, json_response
from tests.engines.support import CLOCK, Collected, collect, job, raw_server, run
from tests.engines.wires.tgi import CTX, INFO, TgiWire


def token(text: str, index: int, *, special: bool = False) -> dict[str, Any]:
    return {
        "index": index,
        "token": {"id": index, "text": text, "logprob": -0.1, "special": special},
        "generated_text": None,
        "details": None,
    }


def last(text: str, whole: str, index: int, reason: str, *, special: bool = False) -> dict[str, Any]:
    details = {"finish_reason": reason, "generated_tokens": index, "seed": 7, "input_length": 4}
    return {**token(text, index, special=special), "generated_text": whole, "details": details}


async def replay(*events: Any, stop: tuple[str, ...] = ()) -> Collected:
    async with fake_server(TgiWire()) as fake:
        engine = Tgi(fake.url, clock=CLOCK)
        fake.play(Fault(edit=lambda _: [*map(event, events)]))
        try:
            return await collect(engine, job(sampling=Sampling(stop=stop or None)))
        finally:
            await engine.close()


def test_a_special_token_is_no_text() -> None:
    """The end token counts, and is not shown."""

    async def body() -> None:
        collected = await replay(token("a", 1), token(" b", 2), last("</s>", "a b", 3, "eos_token", special=True))
        assert (collected.texts, collected.end) == (["a", " b"], JobEnd("stop", 4, 3))

    run(body())


def test_a_stop_string_is_cut_off() -> None:
    """TGI leaves it in the text, over as many tokens as it likes; what only looked like one is shown in the end."""

    async def body() -> None:
        collected = await replay(token("a E", 1), last("ND", "a END", 2, "stop_sequence"), stop=("END",))
        assert (collected.text, collected.end) == ("a ", JobEnd("stop", 4, 2))
        collected = await replay(token("a E", 1), last("N", "a EN", 2, "length"), stop=("END",))
        assert (collected.text, collected.end) == ("a EN", JobEnd("length", 4, 2))

    run(body())


def test_no_more_texts_than_tokens() -> None:
    """What only looked like a stop string goes out with the last token: a text of its own would be one too many, and
    cost the task its end."""

    async def body() -> None:
        collected = await replay(token("x", 1), last("aE", "xaE", 2, "length"), stop=("END",))
        assert (collected.texts, collected.end) == (["x", "aE"], JobEnd("length", 4, 2))

    run(body())


def test_a_stop_string_within_a_token_ends_the_job() -> None:
    """TGI looks for it at the end of the text only: it would go on unseen, up to max_tokens, and call that `length`."""

    async def body() -> None:
        going_on = [token(" more", index) for index in range(3, 9)]
        collected = await replay(token("a", 1), token(" END.", 2), *going_on, stop=("END",))
        assert (collected.text, collected.error, collected.end) == ("a ", None, JobEnd("stop", None, 2))
        collected = await replay(token("a", 1), last(" END.", "a END.", 2, "length"), stop=("END",))
        assert (collected.text, collected.end) == ("a ", JobEnd("stop", 4, 2))

    run(body())


ERRORS = [
    ("validation", "refused"),
    ("template_error", "refused"),
    ("overloaded", "full"),
    ("generation", "failed"),
    ("incomplete_generation_stream", "failed"),
    ("something_new", "failed"),
]


@pytest.mark.parametrize(("kind", "meaning"), ERRORS)
def test_errors_are_events(kind: str, meaning: str) -> None:
    """All of them under status 200, as the first event or a later one."""

    async def body() -> None:
        for before in ((), (token("a", 1),)):
            collected = await replay(*before, {"error": "so it is", "error_type": kind})
            assert collected.error is not None
            assert (collected.kind, collected.error.message) == (meaning, "so it is")
            assert len(collected.texts) == len(before)

    run(body())


@pytest.mark.parametrize(
    "end",
    [{**last("b", "ab", 2, "length"), "details": None}, last("b", "ab", 2, "bored")],
    ids=["no details", "unknown reason"],
)
def test_an_end_without_a_reason(end: Any) -> None:
    async def body() -> None:
        assert (await replay(token("a", 1), end)).kind == "protocol"

    run(body())


PARAMETERS = [
    (Sampling(), {"do_sample": False}),
    (Sampling(temperature=0.0, top_p=0.9, top_k=40), {"do_sample": False}),
    (Sampling(temperature=0.0, stop=("x",)), {"do_sample": False, "stop": ["x"]}),
    (Sampling(temperature=0.8, top_p=1.0, top_k=0), {"do_sample": True, "temperature": 0.8}),
    (Sampling(top_p=0.9), {"do_sample": True, "top_p": 0.9}),
    (Sampling(top_p=1.0, top_k=0), {"do_sample": False}),
    (Sampling(repetition_penalty=1.0, frequency_penalty=0.0), {"do_sample": False}),
    (
        Sampling(0.8, 0.9, 40, repetition_penalty=1.1, frequency_penalty=0.5, json_schema={"type": "null"}),
        {
            "do_sample": True,
            "temperature": 0.8,
            "top_p": 0.9,
            "top_k": 40,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.5,
            "grammar": {"type": "json", "value": {"type": "null"}},
        },
    ),
]


@pytest.mark.parametrize(("sampling", "expected"), PARAMETERS)
def test_the_request(sampling: Sampling, expected: Any) -> None:
    """A neutral value is an error to TGI, and any sampling knob switches sampling on: both are left out."""

    async def body() -> None:
        async with fake_server(TgiWire()) as fake:
            engine = Tgi(fake.url, clock=CLOCK)
            assert (await collect(engine, job("größe", max_tokens=3, seed=9, sampling=sampling))).error is None
            sent = msgspec.json.decode(fake.requests[-1][3])
            always = {"max_new_tokens": 3, "seed": 9, "details": True, "return_full_text": False}
            assert sent == {"inputs": "größe", "parameters": {**always, **expected}}
            await engine.close()

    run(body())


def test_props() -> None:
    """Limits as /info has them; the operator may lower the slots."""

    async def body() -> None:
        async with fake_server(TgiWire()) as fake:
            engine, few = Tgi(fake.url, clock=CLOCK), Tgi(fake.url, clock=CLOCK, slots=3)
            props = await engine.props()
            assert (props.engine_version, props.model_id, props.ctx, props.slots) == ("3.3.6", "org/fake", CTX, 128)
            assert (props.workloads, props.chat_template, props.exact_alone) == ({"completion"}, True, False)
            assert not {"min_p", "presence_penalty", "grammar"} & set(props.features)
            assert (await few.props()).slots == 3
            fake.override["/info"] = json_response({**INFO, "max_total_tokens": None})
            with pytest.raises(EngineError, match="protocol"):
                await engine.ready()
            fake.override["/chat_tokenize"] = json_response({"error": "no", "error_type": "template_error"}, "422 No")
            del fake.override["/info"]
            assert not (await engine.props()).chat_template
            await engine.close()
            await few.close()

    run(body())


def test_messages_keep_one_begin_mark() -> None:
    """The template writes one and /generate adds one: of the two, the template's goes."""

    async def body() -> None:
        async with fake_server(TgiWire()) as fake:
            engine = Tgi(fake.url, clock=CLOCK)
            assert await engine.render([Message("user", "hi")]) == "user: hi\nassistant:"
            made = [{"id": 1, "text": "<s>", "start": 0, "stop": 3}]
            fake.override["/chat_tokenize"] = json_response({"tokenize_response": made, "templated_text": "<s>hi"})
            with pytest.raises(EngineError, match="cannot be written as text"):
                await engine.render([Message("user", "hi")])
            await engine.close()

    run(body())


def test_only_completions() -> None:
    async def body() -> None:
        async with raw_server() as raw:
            engine = Tgi(raw.url, clock=CLOCK)
            assert (await collect(engine, Job("rerank", 1, 0, prompt="q", inputs=("a",)))).kind == "refused"
            assert raw.connections == 0
            await engine.close()

    run(body())
