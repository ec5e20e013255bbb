"""vLLM through its OpenAI-compatible API: completions, embeddings, reranking.

Learned from 0.32. What an adapter must know: a prompt and max_tokens that do not fit are cut in silence; a dying engine
ends its streams well, with an error frame, `[DONE]` and a clean close, all under status 200; headers come at once, long
before the first token; texts of half a character come late, so only the usage counts; it never says how many requests
it runs at once, and queues the others inside.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from orchestratord.domain.kv import KvLayout
from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Sampling, Workload
from orchestratord.infra.engines import vllm_process
from orchestratord.infra.engines.plumbing import (
    REPLACED,
    Count,
    Server,
    check_knobs,
    kind_of,
    message_of,
    read,
    too_long,
)
from orchestratord.infra.engines.relay import Decoders, JsonFrames
from orchestratord.infra.engines.texts import byte_bound, same_prompt
from orchestratord.infra.engines.vllm_pooling import Usage, pooled
from orchestratord.ports import Clock, Deliver, EngineError, EngineProps, Job, JobEnd

ENGINE = "vllm"
KNOBS = frozenset(Sampling.__slots__)
DONE = b"[DONE]"  # proves nothing: it comes after failures too
SLOTS_MAX = 256  # vLLM's own usual limit of running requests
PATHS: dict[str, Workload] = {
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
}


class _Choice(msgspec.Struct, gc=False):
    text: str = ""
    finish_reason: str | None = None


class _Frame(msgspec.Struct, gc=False):
    """One frame of a completion; `error` excludes the rest."""

    error: Any = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: Count
    root: str | None = None
    parent: str | None = None  # set on an adapter (LoRA) of another model


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokens(msgspec.Struct):
    tokens: list[int]
    token_strs: list[str] | None = None


_KV_USAGE = re.compile(r"^vllm:kv_cache_usage_perc\{[^}]*\} ([0-9][0-9.e+-]*)$", re.MULTILINE)
_FRAMES = Decoders(_Frame)
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class _Stream(JsonFrames[_Frame]):
    """A completion. It ends with a finish reason and the count that belongs to it."""

    who = "vLLM"
    decoders = _FRAMES

    def __init__(self, job: Job, ctx: int) -> None:
        super().__init__()
        self._room = ctx - job.max_tokens  # for the prompt
        self._max_tokens = job.max_tokens
        self._ctx = ctx
        self._reason: FinishReason | None = None

    def keep_text(self, payload: bytes) -> bool:
        try:
            frame = _FRAMES.one(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        choices, usage = frame.choices, frame.usage
        if frame.error is not None or choices is None or len(choices) != 1 or self._reason is not None:
            return False
        if usage is not None and (usage.prompt_tokens > self._room or usage.completion_tokens < self.tokens):
            return False
        text, count = choices[0].text, self.tokens if usage is None else usage.completion_tokens
        if not text or choices[0].finish_reason is not None or not self.keep(text, count):
            return False
        self.tokens = count
        return True

    def take(self, payload: bytes) -> None:
        if payload != DONE:
            super().take(payload)

    def take_all(self, payloads: list[bytes]) -> None:
        super().take_all(payloads[:-1] if payloads[-1:] == [DONE] else payloads)

    def tell_texts(self, frames: Sequence[_Frame]) -> int:
        texts: list[str] = []
        tokens, room = self.tokens, self._room
        for frame in frames if self._reason is None else ():
            choices, usage = frame.choices, frame.usage
            if frame.error is not None or choices is None or len(choices) != 1:
                break
            choice = choices[0]
            if not choice.text or choice.finish_reason is not None:
                break
            if usage is not None:
                if usage.prompt_tokens > room:
                    break
                if usage.completion_tokens > tokens:
                    tokens = usage.completion_tokens
            texts.append(choice.text)
        self.texts += texts
        self.tokens = tokens
        return len(texts)

    def tell(self, frame: _Frame) -> None:
        if frame.error is not None:
            code = frame.error.get("code") if isinstance(frame.error, dict) else None
            kind = kind_of(code) if isinstance(code, int) else "failed"
            raise EngineError(kind, message_of({"error": frame.error}, "vLLM reports an error without a message"))
        if frame.choices is None:
            raise EngineError("protocol", "vLLM sent a frame without choices")
        if frame.usage is not None and frame.usage.prompt_tokens > self._room:
            # vLLM would write less than was asked for, and call that `length`.
            raise too_long(frame.usage.prompt_tokens, self._max_tokens, self._ctx)
        for choice in frame.choices:
            if choice.text:
                self.texts.append(choice.text)
            if choice.finish_reason is not None:
                if choice.finish_reason not in _REASONS:
                    raise EngineError("failed", f"vLLM gave the request up: {choice.finish_reason[:100]}")
                self._reason = _REASONS[choice.finish_reason]
        if frame.usage is not None:
            self.tokens = max(self.tokens, frame.usage.completion_tokens)
            if self._reason is not None:
                self.end = JobEnd(self._reason, frame.usage.prompt_tokens, self.tokens)


class Vllm:
    """One vLLM server. See `ports.Engine`. slots: how many requests to give it at once, if that is known (its
    `--max-num-seqs`); else as many as its cache holds at full length."""

    engine = ENGINE
    driver = "vllm"
    taskless = True
    command = staticmethod(vllm_process.command)
    environment = staticmethod(vllm_process.environment)

    def __init__(self, url: str, *, clock: Clock, api_key: str | None = None, slots: int | None = None) -> None:
        self._server = Server("vLLM", url, clock=clock, api_key=api_key)
        self._slots = slots
        self._model: _Model | None = None
        self._workloads: frozenset[Workload] | None = None

    async def ready(self) -> str | None:
        # While it loads, nothing listens. After its engine died it answers 503 for a moment, then exits.
        status, parsed = await self._server.ask("GET", "/health")
        if status != 200:
            return message_of(parsed, f"health check answers {status}").lower()
        known = self._model
        return REPLACED if known not in (None, await self._find_model()) else None

    async def _find_model(self) -> _Model:
        models = read(_Models, await self._server.call("GET", "/v1/models"), "vLLM's /v1/models")
        found = next((model for model in models.data if not model.parent), None)
        if found is None:
            raise EngineError("protocol", "vLLM lists no model")
        self._model = found
        return found

    async def props(self) -> EngineProps:
        model = await self._find_model()
        version = await self._server.call("GET", "/version")
        if not isinstance(version, dict) or not isinstance(version.get("version"), str):
            raise EngineError("protocol", "vLLM's /version cannot be read")
        workloads = await self._find_workloads()
        cache = _cache_config(await self._server.text("/metrics") or "")
        writes = "completion" in workloads
        cached = writes and cache.get("enable_prefix_caching") == "True"
        return EngineProps(
            engine_version=version["version"],
            model_id=model.root or model.id,
            ctx=model.max_model_len,
            slots=self._slots or _slots(cache, model.max_model_len),
            workloads=workloads,
            chat_template=writes and await self._has_template(model),
            exact_alone=writes,
            kv=_kv_layout(cache) if cached else None,
            kv_tokens=_kv_tokens(cache) if cached else None,
            features=tuple(sorted({*(KNOBS if writes else ()), *(("prefix_cache",) if cached else ())})),
        )

    async def _find_workloads(self) -> frozenset[Workload]:
        """A server mounts only the routes its model can serve: a GET tells a wrong method from no route at all."""
        found = {name for path, name in PATHS.items() if (await self._server.ask("GET", path))[0] == 405}
        if "completion" in found:
            found = {"completion"}
        elif "embedding" in found:
            found = {"embedding"}  # its /v1/rerank compares vectors: no reranker
        self._workloads = frozenset(found)
        return self._workloads

    async def _has_template(self, model: _Model) -> bool:
        status, parsed = await self._server.ask("POST", "/tokenize", _chat(model, [Message("user", "x")]))
        if status >= 500:
            raise self._server.refusal("/tokenize", status, parsed)
        return status == 200

    async def run(self, job: Job, deliver: Deliver) -> None:
        model = self._model or await self._find_model()
        if job.workload not in (self._workloads or await self._find_workloads()):
            raise EngineError("refused", f"this vLLM server does no {job.workload}: it runs another kind of model")
        if job.workload == "completion":
            check_knobs(job.sampling, KNOBS, "vLLM")
            frames = _Stream(job, model.max_model_len)
            await self._server.stream("/v1/completions", _request(job, model), job, frames, deliver)
        else:
            await pooled(self._server, model.id, job, deliver)

    async def busy(self) -> frozenset[int] | None:
        return None  # it has no slots; an abandoned request is gone within milliseconds

    async def kv_usage(self) -> float | None:
        """See `ports.KvGauge`: its own figure, the mean over its engines if it has several."""
        text = await self._server.text("/metrics") or ""
        found = [float(value) for value in _KV_USAGE.findall(text)]
        return min(1.0, sum(found) / len(found)) if found else None

    def bound(self, text: str) -> int:
        return byte_bound(text)

    async def tokenize(self, text: str) -> int:
        return len(await self._tokens(text))

    async def _tokens(self, text: str) -> list[int]:
        model = self._model or await self._find_model()
        answer = await self._server.call("POST", "/tokenize", {"model": model.id, "prompt": text})
        return read(_Tokens, answer, "vLLM's /tokenize").tokens

    async def render(self, messages: Sequence[Message]) -> str:
        """vLLM applies a template only to make tokens of messages, so these are turned back into a text; which must
        then become the same tokens again."""
        model = self._model or await self._find_model()
        made = read(_Tokens, await self._server.call("POST", "/tokenize", _chat(model, messages)), "vLLM's /tokenize")
        answer = await self._server.call("POST", "/detokenize", {"model": model.id, "tokens": made.tokens})
        text = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise EngineError("protocol", "vLLM's /detokenize cannot be read")
        return await same_prompt(text, made.tokens, next(iter(made.token_strs or ()), ""), self._tokens)

    async def close(self) -> None:
        await self._server.close()


def _chat(model: _Model, messages: Sequence[Message]) -> dict[str, Any]:
    """The body that makes tokens of messages."""
    given = [{"role": message.role, "content": message.content} for message in messages]
    return {"model": model.id, "messages": given, "return_token_strs": True}


def _request(job: Job, model: _Model) -> dict[str, Any]:
    """The body of POST /v1/completions."""
    sampling = job.sampling
    plain = {knob: getattr(sampling, knob) for knob in KNOBS - {"json_schema", "grammar"}}
    guide = {"json": sampling.json_schema, "grammar": sampling.grammar}
    body = {
        "model": model.id,
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "seed": job.seed,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **{knob: value for knob, value in plain.items() if value is not None},
    }
    if any(value is not None for value in guide.values()):
        body["structured_outputs"] = {kind: value for kind, value in guide.items() if value is not None}
    if not job.keep_cache:
        body["cache_salt"] = secrets.token_hex(16)  # a name no other request's cache goes by
    return body


def _cache_config(metrics: str) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`, the only place where the server says how much it can hold."""
    found = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)
    return dict(re.findall(r'(\w+)="([^"]*)"', found[1])) if found else {}


def _kv_layout(cache: dict[str, str]) -> KvLayout | None:
    """What a token takes, where the server was told how many bytes its cache may have; in whole blocks only."""
    size, tokens, block = (cache.get(n, "") for n in ("kv_cache_memory_bytes", "kv_cache_size_tokens", "block_size"))
    if not (size.isdigit() and tokens.isdigit() and block.isdigit() and int(tokens) and int(block)):
        return None
    return KvLayout(int(size) // int(tokens), block=int(block))


def _slots(cache: dict[str, str], ctx: int) -> int:
    """Requests of full length that fit into the cache together."""
    return min(SLOTS_MAX, max(1, _kv_tokens(cache) // max(1, ctx)))


def _kv_tokens(cache: dict[str, str]) -> int:
    """What the cache holds; 0 where it does not say."""
    blocks, size = cache.get("num_gpu_blocks", ""), cache.get("block_size", "")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0
