"""llama.cpp's `llama-server` through its native API.

Learned from builds b10434, b11434 and b11549. What an adapter must know: a stream ends only with a frame that says
`stop: true`; errors may come as frames under status 200; a token may come without a frame, so only the engine's own
counter counts; requests beyond the slots queue inside without limit and cannot be cancelled there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, Any

import msgspec

from orchestratord.domain.kv import KvLayout
from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines import llamacpp_pooled, llamacpp_process
from orchestratord.infra.engines.llamacpp_abilities import Abilities, abilities
from orchestratord.infra.engines.llamacpp_kv import kv_layout
from orchestratord.infra.engines.llamacpp_slots import slots_of
from orchestratord.infra.engines.plumbing import REPLACED, kind_of, message_of, read, refusal, refused
from orchestratord.infra.engines.relay import Decoders, JsonFrames, relay
from orchestratord.infra.engines.transport import Reply, Transport
from orchestratord.ports import Clock, Deliver, EngineError, EngineProps, Job, JobEnd, ProcessSpec

ENGINE = "llamacpp"
CONTROL_S = 5.0  # for everything but a stream: these answer in milliseconds even while slots are busy
# Our knob -> its name in a request. What it does not know it ignores in silence, so nothing else is ever sent.
KNOBS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
    "json_schema": "json_schema",
    "grammar": "grammar",
}
_values = attrgetter(*KNOBS)
# The last frame would echo the whole prompt and all settings.
_LAST_FRAME = ["content", "stop", "stop_type", "tokens_predicted", "tokens_evaluated"]
# The template a server reports for a model that carries none; using it would be a guess.
_NO_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "  {{- '<|im_start|>assistant\n' -}}\n"
    "{%- endif -%}"
)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class _Frame(msgspec.Struct, gc=False):
    """One frame of a /completion stream; `error` excludes the rest."""

    error: Any = None
    content: str | None = None
    stop: bool = False
    stop_type: str = "none"
    tokens_predicted: Count = 0
    tokens_evaluated: Count = 0


class _Generation(msgspec.Struct):
    n_ctx: Count


class _Props(msgspec.Struct):
    """The part of /props that counts. A router (a server started without a model) has no model path."""

    default_generation_settings: _Generation
    total_slots: Count
    build_info: str
    model_path: str
    chat_template: str = ""
    model_ftype: str | None = None
    role: str = ""


_FRAMES = Decoders(_Frame)


def _request(job: Job) -> bytes:
    """The body of POST /completion."""
    return msgspec.json.encode(
        {
            "prompt": job.prompt,
            "n_predict": job.max_tokens,
            "seed": job.seed,
            "cache_prompt": job.keep_cache,
            "stream": True,
            "response_fields": _LAST_FRAME,
            **({} if job.slot is None else {"id_slot": job.slot}),
            **_knobs(job.sampling),
        }
    )


def _knobs(sampling: Sampling) -> dict[str, Any]:
    given = zip(KNOBS.values(), _values(sampling), strict=True)
    return {name: value for name, value in given if value is not None}


def _fault(frame: _Frame) -> EngineError:
    """What is wrong with a frame that is none of a completion: what the engine reports, or protocol."""
    if frame.error is None:
        return EngineError("protocol", "llama-server sent a frame without content")
    code = frame.error.get("code") if isinstance(frame.error, dict) else None
    kind = kind_of(code) if isinstance(code, int) else "failed"
    return EngineError(kind, message_of({"error": frame.error}, "llama-server reports an error without a message"))


class _Stream(JsonFrames[_Frame]):
    """A completion. It ends with the frame that says `stop`."""

    __slots__ = ("_frames", "_max_tokens")

    who = "llama-server"
    decoders = _FRAMES

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self._max_tokens = max_tokens
        self._frames = 0

    def keep_text(self, payload: bytes) -> bool:
        try:
            frame = _FRAMES.one(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        content, count = frame.content, frame.tokens_predicted
        if not content or frame.stop or frame.error is not None or not self.tokens <= count <= self._max_tokens:
            return False
        if not self.keep(content, count):
            return False
        self.tokens = count
        self._frames += 1
        return True

    def tell_texts(self, frames: Sequence[_Frame]) -> int:
        texts, tokens = [], self.tokens
        for frame in frames:
            content, count = frame.content, frame.tokens_predicted
            if not content or frame.stop or frame.error is not None or not tokens <= count <= self._max_tokens:
                break
            texts.append(content)
            tokens = count
        self.texts += texts
        self.tokens = tokens
        self._frames += len(texts)
        return len(texts)

    def tell(self, frame: _Frame) -> None:
        content = frame.content
        if content is None or frame.error is not None:
            raise _fault(frame)
        if frame.tokens_predicted > self.tokens:
            self.tokens = frame.tokens_predicted
        if content:
            self._frames += 1
        if self.tokens > self._max_tokens or (frame.stop and self.tokens < self._frames):
            raise EngineError(
                "protocol",
                f"llama-server counts {self.tokens} tokens in {self._frames} frames, asked for {self._max_tokens}",
            )
        if content:  # empty: half a character, a text held back for a stop string, or the end
            self.texts.append(content)
        if frame.stop:
            reason: FinishReason = "length" if frame.stop_type == "limit" else "stop"
            self.end = JobEnd(reason, frame.tokens_evaluated, self.tokens)


class LlamaCpp:
    """One llama-server. See `ports.Engine`. process: how the daemon started it."""

    engine = ENGINE
    driver = "llamacpp"
    taskless = True
    command = staticmethod(llamacpp_process.command)
    environment = staticmethod(llamacpp_process.environment)

    def __init__(
        self, url: str, *, clock: Clock, api_key: str | None = None, process: ProcessSpec | None = None
    ) -> None:
        self._http = Transport(url, clock=clock, api_key=api_key)
        self._process = process
        self._props: _Props | None = None  # as last read
        self._kv: dict[str, KvLayout | None] = {}  # by model
        self._said: dict[tuple[str, str, int], Abilities] = {}  # by build, model and ctx: what it was found to do

    async def ready(self) -> str | None:
        status, parsed, _ = await self._http.request_json("GET", "/health", limit_s=CONTROL_S)
        if status != 200:
            return message_of(parsed, f"health check answers {status}").lower()
        # A router is healthy with no model at all.
        status, parsed, _ = await self._http.request_json("GET", "/props", limit_s=CONTROL_S)
        if status == 503:
            return message_of(parsed, "loading model").lower()
        if status != 200:
            raise refusal("llama-server", "/props", status, parsed)
        if not _has_model(parsed):
            return "no model loaded: this llama-server runs as a router"
        return REPLACED if self._props not in (None, _props(parsed)) else None

    async def props(self) -> EngineProps:
        parsed = await self._call("GET", "/props")
        if not _has_model(parsed):
            raise EngineError("protocol", "this llama-server runs as a router; start it with one model (-m)")
        props = self._props = _props(parsed)
        ctx = props.default_generation_settings.n_ctx
        known = (props.build_info, props.model_path, ctx)
        if known not in self._said:
            self._said[known] = await abilities(self._http, ctx, KNOBS)
        able = self._said[known]
        return EngineProps(
            engine_version=props.build_info,
            model_id=props.model_path,
            ctx=able.ctx,
            slots=props.total_slots,
            workloads=able.workloads,
            chat_template=bool(props.chat_template) and props.chat_template.strip() != _NO_TEMPLATE,
            quant=props.model_ftype,
            exact_alone=True,
            features=able.features,
            kv=await self._kv_layout(props.model_path),
        )

    async def _kv_layout(self, path: str) -> KvLayout | None:
        if self._process is not None and path not in self._kv:
            self._kv = {path: await asyncio.to_thread(kv_layout, path, self._process)}
        return self._kv.get(path)

    async def run(self, job: Job, deliver: Deliver) -> None:
        pooled = job.workload != "completion"
        if pooled and not self._said:
            await self.props()
        if self._said and job.workload not in next(reversed(self._said.values())).workloads:
            raise EngineError("refused", f"this llama-server does no {job.workload}")
        if pooled:
            await llamacpp_pooled.run(self._http, job, deliver)
            return
        async with self._http.post("/completion", _request(job), stream=True, extra=job.trace) as reply:
            if reply.status != 200:
                raise await self._failure(reply)
            kind = reply.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                raise EngineError("protocol", f"llama-server answers /completion with {kind or 'no type'!r}")
            frames = _Stream(job.max_tokens)
            await relay(reply, frames, deliver, "llama-server")
            reply.satisfied = frames.end is not None

    async def _failure(self, reply: Reply) -> EngineError:
        try:
            parsed = msgspec.json.decode(await refused(reply))
        except msgspec.DecodeError:
            parsed = None
        return refusal("llama-server", "/completion", reply.status, parsed)

    async def busy(self) -> frozenset[int] | None:
        """See the port. After an abort ask at most once a second: llama-server looks whether the clients of requests
        without output are still there only when nothing else has woken it for a second."""
        slots = await slots_of(self._http)
        return None if slots is None else frozenset(slot.id for slot in slots if slot.is_processing)

    async def kv_usage(self) -> float | None:
        """See `ports.KvGauge`. What idle slots still hold is free for the next job, so it does not count."""
        slots = await slots_of(self._http) or []
        room = sum(slot.n_ctx for slot in slots)
        return min(1.0, sum(slot.tokens for slot in slots if slot.is_processing) / room) if room else None

    def bound(self, text: str) -> int:
        """Every vocabulary in use falls back to bytes, so no text needs more tokens than it has of them; 8 more for
        begin and end marks and the space some tokenizers put first."""
        return len(text.encode("utf-8", "surrogatepass")) + 8

    async def tokenize(self, text: str) -> int:
        # As /completion reads a prompt: with its begin mark, and with special tokens recognised in the text.
        parsed = await self._call("POST", "/tokenize", content=text, add_special=True, parse_special=True)
        tokens = parsed.get("tokens") if isinstance(parsed, dict) else None
        if not isinstance(tokens, list):
            raise EngineError("protocol", "llama-server's /tokenize cannot be read")
        return len(tokens)

    async def render(self, messages: Sequence[Message]) -> str:
        given = [{"role": message.role, "content": message.content} for message in messages]
        parsed = await self._call("POST", "/apply-template", messages=given)
        prompt = parsed.get("prompt") if isinstance(parsed, dict) else None
        if not isinstance(prompt, str):
            raise EngineError("protocol", "llama-server's /apply-template cannot be read")
        return prompt

    async def close(self) -> None:
        await self._http.close()

    async def _call(self, method: str, path: str, **fields: Any) -> Any:
        """A control request that must succeed: the parsed body. Raises EngineError."""
        body = msgspec.json.encode(fields) if fields else None
        status, parsed, _ = await self._http.request_json(method, path, body, limit_s=CONTROL_S, max_bytes=16 << 20)
        if status != 200:
            raise refusal("llama-server", path, status, parsed)
        return parsed


def _props(parsed: Any) -> _Props:
    """Raises EngineError."""
    return read(_Props, parsed, "llama-server's /props")


def _has_model(props: Any) -> bool:
    return isinstance(props, dict) and bool(props.get("model_path")) and props.get("role") != "router"
