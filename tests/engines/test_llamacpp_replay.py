"""The llama.cpp adapter against bytes a real llama-server sent (recordings/, made by record.py) and broken ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from orchestratord.domain.request import Message, Sampling, Workload
from orchestratord.infra.engines.llamacpp import LlamaCpp
from orchestratord.ports import EngineError, Job, JobEnd
from tests.engines.support import (
    CLOCK,
    RECORDINGS,
    Collected,
    RawServer,
    collect,
    following,
    job,
    raw_server,
    response,
    run,
    stream,
)

OFF = response(
    b'{"error":{"code":501,"message":"This server does not support embeddings.","type":"not_supported_error"}}',
    "501 Not Implemented",
)
LAST = b'data: {"content":"","stop":true,"stop_type":"limit","tokens_predicted":2,"tokens_evaluated":5}\n\n'


def recorded(name: str) -> bytes:
    return (RECORDINGS / f"{name}.resp").read_bytes()


def error(status: int, message: str) -> bytes:
    return response(msgspec.json.encode({"error": {"code": status, "message": message}}), f"{status} Oh")


def frame(content: str, tokens: int) -> bytes:
    return b"data: " + msgspec.json.encode({"content": content, "stop": False, "tokens_predicted": tokens}) + b"\n\n"


def contents(reply: bytes) -> list[str]:
    """The texts in a recorded stream, found without any of the code under test."""
    frames = re.findall(rb"^data: (.*)$", reply, re.MULTILINE)
    return [text for text in (msgspec.json.decode(found).get("content", "") for found in frames) if text]


@asynccontextmanager
async def served(
    *replies: bytes | None, step: int = 1 << 20, stall: bool = False, api_key: str | None = None
) -> AsyncIterator[tuple[LlamaCpp, RawServer]]:
    """An adapter, and the server that gives it these replies one after the other."""
    async with raw_server(*replies, step=step, stall=stall) as raw:
        engine = LlamaCpp(raw.url, clock=CLOCK, api_key=api_key)
        try:
            yield engine, raw
        finally:
            await engine.close()


async def replay(reply: bytes | None, *, step: int = 1 << 20, max_tokens: int = 400) -> Collected:
    async with served(reply, step=step) as (engine, _):
        return await collect(engine, job(max_tokens=max_tokens))


STREAMS = [
    ("stream", "length"),
    ("stream_whole_last_frame", "length"),
    ("stream_context_full", "length"),
    ("stream_wild", "length"),
    ("stream_foreign", "stop"),
    ("stream_eos", "stop"),
    ("stream_word", "stop"),
]


@pytest.mark.parametrize(("name", "reason"), STREAMS)
def test_streams(name: str, reason: str) -> None:
    """A recorded stream gives its texts and the engine's own figures, whole or cut into small reads."""

    async def body() -> None:
        reply = recorded(name)
        last = msgspec.json.decode(re.findall(rb"^data: (.*)$", reply, re.MULTILINE)[-1])
        for step in (1 << 20, 1000, 61):
            collected = await replay(reply, step=step)
            assert collected.error is None
            assert collected.texts == contents(reply)
            assert collected.end == JobEnd(
                reason,  # type: ignore[arg-type]
                last["tokens_evaluated"],
                last["tokens_predicted"],
            )

    run(body())


@pytest.mark.parametrize("name", ["stream", "stream_foreign"])
def test_byte_by_byte(name: str) -> None:
    """A stream that arrives byte by byte, characters cut in their middle, is the same stream."""

    async def body() -> None:
        reply = recorded(name)
        collected = await replay(reply, step=1)
        assert collected.texts == contents(reply)
        assert collected.end is not None

    run(body())


def test_tokens_are_the_engines_count() -> None:
    """A token may come without a frame: the figures are the engine's, never a count of frames."""

    async def body() -> None:
        collected = await replay(recorded("stream_wild"))
        assert collected.end is not None
        assert collected.end.tokens_out == 200 > len(collected.texts)

    run(body())


def test_several_frames_in_one_read_are_one_chunk() -> None:
    """Everything one read brought is handed on at once, end included."""

    async def body() -> None:
        collected = await replay(stream(frame("a", 1) + frame("", 2) + frame("b", 3) + LAST))
        assert [list(chunk.texts) for chunk in collected.chunks] == [["a", "b"]]
        assert collected.end == JobEnd("length", 5, 3)

    run(body())


def test_every_cut_is_lost() -> None:
    """A stream cut anywhere before its last frame ends in `lost`, after the texts that were whole (OC-ADAPT)."""

    async def body() -> None:
        reply = recorded("stream")
        texts = contents(reply)
        end = reply.index(b'"stop":true')
        cuts = [*range(reply.index(b"\r\n\r\n") + 4, end, 37), end]
        async with served(*(reply[:cut] for cut in cuts)) as (engine, _):
            for _ in cuts:
                collected = await collect(engine, job(max_tokens=400))
                assert collected.kind == "lost"
                assert collected.end is None
                assert collected.texts == texts[: len(collected.texts)]
            assert len(collected.texts) == len(texts)

    run(body())


BROKEN = [
    ("a clean end without a last frame", stream(frame("a", 1)), "lost", "a"),
    ("no frame at all", stream(), "lost", ""),
    ("only pings", stream(b":\n\n", b":\n\n"), "lost", ""),
    ("only [DONE]", stream(frame("a", 1), b"data: [DONE]\n\n"), "protocol", "a"),
    ("a clean end within the last frame", stream(frame("a", 1), LAST[:-2]), "lost", "a"),
    ("not JSON", stream(frame("a", 1) + b"data: {oops\n\n"), "protocol", "a"),
    ("not an object", stream(b"data: [1]\n\n"), "protocol", ""),
    ("something else", stream(b'data: {"choices":[]}\n\n'), "protocol", ""),
    ("a wrong type", stream(b'data: {"content":7}\n\n'), "protocol", ""),
    ("a negative count", stream(b'data: {"content":"a","tokens_predicted":-1}\n\n'), "protocol", ""),
    ("an absurd count", stream(b'data: {"content":"a","tokens_predicted":1e308}\n\n'), "protocol", ""),
    ("not UTF-8", stream(b'data: {"content":"\xff\xfe"}\n\n'), "protocol", ""),
    ("a lone surrogate", stream(b'data: {"content":"\\ud800"}\n\n'), "protocol", ""),
    ("a line without end", stream(frame("a", 1), b"data: " + b"x" * (2 << 20)), "protocol", "a"),
    (
        "an error among the frames",
        stream(frame("a", 1) + b'data: {"error":{"code":500,"message":"bad output","type":"server_error"}}\n\n' + LAST),
        "failed",
        "a",
    ),
    ("an error that is a text", stream(b'data: {"error":"boom"}\n\n'), "failed", ""),
    ("an error that blames us", stream(b'data: {"error":{"code":400,"message":"bad"}}\n\n'), "refused", ""),
    ("an error with content", stream(b'data: {"error":{"code":500},"content":"a","stop":true}\n\n'), "failed", ""),
    ("silence", None, "lost", ""),
    ("JSON instead of a stream", response(b'{"content":"a","stop":true}'), "protocol", ""),
    ("an HTML page", response(b"<html>", content_type="text/html"), "protocol", ""),
    ("compression", stream().replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1), "protocol", ""),
    ("a redirect", response(b"", "307 Temporary Redirect", extra="Location: /elsewhere\r\n"), "protocol", ""),
    ("no slot", response(b'{"error":{"code":503,"message":"no slot available"}}', "503 No"), "full", ""),
    ("a failure", response(b'{"error":{"code":500,"message":"boom"}}', "500 Oh"), "failed", ""),
    ("a failure in plain text", response(b"Bad gateway", "502 Bad Gateway"), "failed", ""),
    ("an odd success", response(b"", "206 Partial"), "protocol", ""),
]


@pytest.mark.parametrize(("reply", "kind", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken(reply: bytes | None, kind: str, text: str) -> None:
    """Whatever comes instead of a good stream is an EngineError of the right kind, after the good texts before it."""

    async def body() -> None:
        collected = await replay(reply)
        assert (collected.kind, collected.text) == (kind, text)

    run(body())


REFUSALS = [
    ("overflow", "refused", "exceeds the available context size"),
    ("bad_grammar", "refused", "grammar"),
    ("bad_json", "refused", "parse error"),
    ("unauthorized", "failed", "Invalid API Key"),
    ("not_found", "failed", "not found"),
    ("slots_off", "refused", "does not support"),
    ("loading", "full", "Loading model"),
]


@pytest.mark.parametrize(("name", "kind", "message"), REFUSALS)
def test_refusals(name: str, kind: str, message: str) -> None:
    """The engine's own words come along; only what is the engine's fault counts against it."""

    async def body() -> None:
        collected = await replay(recorded(name))
        assert collected.error is not None
        assert collected.kind == kind
        assert message.lower() in collected.error.message.lower()

    run(body())


def test_the_end_is_the_end() -> None:
    """Nothing that follows the last frame is looked at, and the connection is not waited for."""

    async def body() -> None:
        tail = frame("late", 9) + LAST + b"data: garbage\n\n"
        async with served(stream(frame("a", 1) + LAST + tail, LAST, end=False), stall=True) as (engine, raw):
            collected = await collect(engine, job(max_tokens=400))
            assert (collected.text, collected.kind) == ("a", None)
            await raw.closed.wait()

    run(body())


def test_leaving_early_closes_the_connection() -> None:
    """Leaving the context aborts: the engine sees its connection closed without having to say anything more."""

    async def body() -> None:
        async with served(stream(frame("a", 1), end=False), stall=True) as (engine, raw):
            async with following(engine, job()) as chunks:
                assert (await anext(chunks)).texts == ["a"]
            await raw.closed.wait()

    run(body())


def test_cancelling_while_queued_closes_the_connection() -> None:
    """llama-server sends nothing, not even a head, before the first token: an abort must work there too."""

    async def body() -> None:
        async with served(b"", stall=True) as (engine, raw):
            task = asyncio.create_task(collect(engine, job(max_tokens=400)))
            while not raw.requests:
                await asyncio.wait([task], timeout=0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await raw.closed.wait()

    run(body())


def test_the_request() -> None:
    """Every knob goes out under the name llama-server knows, and none that was not given."""

    async def sent(asked: Job) -> dict[str, object]:
        async with served(stream(LAST), api_key="sesame") as (engine, raw):
            await collect(engine, asked)
            head, _, document = raw.requests[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /completion HTTP/1.1")
            assert b"Authorization: Bearer sesame" in head
            parsed: dict[str, object] = msgspec.json.decode(document)
            return parsed

    async def body() -> None:
        plain = await sent(job("größe", max_tokens=3, seed=9))
        del plain["response_fields"]
        assert plain == {"prompt": "größe", "n_predict": 3, "seed": 9, "cache_prompt": True, "stream": True}
        sampling = Sampling(0.5, 0.9, 40, 0.1, 1.1, 0.2, -0.3, ("x", "y"), {"type": "object"}, None)
        full = await sent(job(sampling=sampling, keep_cache=False))
        assert full["cache_prompt"] is False
        assert {name: full[name] for name in full if name not in plain and name != "response_fields"} == {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": -0.3,
            "stop": ["x", "y"],
            "json_schema": {"type": "object"},
        }

    run(body())


def test_ready() -> None:
    """Loading is a reason, not an error; a healthy server without a model (a router) is not ready."""

    async def body() -> None:
        router = response(b'{"role":"router","max_instances":4,"model_path":""}')
        broken = response(b'{"error":{"message":"out of memory"}}', "500 Oh")
        async with served(
            *(recorded("loading"), recorded("health"), recorded("props"), recorded("health"), router),
            *(broken, recorded("health"), recorded("loading"), recorded("health"), recorded("props_unauthorized")),
        ) as (engine, _):
            assert await engine.ready() == "loading model"
            assert await engine.ready() is None
            assert "router" in (await engine.ready() or "")
            assert await engine.ready() == "out of memory"
            assert await engine.ready() == "loading model"
            with pytest.raises(EngineError, match="failed"):
                await engine.ready()

    run(body())


def test_props() -> None:
    """The limits are per slot; a template the server merely assumes is none; a router is refused."""

    async def body() -> None:
        broken = response(b'{"model_path":"m","total_slots":-1}')
        async with served(
            *(recorded("props"), OFF, recorded("bad_schema"), recorded("props_no_template"), OFF),
            *(
                recorded("bad_schema"),
                response(b'{"role":"router"}'),
                broken,
                recorded("loading"),
                recorded("props_unauthorized"),
            ),
        ) as (engine, _):
            props = await engine.props()
            assert (props.ctx, props.slots, props.model_id, props.chat_template) == (256, 2, "tiny.gguf", True)
            assert props.engine_version.startswith("b")
            assert props.workloads == {"completion"}
            assert {"grammar", "json_schema"} <= set(props.features)
            assert not (await engine.props()).chat_template
            for kind in ("protocol", "protocol", "full", "failed"):
                with pytest.raises(EngineError) as caught:
                    await engine.props()
                assert caught.value.kind == kind

    run(body())


def test_a_build_that_ignores_schemas() -> None:
    """A build that takes a wrong schema without a word ignores all of them: the feature is not claimed."""

    async def body() -> None:
        async with served(recorded("props"), OFF, response(b'{"content":"a"}'), recorded("props")) as (engine, _):
            for _ in range(2):  # asked once per build and model
                features = (await engine.props()).features
                assert "json_schema" not in features
                assert "grammar" in features
        async with served(recorded("props"), recorded("loading")) as (engine, _):
            with pytest.raises(EngineError, match="full"):
                await engine.props()
        async with served(recorded("props"), OFF, recorded("loading")) as (engine, _):
            with pytest.raises(EngineError, match="full"):
                await engine.props()

    run(body())


@pytest.mark.parametrize(
    ("counts", "last"),
    [((1, 2, 9), None), ((1, 2), 9), ((0, 0), 0), ((1, 1), 1), ((-1,), None), ((1,), 10**20)],
    ids=["too many", "too many at the end", "none", "fewer than frames", "negative", "absurd"],
)
def test_counts_that_cannot_be(counts: tuple[int, ...], last: int | None) -> None:
    """D4, D6: no engine wrote more than it was asked for, or fewer tokens than it sent; what came before stays."""

    async def body() -> None:
        frames = [frame(" ba", count) for count in counts]
        if last is not None:
            frames.append(LAST.replace(b'"tokens_predicted":2', b'"tokens_predicted":%d' % last))
        collected = await replay(stream(*frames), max_tokens=8)
        assert (collected.kind, collected.end) == ("protocol", None)

    run(body())


# -- embedding and rerank --------------------------------------------------------------------------------------
TOO_LONG = error(400, "input (257 tokens) is larger than the max context size (256 tokens). skipping")
SMALL_BATCH = error(
    500, "input (257 tokens) is too large to process. increase the physical batch size (current batch size: 64)"
)
NO_LOGITS = error(500, "the current context does not support logits computation. skipping")
NO_POOLING = error(400, "Pooling type 'none' is not OAI compatible. Please use a different pooling type")
NO_QUERY = error(400, '"query" must be provided')


@pytest.mark.parametrize(
    ("replies", "workloads", "ctx"),
    [
        ((OFF, recorded("bad_schema")), {"completion"}, 256),
        ((TOO_LONG, OFF, NO_LOGITS), {"embedding"}, 256),
        ((SMALL_BATCH, OFF, NO_LOGITS), {"embedding"}, 64),
        ((SMALL_BATCH, NO_QUERY, NO_LOGITS), {"rerank"}, 64),
        ((SMALL_BATCH, OFF, recorded("bad_schema")), {"completion", "embedding"}, 256),
        ((NO_POOLING, NO_POOLING, recorded("bad_schema")), {"completion"}, 256),
        ((error(400, "other words"), response(b"{}"), OFF, NO_LOGITS), {"embedding"}, 256),
    ],
)  # fmt: skip
def test_what_a_server_does_is_tried(replies: tuple[bytes, ...], workloads: set[str], ctx: int) -> None:
    """A server that ranks also answers /v1/embeddings, with garbage; the batch may be less than the context."""

    async def body() -> None:
        async with served(recorded("props"), *replies, recorded("props")) as (engine, raw):
            props = await engine.props()
            assert (props.workloads, props.ctx) == (workloads, ctx)
            assert ("grammar" in props.features) == ("completion" in workloads)
            assert ("prefix_cache" in props.features) == (workloads == {"completion"})
            assert await engine.props() == props
            assert len(raw.requests) == len(replies) + 2

    run(body())


def embedding(*numbers: str) -> bytes:
    vector = ",".join(numbers)
    return response(f'{{"usage":{{"prompt_tokens":3}},"data":[{{"embedding":[{vector}],"index":0}}]}}'.encode())


async def pooled(workload: Workload, *answers: bytes | None) -> tuple[Collected, RawServer]:
    query = "q" if workload == "rerank" else ""
    asked = Job(workload, 1, 7, prompt=query, inputs=("a", "b"), trace={"traceparent": "00-a-b-01"})
    kind = OFF if workload == "embedding" else NO_QUERY
    async with served(recorded("props"), TOO_LONG, kind, NO_LOGITS, *answers) as (engine, raw):
        return await collect(engine, asked), raw


def test_embeddings_come_one_by_one() -> None:
    """SPEC 4: a request per input, so each has its own token count; floats keep the 9 digits they have."""

    async def body() -> None:
        collected, raw = await pooled("embedding", embedding("0.09251894056797028", "-1"), embedding("2e-38", "0.5"))
        assert collected.error is None
        assert collected.results == [
            {"index": 0, "embedding": [0.0925189406, -1.0], "tokens_in": 3},
            {"index": 1, "embedding": [2e-38, 0.5], "tokens_in": 3},
        ]
        assert [len(chunk.results) for chunk in collected.chunks] == [1, 1]
        assert collected.end == JobEnd("stop", 6, 0)
        assert [b'"input":["a"]' in raw.requests[-2], b'"input":["b"]' in raw.requests[-1]] == [True, True]
        traced = [b"traceparent: 00-a-b-01" in request for request in raw.requests]
        assert traced == [False] * (len(traced) - 2) + [True, True]

    run(body())


def test_scores_say_that_they_are_logits() -> None:
    async def body() -> None:
        answer = response(b'{"usage":{"prompt_tokens":5},"results":[{"index":0,"relevance_score":-1.25}]}')
        collected, raw = await pooled("rerank", answer, answer)
        assert collected.results[1] == {"index": 1, "relevance_score": -1.25, "scale": "logit"}
        assert collected.end == JobEnd("stop", 10, 0)
        assert b'"query":"q","documents":["b"]' in raw.requests[-1]

    run(body())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (SMALL_BATCH, "refused"),  # whatever status it has, the input is what is wrong
        (TOO_LONG, "refused"),
        (error(500, "out of memory"), "failed"),
        (error(503, "Loading model"), "full"),
        (response(b"{"), "protocol"),
        (response(b'{"data":[],"usage":{"prompt_tokens":1}}'), "protocol"),
        (embedding("null"), "protocol"),
        (embedding(), "protocol"),
        (embedding("1").replace(b"3}", b"-3}"), "protocol"),
        (None, "lost"),
        (embedding("1")[:-5], "lost"),
    ],
)
def test_embeddings_that_fail(answer: bytes | None, kind: str) -> None:
    """D5, D6: what came before stays; nothing after it, and no end."""

    async def body() -> None:
        collected, _ = await pooled("embedding", embedding("1"), answer)
        assert (collected.kind, len(collected.results), collected.end) == (kind, 1, None)

    run(body())


def test_a_server_that_ranks_is_not_asked_for_embeddings() -> None:
    async def body() -> None:
        async with served(recorded("props"), TOO_LONG, NO_QUERY, NO_LOGITS) as (engine, _):
            assert (await collect(engine, Job("embedding", 1, 7, inputs=("a",)))).kind == "refused"

    run(body())


def test_control_requests() -> None:
    """tokenize, render and busy read what the engine says, and call anything else a protocol error."""

    async def body() -> None:
        slots = response(b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]')
        odd = response(b'"odd"')
        async with served(
            *(recorded("tokenize"), recorded("apply_template"), recorded("slots"), slots, recorded("slots_off")),
            *(odd, odd, odd, recorded("unauthorized")),
        ) as (engine, _):
            assert (
                await engine.tokenize("ba fi gono") == recorded("tokenize").rpartition(b"\r\n\r\n")[2].count(b",") + 1
            )
            assert await engine.render([Message("user", "hi")]) == "user: hi\nassistant:"
            assert [await engine.busy(), await engine.busy(), await engine.busy()] == [frozenset(), {0}, None]
            for call in (engine.tokenize("x"), engine.render([]), engine.busy()):
                with pytest.raises(EngineError, match="protocol"):
                    await call
            with pytest.raises(EngineError, match="failed"):
                await engine.busy()

    run(body())
