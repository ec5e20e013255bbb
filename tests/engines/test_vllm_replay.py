"""The vLLM adapter against bytes a real server sent (recordings/vllm, made by real/record.py)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestratord.domain.kv import KvLayout
from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines.vllm import Vllm
from orchestratord.ports import EngineError, Job, JobEnd
from tests.engines.fake import Fault, event, fake_server
from tests.engines.support import CLOCK, Collected, collect, job, raw_server, response, run, sent_frames
from tests.engines.support import recorded as any_recorded
from tests.engines.wires import ALL

METRICS = response(b'vllm:cache_config_info{block_size="128",enable_prefix_caching="True",num_gpu_blocks="512"} 1.0\n')


def recorded(name: str) -> bytes:
    return any_recorded(f"vllm/{name}")


WRITES = (recorded("models"), recorded("wrong_method"), recorded("no_route"), recorded("no_route"))


async def replay(reply: bytes | None, asked: Job | None = None, step: int = 1 << 20) -> Collected:
    """What the adapter makes of a reply to /v1/completions."""
    async with raw_server(*WRITES, reply, step=step) as raw:
        engine = Vllm(raw.url, clock=CLOCK)
        try:
            return await collect(engine, asked or job(max_tokens=12))
        finally:
            await engine.close()


def texts_of(reply: bytes) -> list[str]:
    return [choice["text"] for frame in sent_frames(reply) for choice in frame["choices"] if choice["text"]]


@pytest.mark.parametrize(("name", "reason", "tokens"), [("stream", "length", 12), ("stream_wild", "length", 120)])
def test_streams(name: str, reason: Any, tokens: int) -> None:
    """Texts as they came and vLLM's own counts, whole or in small reads."""

    async def body() -> None:
        reply = recorded(name)
        for step in (1 << 20, 61, *((1,) if name == "stream" else ())):
            collected = await replay(reply, step=step)
            assert (collected.texts, collected.error) == (texts_of(reply), None)
            assert collected.end == JobEnd(reason, 5, tokens)

    run(body())


def test_tokens_are_the_engines_count() -> None:
    """Half a character is a token without a text."""

    async def body() -> None:
        collected = await replay(recorded("stream_wild"))
        assert collected.end is not None
        assert collected.end.tokens_out == 120 > len(collected.texts)

    run(body())


def test_a_stop_string() -> None:
    async def body() -> None:
        collected = await replay(recorded("stream_stop"))
        assert collected.end is not None
        assert collected.end.finish_reason == "stop"
        assert "".join(texts_of(recorded("stream"))).startswith(collected.text)

    run(body())


def test_what_vllm_would_cut_is_refused() -> None:
    """It answers 200 and writes less than was asked for: not a single token of that comes through (ORCH-3016)."""

    async def body() -> None:
        assert sent_frames(recorded("stream_cut"))[-1]["usage"]["completion_tokens"] < 100
        collected = await replay(recorded("stream_cut"), job(max_tokens=100))
        assert (collected.kind, collected.chunks) == ("refused", [])
        assert collected.error is not None
        assert "more than the model's 2048" in collected.error.message

    run(body())


def test_a_dying_engine() -> None:
    """Its stream ends well, with [DONE] and the last chunk, and is a failure all the same."""

    async def body() -> None:
        reply = recorded("stream_dying")
        assert reply.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        collected = await replay(reply, job(max_tokens=400))
        assert (collected.kind, collected.end) == ("failed", None)
        assert collected.text

    run(body())


def test_a_cut_stream() -> None:
    """Cut anywhere before the frame with the finish reason, it is `lost`."""

    async def body() -> None:
        reply = recorded("stream")
        end = reply.index(b'"finish_reason":"length"')
        for cut in (*range(reply.index(b"\r\n\r\n") + 4, end, 213), end):
            collected = await replay(reply[:cut])
            assert (collected.kind, collected.end) == ("lost", None)

    run(body())


REFUSALS = [
    ("overflow", "refused", "maximum context length"),
    ("too_many_tokens", "refused", "max_tokens"),
    ("bad_grammar", "refused", "grammar"),
    ("bad_json", "refused", "json"),
    ("unauthorized", "failed", "unauthorized"),
    ("unknown_model", "failed", "does not exist"),
    ("no_route", "failed", "not found"),
]


@pytest.mark.parametrize(("name", "kind", "said"), REFUSALS)
def test_refusals(name: str, kind: str, said: str) -> None:
    """vLLM's own words come along; a wrong key or model is no fault of the request."""

    async def body() -> None:
        collected = await replay(recorded(name))
        assert collected.error is not None
        assert (collected.kind, said in collected.error.message.lower()) == (kind, True), collected.error.message

    run(body())


ODD = [
    ("aborted", [{"choices": [{"text": "a", "finish_reason": "abort"}]}], "failed"),
    ("no count", [{"choices": [{"text": "a", "finish_reason": "length"}]}], "lost"),
    ("a negative count", [{"choices": [], "usage": {"prompt_tokens": -1}}], "protocol"),
    ("an error that is a text", [{"error": "Unauthorized"}], "failed"),
    ("an error that blames us", [{"error": {"message": "bad", "code": 400}}], "refused"),
]


@pytest.mark.parametrize(("frames", "kind"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_odd_streams(frames: list[Any], kind: str) -> None:
    async def body() -> None:
        async with fake_server(ALL["vllm"]) as fake:
            engine = ALL["vllm"].driver(fake.url)
            fake.play(Fault(edit=lambda _: [*map(event, frames), b"data: [DONE]\n\n"]))
            assert (await collect(engine, job())).kind == kind
            await engine.close()

    run(body())


def test_the_count_may_come_after_the_reason() -> None:
    """Older versions give the usage in a frame of its own only."""

    async def body() -> None:
        async with fake_server(ALL["vllm"]) as fake:
            engine = ALL["vllm"].driver(fake.url)
            frames = (
                {"choices": [{"text": "a", "finish_reason": "stop"}]},
                {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
            )
            fake.play(Fault(edit=lambda _: [*map(event, frames)]))
            assert (await collect(engine, job())).end == JobEnd("stop", 3, 2)
            await engine.close()

    run(body())


async def described(*replies: bytes, slots: int | None = None) -> Any:
    async with raw_server(*replies) as raw:
        engine = Vllm(raw.url, clock=CLOCK, slots=slots)
        try:
            return await engine.props()
        finally:
            await engine.close()


def test_props() -> None:
    """Limits and kind of work come from the server; slots from its cache, unless they are known."""

    async def body() -> None:
        version, chat = recorded("version"), recorded("tokenize_chat")
        replies = (WRITES[0], version, *WRITES[1:], METRICS, chat)
        props = await described(*replies)
        assert (props.engine_version, props.model_id, props.ctx, props.slots) == ("0.32.0", "tiny-llama", 2048, 32)
        assert (props.workloads, props.chat_template, props.exact_alone) == ({"completion"}, True, True)
        assert set(props.features) == {*Sampling.__slots__, "prefix_cache"}
        assert props.kv_tokens == 512 * 128
        assert (await described(*replies, slots=3)).slots == 3
        plain = (*replies[:5], response(b"", content_type="text/plain"), recorded("bad_json"))
        props = await described(*plain)
        assert (props.slots, props.chat_template, "prefix_cache" in props.features) == (1, False, False)
        assert props.kv_tokens is None

    run(body())


CACHE = 'vllm:cache_config_info{{block_size="{}",enable_prefix_caching="{}",kv_cache_memory_bytes="{}",{}}} 1.0\n'


@pytest.mark.parametrize(
    ("labels", "kv"),
    [
        (("128", "True", "1073741824", 'kv_cache_size_tokens="1048576"'), KvLayout(1024, block=128)),
        (("128", "False", "1073741824", 'kv_cache_size_tokens="1048576"'), None),  # it keeps no prefixes
        (("128", "True", "None", 'kv_cache_size_tokens="1048576"'), None),  # it was not told, and does not tell
        (("128", "True", "1073741824", 'num_gpu_blocks="8192"'), None),
        (("128", "True", "1073741824", 'kv_cache_size_tokens="0"'), None),
    ],
)
def test_what_a_token_takes(labels: tuple[str, ...], kv: KvLayout | None) -> None:
    """ORCH-3023: from what its cache was given, and how many tokens it says that is enough for; else no figure."""

    async def body() -> None:
        metrics = response(CACHE.format(*labels).encode())
        replies = (WRITES[0], recorded("version"), *WRITES[1:], metrics, recorded("tokenize_chat"))
        assert (await described(*replies)).kv == kv

    run(body())


@pytest.mark.parametrize(
    ("metrics", "usage"),
    [
        (b'# HELP x\nvllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25\nother 1\n', 0.25),
        (b'vllm:kv_cache_usage_perc{engine="0"} 1e-3\n', 0.001),
        (b'vllm:kv_cache_usage_perc{engine="0"} 1.5\n', 1.0),
        (b'vllm:kv_cache_usage_perc{engine="0"} NaN\n', None),
        (b"other 1\n", None),
    ],
)
def test_how_full_its_cache_is(metrics: bytes, usage: float | None) -> None:
    """A share of the whole, or nothing where vLLM does not tell."""

    async def body() -> None:
        async with raw_server(response(metrics, content_type="text/plain")) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            assert await engine.kv_usage() == usage
            await engine.close()

    run(body())


def test_pooling_servers() -> None:
    """What a server mounts is what it does."""

    async def body() -> None:
        yes, no = recorded("wrong_method"), recorded("no_route")
        for routes, work in (((no, yes, yes), "embedding"), ((no, no, yes), "rerank")):
            props = await described(recorded("models"), recorded("version"), *routes, METRICS)
            assert (props.workloads, props.features, props.chat_template) == ({work}, (), False)

    run(body())


def test_embeddings_and_ranks() -> None:
    """Results have the port's form, with vLLM's own counts."""

    async def body() -> None:
        yes, no = recorded("wrong_method"), recorded("no_route")
        replies = (recorded("models"), no, yes, yes, recorded("embeddings"), recorded("embeddings"))
        async with raw_server(*replies) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            collected = await collect(
                engine, Job("embedding", 1, 0, inputs=("ba fi", "ba fi"), trace={"traceparent": "t"})
            )
            assert [b"traceparent: t" in request for request in raw.requests] == [False] * 4 + [True] * 2
            assert [(r["index"], r["tokens_in"], len(r["embedding"])) for r in collected.results] == [
                (0, 4, 128),
                (1, 4, 128),
            ]
            assert collected.end == JobEnd("stop", 8, 0)
            await engine.close()
        async with raw_server(recorded("models"), no, no, yes, recorded("rerank"), recorded("rerank")) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            asked = Job("rerank", 1, 0, prompt="ba", inputs=("ba fi", "x", "go no ba"))
            collected = await collect(engine, asked)
            assert sorted(r["index"] for r in collected.results) == [0, 1, 2]
            scores = [r["relevance_score"] for r in collected.results]
            assert scores == sorted(scores, reverse=True)
            assert {r["scale"] for r in collected.results} == {"probability"}
            assert collected.end is not None
            short = await collect(engine, Job("rerank", 1, 0, prompt="ba", inputs=("ba fi",)))
            assert short.kind == "protocol"  # three ranks for one document
            await engine.close()

    run(body())


def test_messages() -> None:
    """The template's tokens become a text that is read as the same tokens: without the begin mark they all get."""

    async def body() -> None:
        replies = (recorded("models"), recorded("tokenize_chat"), recorded("detokenize"))
        whole = msgspec.json.decode(recorded("tokenize_chat").rpartition(b"\r\n\r\n")[2])["tokens"]
        doubled = response(msgspec.json.encode({"count": 1, "tokens": [1, *whole]}))
        async with raw_server(*replies, doubled, recorded("tokenize_text")) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            assert await engine.render([Message("user", "hi")]) == "user: hi\nassistant:"
            await engine.close()
        async with raw_server(*replies, doubled, doubled) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            with pytest.raises(EngineError, match="cannot be written as text"):
                await engine.render([Message("user", "hi")])
            await engine.close()

    run(body())


def test_the_request() -> None:
    """Every knob goes out under vLLM's name, and none that was not given; a cold job shares no cache."""

    async def sent(asked: Job) -> Any:
        async with fake_server(ALL["vllm"]) as fake:
            engine = ALL["vllm"].driver(fake.url)
            assert (await collect(engine, asked)).error is None
            await engine.close()
            return msgspec.json.decode(fake.requests[-1][3])

    async def body() -> None:
        plain = await sent(job("größe", max_tokens=3, seed=9))
        usage = {"include_usage": True, "continuous_usage_stats": True}
        given = {"model": "fake", "prompt": "größe", "max_tokens": 3, "seed": 9, "stream": True}
        assert plain == {**given, "stream_options": usage}
        sampling = Sampling(0.5, 0.9, 40, 0.1, 1.1, 0.2, -0.3, ("x", "y"), {"type": "object"}, None)
        full = await sent(job(sampling=sampling, keep_cache=False))
        salt = full.pop("cache_salt")
        assert {name: full[name] for name in full if name not in plain} == {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": -0.3,
            "stop": ["x", "y"],
            "structured_outputs": {"json": {"type": "object"}},
        }
        assert (await sent(job(keep_cache=False)))["cache_salt"] != salt
        grammar = await sent(job(sampling=Sampling(grammar="root ::= [a-z]")))
        assert grammar["structured_outputs"] == {"grammar": "root ::= [a-z]"}

    run(body())


def test_the_fake_speaks_as_the_real_one() -> None:
    """Frames of the fake have keys of recorded ones, with values of the same types."""
    real = sent_frames(recorded("stream"))
    fake = sent_frames(b"".join(ALL["vllm"].events({"prompt": "a", "max_tokens": 2, "seed": 1})))
    for mine, theirs in ((fake[0], real[0]), (fake[-1], real[-1]), (fake[0]["choices"][0], real[0]["choices"][0])):
        assert {key: type(value) for key, value in mine.items()}.items() <= {
            key: type(value) for key, value in theirs.items()
        }.items()


def test_how_full_the_kv_cache_is() -> None:
    """OD-19: its own gauge; no gauge, no figure."""

    async def body() -> None:
        name = b'vllm:kv_cache_usage_perc{engine="%d",model_name="tiny"} '
        replies = [
            response(b"# HELP x\n" + name % 0 + b"0.25\n" + name % 1 + b"7.5e-01\nvllm:other 3\n"),
            response(name % 0 + b"0.0\n"),
            response(b"vllm:other 3\n"),
            response(b"", "404 Not Found"),
        ]
        async with raw_server(*replies) as raw:
            engine = Vllm(raw.url, clock=CLOCK)
            assert [await engine.kv_usage() for _ in replies] == [0.5, 0.0, None, None]
            await engine.close()

    run(body())
