"""What every driver must survive, whatever it drives: faults of a server that speaks its wire.

`EXPECTED` says for each fault how the job must end: the kind of its error, and how many of the first texts must have
come before it. `TRANSPARENT` are oddities that must change nothing at all. `CLAIMS` is the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines.plumbing import REPLACED
from orchestratord.ports import Engine, EngineError
from tests.engines.fake import FakeServer, Fault, event, json_response
from tests.engines.support import collect, following, job, response, turn

KEY = "sesame-open-up"
HUGE = 2 << 20  # bytes: more than any line may have

Kinds = tuple[str, ...]
Made = Callable[[FakeServer], Fault]


def after(count: int, *extra: bytes) -> Callable[[Sequence[bytes]], Sequence[bytes]]:
    """Only the first `count` events, then `extra`."""
    return lambda events: [*events[:count], *extra]


def _halves(events: Sequence[bytes]) -> Sequence[bytes]:
    """The third event ends in its middle."""
    return [*events[:2], events[2][: len(events[2]) // 2]]


def _status(status: str) -> Fault:
    return Fault(instead=response(b"<html>oh</html>", status, "text/html"))


EXPECTED: dict[str, tuple[Made, Kinds, int]] = {
    "no room": (lambda fake: Fault(instead=fake.wire.full()), ("full",), 0),
    "500 before the first token": (lambda _: _status("500 Oh"), ("failed",), 0),
    "502 in HTML": (lambda _: _status("502 Bad Gateway"), ("failed",), 0),
    "an error as the first event": (lambda fake: Fault(edit=after(0, fake.wire.error("boom"))), ("failed",), 0),
    "an error after the first tokens": (lambda fake: Fault(edit=after(2, fake.wire.error("boom"))), ("failed",), 2),
    "an error among the tokens": (
        lambda fake: Fault(edit=lambda events: [*events[:2], fake.wire.error("boom"), *events[2:]]),
        ("failed",),
        2,
    ),
    "an error, then [DONE]": (
        lambda fake: Fault(edit=after(2, fake.wire.error("boom"), b"data: [DONE]\n\n")),
        ("failed",),
        2,
    ),
    "killed before the first token": (lambda _: Fault(head=False, ending="reset"), ("lost",), 0),
    "closed without a reply": (lambda _: Fault(head=False, ending="cut"), ("lost",), 0),
    "closed within the head": (lambda _: Fault(instead=b"HTTP/1.1 200 OK\r\nContent-Ty"), ("lost",), 0),
    "killed in the stream": (lambda _: Fault(edit=after(2), ending="cut"), ("lost",), 2),
    "reset in the stream": (
        lambda _: Fault(edit=after(2), ending="reset"),
        ("lost",),
        0,
    ),  # what was on its way is gone
    "a clean end before the end": (lambda _: Fault(edit=after(2)), ("lost",), 2),
    "a clean end within an event": (lambda _: Fault(edit=_halves), ("lost",), 2),
    "no event at all": (lambda _: Fault(edit=after(0)), ("lost",), 0),
    "only pings": (lambda _: Fault(edit=after(0, b":\n\n", b": ping\n\n")), ("lost",), 0),
    "[DONE] instead of an end": (lambda _: Fault(edit=after(2, b"data: [DONE]\n\n")), ("lost", "protocol"), 2),
    "not JSON": (lambda _: Fault(edit=after(2, b"data: {oops\n\n")), ("protocol",), 2),
    "another language": (lambda _: Fault(edit=after(2, event({"hello": "world"}))), ("protocol",), 2),
    "not an object": (lambda _: Fault(edit=after(2, event([1, 2]))), ("protocol",), 2),
    "not UTF-8": (lambda _: Fault(edit=after(2, b'data: {"error":"\xff\xfe"}\n\n')), ("protocol",), 2),
    "a huge line": (lambda _: Fault(edit=after(2, b"data: " + b"x" * HUGE + b"\n\n")), ("protocol",), 2),
    "a line without end": (lambda _: Fault(edit=after(2, *[b"x" * 65536] * 33)), ("protocol",), 2),
    "a huge event": (lambda _: Fault(edit=after(2, *[b"data: " + b"x" * 65530 + b"\n"] * 33)), ("protocol",), 2),
    "JSON instead of a stream": (lambda _: Fault(instead=json_response({"text": "hi"})), ("protocol",), 0),
    "not HTTP": (lambda _: Fault(instead=b"SSH-2.0-OpenSSH_9.2\r\n"), ("protocol",), 0),
    "a redirect": (lambda _: Fault(instead=response(b"", "307 Elsewhere", extra="Location: /x\r\n")), ("protocol",), 0),
}


# Where the bytes of a fault are those of a good stream: this dialect has neither an end mark nor a reason.
UNSEEN = {("triton", "a clean end before the end")}


def _crlf(events: Sequence[bytes]) -> Sequence[bytes]:
    return [data.replace(b"\n", b"\r\n") for data in events]


TRANSPARENT: dict[str, Fault] = {
    "single bytes": Fault(step=1),
    "reads of seven bytes": Fault(step=7),
    "CRLF": Fault(edit=_crlf),
    "CRLF in single bytes": Fault(edit=_crlf, step=1),
    "all in one": Fault(edit=lambda events: [b"".join(events)]),
    "events over several reads": Fault(
        edit=lambda events: [data[i : i + 5] for data in events for i in range(0, len(data), 5)]
    ),
    "pings between": Fault(edit=lambda events: [part for data in events for part in (b": ping\n\n", data)]),
    "other fields": Fault(edit=lambda events: [b"id: 1\nevent: message\nretry: 5\n" + data for data in events]),
    "no space after the colon": Fault(edit=lambda events: [data.replace(b"data: ", b"data:", 1) for data in events]),
    "a byte order mark": Fault(edit=lambda events: [b"\xef\xbb\xbf" + events[0], *events[1:]]),
}


class HastyClock(SystemClock):
    """Whose limits are over soon."""

    def limit(self, seconds: float) -> Any:
        return super().limit(seconds / 100)


async def ends_as_expected(name: str, fake: FakeServer, engine: Engine) -> None:
    """The fault's kind of error after the good texts before it; and the next job is served."""
    make, kinds, texts = EXPECTED[name]
    whole = await collect(engine, job())
    assert whole.end is not None
    fake.play(make(fake))
    collected = await collect(engine, job())
    assert collected.kind in kinds
    assert collected.end is None
    assert collected.texts[:texts] == whole.texts[:texts]
    assert whole.text.startswith(collected.text)
    assert (await collect(engine, job())).text == whole.text


async def changes_nothing(name: str, fake: FakeServer, engine: Engine) -> None:
    """Text, counts and end are those of a plain stream."""
    whole = await collect(engine, job(max_tokens=24))
    assert set("größe東京🙂") & set(whole.text)  # characters of several bytes, to be cut in their middle
    fake.play(TRANSPARENT[name])
    collected = await collect(engine, job(max_tokens=24))
    assert (collected.text, collected.end, collected.error) == (whole.text, whole.end, None)


# -- claims about more than one reply ----------------------------------------------------------------------
async def loading_is_a_reason_and_death_an_error(fake: FakeServer, engine: Engine) -> None:
    """`ready` gives a reason while the model loads, None when it is there, and `lost` when nothing listens."""
    fake.override[fake.wire.health_path] = fake.wire.not_ready
    assert isinstance(await engine.ready(), str)
    fake.override.clear()
    assert await engine.ready() is None
    dead = fake.wire.driver("http://127.0.0.1:1")
    for ask in (dead.ready, dead.props):
        with pytest.raises(EngineError, match="lost"):
            await ask()
    assert (await collect(dead, job())).kind == "lost"
    await dead.close()


async def what_cannot_be_read_is_a_protocol_error(fake: FakeServer, engine: Engine) -> None:
    """Control answers of the wrong shape, not JSON, or too long never come through as something else."""
    paths = {path for _, path, _, _ in fake.requests}
    assert await engine.ready() is None
    await engine.props()
    paths = {path for _, path, _, _ in fake.requests} - {fake.wire.stream_path} - paths
    for reply in (json_response(7), json_response({"odd": []}), response(b"<html>"), response(b"x" * (17 << 20))):
        fake.override = dict.fromkeys(paths - {fake.wire.health_path}, reply)
        with pytest.raises(EngineError) as caught:
            await engine.props()
        assert caught.value.kind == "protocol"
    fake.override = {}
    await engine.props()


async def another_in_its_place_is_noticed(fake: FakeServer, engine: Engine) -> None:
    """Started so quickly that nobody was refused in between: what was learnt of the first is not said of the second."""
    await engine.ready()
    await engine.props()
    assert await engine.ready() is None
    told = {"llamacpp": "/props", "vllm": "/v1/models", "tgi": "/info"}.get(fake.wire.name, "/v2/repository/index")
    method = "POST" if "repository" in told else "GET"
    reply = fake.wire.control(method, told, {}, 0)
    assert reply is not None
    head, _, said = reply.partition(b"\r\n\r\n")
    for name in (b"fake", b"ensemble", b"vllm_model"):
        said = said.replace(name, b"x" * len(name))  # a model of another name
    said = said.replace(b"preprocessing", b"x" * 13).replace(b"READY", b"READX", 1)  # and no choice of models
    fake.override[told] = head + b"\r\n\r\n" + said
    assert await engine.ready() == REPLACED


async def a_silent_server_costs_a_bounded_time(fake: FakeServer, engine: Engine) -> None:
    """One that accepts and never answers: control requests time out by themselves."""
    fake.override = dict.fromkeys((fake.wire.health_path, "/health", "/v2/health/live"), None)
    hasty = fake.wire.driver(fake.url)
    _hurry(hasty)
    with pytest.raises(EngineError, match="timeout"):
        await hasty.ready()
    await hasty.close()


def _hurry(engine: Any) -> None:
    """Give an adapter's transport a clock whose limits are over soon."""
    transport = engine._http if hasattr(engine, "_http") else engine._server._http
    transport._clock = HastyClock()


async def a_hanging_stream_can_be_left(fake: FakeServer, engine: Engine) -> None:
    """Before the head, before the first event, between two and after the last but one: whoever waits can go, at once,
    and the server sees the connection closed."""
    for fault in (
        Fault(head=False, ending="hang"),
        Fault(edit=after(0), ending="hang"),
        Fault(edit=after(2), ending="hang"),
        Fault(edit=after(1, b": ping\n\n"), ending="hang"),
    ):
        fake.left.clear()
        fake.play(fault)
        reading = asyncio.create_task(collect(engine, job()))
        before = len(fake.requests)
        while len(fake.requests) == before or not fake.streams:
            await turn()
        for _ in range(20):
            await turn()
        assert not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await fake.left.wait()
    assert (await collect(engine, job())).end is not None


async def an_endless_stream_can_be_left(fake: FakeServer, engine: Engine) -> None:
    """An engine that goes on for ever is read, never collected, and stops being read when its reader leaves."""
    fake.play(Fault(edit=lambda events: events[:1], ending="endless"))
    async with following(engine, job()) as chunks:
        texts = 0
        async for chunk in chunks:
            texts += len(chunk.texts)
            if texts >= 20:
                break
    await fake.left.wait()


async def nothing_after_the_end_is_read(fake: FakeServer, engine: Engine) -> None:
    """What follows an end does not change it, and the connection is not waited for. (Triton's end is the body's.)"""
    if fake.wire.name.startswith("triton"):
        return
    whole = await collect(engine, job())
    fake.play(Fault(edit=lambda events: [*events, b"data: garbage\n\n"], ending="hang"))
    collected = await collect(engine, job())
    assert (collected.text, collected.end, collected.error) == (whole.text, whole.end, None)
    await fake.left.wait()


async def bad_parameters_are_the_requests_fault(fake: FakeServer, engine: Engine) -> None:
    """A 400 in the engine's own shape is `refused`, with its words."""
    documents = {
        "llamacpp": {"error": {"code": 400, "message": "bad grammar", "type": "invalid_request_error"}},
        "vllm": {"error": {"message": "bad grammar", "type": "BadRequestError", "param": None, "code": 400}},
        "tgi": {"error": "bad grammar", "error_type": "validation"},
    }
    document = documents.get(fake.wire.name, {"error": "bad grammar"})
    for status in ("400 Bad Request", "413 Payload Too Large", "422 Unprocessable Entity"):
        fake.play(Fault(instead=json_response(document, status)))
        collected = await collect(engine, job())
        assert collected.kind == "refused"
        assert collected.error is not None
        assert collected.error.message == "bad grammar"


async def a_refusal_may_be_long(fake: FakeServer, engine: Engine) -> None:
    """Engines repeat what they were sent; the status alone says that it was the request's fault."""
    said = json_response({"error": {"message": f"input: {'x' * 300_000}", "code": 400}}, "400 Bad Request")
    fake.play(Fault(instead=said))
    assert (await collect(engine, job())).kind == "refused"
    assert (await collect(engine, job())).end is not None


async def our_key_and_our_paths_are_not_the_requests_fault(fake: FakeServer, engine: Engine) -> None:
    """A 401, 403, 404 or 405 is `failed`, of a job and of a question: whoever asked can change nothing about it, so the
    task may be tried elsewhere and the replica is blamed."""
    await engine.props()
    controls = {path for _, path, _, _ in fake.requests} - {fake.wire.stream_path}
    for status in ("401 Unauthorized", "403 Forbidden", "404 Not Found", "405 Method Not Allowed"):
        reply = json_response({"error": {"message": "not for you", "code": int(status[:3])}}, status)
        fake.play(Fault(instead=reply))
        assert (await collect(engine, job())).kind == "failed"
        if not status.startswith(("404", "405")):  # a question may be whether there is such a route
            fake.override = dict.fromkeys(controls, reply)
            with pytest.raises(EngineError) as caught:
                await engine.props()
            assert caught.value.kind == "failed"
            fake.override = {}


async def the_key_goes_to_the_engine_and_nowhere_else(fake: FakeServer, engine: Engine) -> None:
    """Every request carries it; no error does, not even when the engine repeats it; without one there is no header."""
    keyed = fake.wire.driver(fake.url, api_key=KEY)
    await keyed.ready()
    await keyed.props()
    await keyed.tokenize("x")
    assert (await collect(keyed, job())).end is not None
    assert {headers.get("authorization") for _, _, headers, _ in fake.requests} == {f"Bearer {KEY}"}
    echo = {"error": {"message": f"no such key: {KEY}", "code": 401}, "detail": KEY}
    fake.play(
        Fault(instead=json_response(echo, "401 Unauthorized")),
        Fault(edit=after(1, fake.wire.error(f"key {KEY} expired"))),
    )
    for _ in range(2):
        collected = await collect(keyed, job())
        assert collected.kind == "failed"
        assert KEY not in repr(collected.error)
        assert "redacted" in repr(collected.error)
    controls = {path for _, path, _, _ in fake.requests} - {fake.wire.stream_path}
    fake.override = dict.fromkeys(controls, json_response(echo, "401 Unauthorized"))
    with pytest.raises(EngineError) as caught:
        await keyed.props()
    assert KEY not in repr(caught.value)
    fake.override = {}
    assert KEY not in repr(keyed)
    await keyed.close()
    fake.requests.clear()
    await engine.ready()
    await collect(engine, job())
    assert not any("authorization" in headers for _, _, headers, _ in fake.requests)


async def a_prompt_is_sent_as_it_is(fake: FakeServer, engine: Engine) -> None:
    """Whatever characters a prompt has, the engine gets them; and never a knob that was not given."""
    prompt = 'größe "東京" \\ \n\t 🙂 </s> \x00 data: {}'
    assert (await collect(engine, job(prompt, max_tokens=2))).error is None
    _, _, _, raw = next(request for request in fake.requests if request[:2] == ("POST", fake.wire.stream_path))

    sent = json.loads(raw)
    assert prompt in (sent.get("prompt"), sent.get("inputs"), sent.get("text_input"))
    assert not {"temperature", "top_p", "top_k", "min_p", "stop", "stop_words"} & sent.keys()


async def a_trace_goes_along(fake: FakeServer, engine: Engine) -> None:
    """The header fields of a job's trace are on its request, and on no other; without one there are none (OD-23)."""
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    assert (await collect(engine, job(trace=trace))).end is not None
    assert (await collect(engine, job())).end is not None
    await engine.ready()
    await engine.tokenize("x")
    found = [(path, headers.get("traceparent"), headers.get("tracestate")) for _, path, headers, _ in fake.requests]
    assert [given for given in found if given[1:] != (None, None)] == [(fake.wire.stream_path, *trace.values())]


async def it_reconnects(fake: FakeServer, engine: Engine) -> None:
    """After each way to lose a connection the next request makes a new one."""
    for ending in ("cut", "reset"):
        fake.play(replace(Fault(edit=after(1)), ending=ending))
        assert (await collect(engine, job())).kind == "lost"
        assert await engine.ready() is None
    assert (await collect(engine, job())).end is not None


Claim = Callable[[FakeServer, Engine], Coroutine[Any, Any, None]]
CLAIMS: tuple[Claim, ...] = (
    loading_is_a_reason_and_death_an_error,
    what_cannot_be_read_is_a_protocol_error,
    another_in_its_place_is_noticed,
    a_silent_server_costs_a_bounded_time,
    a_hanging_stream_can_be_left,
    an_endless_stream_can_be_left,
    nothing_after_the_end_is_read,
    bad_parameters_are_the_requests_fault,
    a_refusal_may_be_long,
    our_key_and_our_paths_are_not_the_requests_fault,
    the_key_goes_to_the_engine_and_nowhere_else,
    a_prompt_is_sent_as_it_is,
    a_trace_goes_along,
    it_reconnects,
)
