"""The short ways of an event that is one text, and of many events in one read, held to the long one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import llamacpp, tgi, triton, vllm
from orchestratord.infra.engines.relay import Frames, JsonFrames
from orchestratord.infra.engines.triton_model import Model
from orchestratord.ports import EngineError, Job, JobEnd

MOST = 6
JOB = Job("completion", MOST, 0, prompt="hi")


def llama_frame(count: int) -> list[Any]:
    """A frame that is a text, and what is a little more or less than one."""
    text = {"content": "b\u00e9", "stop": False, "tokens_predicted": count, "tokens_evaluated": 4}
    wrong = {"error": {"code": 500, "message": "no"}}
    return [
        text,
        text,
        {**text, "stop": True, "stop_type": "limit"},
        {**text, **wrong},
        {**text, "content": ""},
        {"content": "a"},
        wrong,
    ]


def vllm_frame(count: int) -> list[Any]:
    choice = {"text": "b\u00e9", "finish_reason": None}
    text: dict[str, Any] = {"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": count}}
    ended = {**text, "choices": [{**choice, "finish_reason": "stop"}]}
    return [
        text,
        text,
        {**text, "usage": None},
        ended,
        {**ended, "usage": None},
        {**ended, "choices": [{"text": "", "finish_reason": "abort"}]},
        {**text, "choices": [choice, choice]},
        {**text, "choices": []},
        {**text, "choices": [{"text": ""}]},
        {**text, "usage": {"prompt_tokens": 99, "completion_tokens": count}},
        {**text, "error": {"code": 500, "message": "no"}},
        {"usage": None},
    ]


def tgi_event(count: int) -> list[Any]:
    token = {"id": 7, "text": "b\u00e9", "logprob": -0.5, "special": False}
    text: dict[str, Any] = {"index": count, "token": token, "generated_text": None, "details": None}
    details = {"finish_reason": "length", "generated_tokens": count, "input_length": 4}
    ended = {**text, "generated_text": "b\u00e9", "details": details}
    return [
        text,
        text,
        {**text, "token": {**token, "special": True}},
        {**text, "token": {**token, "text": "xST"}},  # the beginning of a stop string, which may follow
        {**text, "token": {**token, "text": "OPx"}},
        {**text, "token": None},
        ended,
        {**ended, "details": {**details, "finish_reason": "tired"}},
        {"error": "no", "error_type": "overloaded"},
    ]


def triton_response(count: int) -> list[Any]:
    text: dict[str, Any] = {"model_name": "m", "text_output": "b\u00e9", "finish_reason": ""}
    return [
        text,
        text,
        {**text, "finish_reason": "None"},
        {**text, "text_output": ""},
        {**text, "num_output_tokens": count},
        {**text, "text_output": "xST"},
        {**text, "text_output": "OPx"},
        {**text, "num_input_tokens": 4, "num_output_tokens": count},
        {**text, "num_input_tokens": 99},
        {**text, "finish_reason": "stop"},
        {"model_name": "m"},
        {"error": "no"},
    ]


STOPPED = replace(JOB, sampling=Sampling(stop=("STOP",)))
MODEL = Model("m", "1", frozenset(), frozenset(), 50, 4)
RUNNING = replace(MODEL, inputs=frozenset({"max_tokens"}))

ADAPTERS: dict[str, tuple[Callable[[], JsonFrames[Any]], Callable[[int], list[Any]]]] = {
    "llamacpp": (lambda: llamacpp._Stream(MOST), llama_frame),
    "vllm": (lambda: vllm._Stream(JOB, 50), vllm_frame),
    "tgi": (lambda: tgi._Stream([]), tgi_event),
    "tgi, a stop string": (lambda: tgi._Stream(["STOP"]), tgi_event),
    "triton": (lambda: triton._Stream(JOB, MODEL), triton_response),
    "triton, running counts": (lambda: triton._Stream(JOB, RUNNING), triton_response),
    "triton, a stop string": (lambda: triton._Stream(STOPPED, MODEL), triton_response),
}


@st.composite
def payloads(draw: Any, frame: Callable[[int], list[Any]]) -> list[bytes]:
    counts = draw(st.lists(st.integers(0, MOST + 1), min_size=1, max_size=5))
    events = [json.dumps(draw(st.sampled_from(frame(count)))).encode() for count in counts]
    torn = st.sampled_from([b"[DONE]", b'{"content":"\xff"}', events[0][:-1]])
    return [*events, draw(torn), *events[:1]] if draw(st.booleans()) else events


Said = tuple[list[tuple[str, int]], Any, str | None]


def through(frames: Frames, events: list[bytes], wanted: set[int] | None) -> Said:
    """Every text with the count that came with it, the end, and the kind of error. wanted: which events the short way
    is tried for and keeps; None: it is not tried."""
    got: list[tuple[str, int]] = []
    place = -1

    def keep(text: str, tokens_out: int) -> bool:
        if wanted is None or place not in wanted:
            return False
        got.append((text, tokens_out))
        return True

    frames.keep = keep
    for payload in events:
        place += 1
        if wanted is not None and frames.keep_text(payload):
            continue
        try:
            frames.take(payload)
        except EngineError as error:
            return got, frames.end, error.kind
        got += [(text, frames.tokens) for text in frames.texts]
        frames.texts = []
        if frames.end is not None:
            break
    return got, frames.end, None


@pytest.mark.parametrize("name", ADAPTERS)
@given(data=st.data())
def test_both_ways_say_the_same(name: str, data: st.DataObject) -> None:
    """Whichever events are kept: the same texts, counts, end and error."""
    made, frame = ADAPTERS[name]
    events = data.draw(payloads(frame))
    wanted = data.draw(st.sets(st.integers(0, 8)))
    assert through(made(), events, wanted) == through(made(), events, None)


def at_once(frames: Frames, events: list[bytes], *, together: bool) -> tuple[list[str], int, Any, str | None]:
    """Texts, the engine's count, the end and the kind of error of events that came in one read."""
    try:
        if together:
            frames.take_all(events)
        else:
            Frames.take_all(frames, events)
    except EngineError as error:
        return frames.texts, frames.tokens, frames.end, error.kind
    return frames.texts, frames.tokens, frames.end, None


@pytest.mark.parametrize("name", ADAPTERS)
@given(data=st.data())
def test_events_of_one_read_say_the_same_as_each_alone(name: str, data: st.DataObject) -> None:
    made, frame = ADAPTERS[name]
    events = data.draw(payloads(frame))
    one, other = made(), made()
    for _ in range(2):  # what the first read has left behind counts in the second, if there is one
        said = at_once(one, events, together=True)
        assert said == at_once(other, events, together=False)
        if said[2] is not None or said[3] is not None:
            return


@pytest.mark.parametrize("name", ADAPTERS)
def test_texts_of_one_read_are_decoded_in_one_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, frame = ADAPTERS[name]
    frames = made()
    monkeypatch.setattr(frames.decoders, "one", None)
    if "stop string" not in name:
        monkeypatch.setattr(type(frames), "tell", None)
    frames.take_all([json.dumps(frame(count)[0]).encode() for count in (1, 2, 3)])
    assert frames.texts == ["b\u00e9"] * 3
    assert frames.tokens == 3


def test_vllms_last_read_is_decoded_in_one_call_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What closes every stream is no JSON, and comes with its last texts."""
    frames = vllm._Stream(JOB, 50)
    monkeypatch.setattr(frames.decoders, "one", None)
    text, ended = (json.dumps(vllm_frame(2)[place]).encode() for place in (0, 3))
    frames.take_all([text, ended, b"[DONE]"])
    assert frames.end == JobEnd("stop", 4, 2)


PLAIN = b'{"content":"a","stop":false,"tokens_predicted":1}'


@pytest.mark.parametrize("torn", [b"", PLAIN + b"," + PLAIN, b'{"content":"a","x":[1', b"2]}"])
def test_an_event_that_is_not_one_object_ends_the_texts_of_its_read(torn: bytes) -> None:
    frames = llamacpp._Stream(MOST)
    with pytest.raises(EngineError, match="cannot be read"):
        frames.take_all([PLAIN, torn, PLAIN])
    assert frames.texts == ["a"]


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("llamacpp", b'{"content":"a","stop":false,"tokens_predicted":1}'),
        ("vllm", b'{"choices":[{"text":"a"}],"usage":{"prompt_tokens":4,"completion_tokens":1}}'),
    ],
)
def test_a_plain_token_goes_the_short_way(name: str, event: bytes) -> None:
    kept: list[tuple[str, int]] = []
    frames = ADAPTERS[name][0]()
    frames.keep = lambda text, tokens_out: kept.append((text, tokens_out)) is None
    assert frames.keep_text(event)
    assert kept == [("a", 1)]


def test_a_text_behind_vllms_finish_reason_goes_the_long_way() -> None:
    """The count it brings is the one the end was waiting for: kept as a mere text, the stream would never end."""
    frames = vllm._Stream(JOB, 50)
    kept: list[str] = []

    def keep(text: str, tokens_out: int) -> bool:
        kept.append(text)
        return True

    frames.keep = keep
    frames.take(b'{"choices":[{"text":"a","finish_reason":"stop"}]}')
    assert frames.end is None
    last = b'{"choices":[{"text":"b"}],"usage":{"prompt_tokens":4,"completion_tokens":2}}'
    assert frames.keep_text(last) is False
    frames.take(last)
    assert (kept, frames.texts) == ([], ["a", "b"])
    assert frames.end == JobEnd("stop", 4, 2)


def test_texts_of_one_read_behind_vllms_finish_reason_go_the_long_way() -> None:
    frames = vllm._Stream(JOB, 50)
    frames.take(b'{"choices":[{"text":"a","finish_reason":"stop"}]}')
    frames.take_all([b'{"choices":[{"text":"b"}],"usage":{"prompt_tokens":4,"completion_tokens":2}}'] * 2)
    assert frames.texts == ["a", "b"]
    assert frames.end == JobEnd("stop", 4, 2)
