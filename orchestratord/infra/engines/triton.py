"""NVIDIA Triton through its HTTP generate extension, for models that write text.

Learned from 2.51. What an adapter must know: a stream has no end mark, only a clean end of its body proves it; not
ready is a 400; errors of a model come as 400 before the first token and as a frame under 200 after it; only
`generate_stream` notices that its client has gone; a dead model process leaves its streams hanging and itself "ready".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message
from orchestratord.infra.engines import triton_process
from orchestratord.infra.engines.plumbing import (
    REPLACED,
    Count,
    Server,
    check_knobs,
    message_of,
    read,
    too_long,
)
from orchestratord.infra.engines.relay import Decoders, JsonFrames
from orchestratord.infra.engines.texts import StopFilter, byte_bound
from orchestratord.infra.engines.triton_model import Model, describe
from orchestratord.ports import Clock, Deliver, EngineError, EngineProps, Job, JobEnd

ENGINE = "triton"
MODELS = ("ensemble", "tensorrt_llm_bls", "vllm_model")  # what the backends' own examples call the model to ask
# A 400 before the first token blames the request, unless it speaks of the server's own state.
TROUBLE = ("not healthy", "not ready", "unavailable", "unknown model", "no available versions", "out of memory", "cuda")


class _Indexed(msgspec.Struct):
    name: str
    state: str = ""


class _Frame(msgspec.Struct, gc=False):
    """One response of a model; `error` excludes the rest."""

    error: Any = None
    text_output: str | None = None
    finish_reason: str | None = None
    num_input_tokens: Count | None = None
    num_output_tokens: Count | None = None


_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class _Stream(JsonFrames[_Frame]):
    """A generation. It ends with a clean end of the body, or where we cut it at a stop string."""

    who = "Triton"
    decoders = Decoders(_Frame)

    def __init__(self, job: Job, model: Model) -> None:
        super().__init__()
        self._job = job
        self._model = model
        self._stops = StopFilter(job.sampling.stop or ())
        self._responses = self._shown = 0
        self._tokens_in: int | None = None
        self._reason: FinishReason | None = None

    def tell_texts(self, frames: Sequence[_Frame]) -> int:
        texts: list[str] = []
        tokens, told, tokens_in = self.tokens, self._responses, self._tokens_in
        room, one_text = self._model.ctx - self._job.max_tokens, self._model.one_text
        for frame in frames if self._stops.idle else ():
            given, count = frame.num_input_tokens, frame.num_output_tokens
            if not frame.text_output or frame.error is not None or frame.finish_reason in _REASONS:
                break
            if given is not None:
                if given > room:
                    break
                tokens_in = given
            texts.append(frame.text_output)
            told += 1
            if count is None:
                count = told
            elif one_text:
                count += tokens
            if count > tokens:
                tokens = count
        self.texts += texts
        self.tokens, self._responses, self._tokens_in = tokens, told, tokens_in
        self._shown += len(texts)
        return len(texts)

    def tell(self, frame: _Frame) -> None:
        if frame.error is not None:
            raise EngineError("failed", message_of({"error": frame.error}, "the model reports an error without a text"))
        if frame.text_output is None:
            raise EngineError("protocol", "Triton sent a response without text_output")
        self._count(frame)
        if shown := self._stops.feed(frame.text_output):
            self._shown += 1
            if self._shown >= self._job.max_tokens:  # what is held back can have no text of its own any more
                shown += self._stops.rest()
            self.texts.append(shown)
        if frame.finish_reason in _REASONS:
            self._reason = _REASONS[frame.finish_reason]
        if self._stops.hit:
            self.end = JobEnd("stop", self._tokens_in, self.tokens)

    def _count(self, frame: _Frame) -> None:
        self._responses += 1
        if frame.num_input_tokens is not None:
            self._tokens_in = frame.num_input_tokens
            if self._tokens_in + self._job.max_tokens > self._model.ctx:
                raise too_long(self._tokens_in, self._job.max_tokens, self._model.ctx)
        if frame.num_output_tokens is None:
            self.tokens = max(self.tokens, self._responses)  # a model that gives no count sends a token a response
        elif self._model.one_text:
            self.tokens += frame.num_output_tokens
        else:
            self.tokens = max(self.tokens, frame.num_output_tokens)

    def closed(self) -> None:
        if not self._responses or (self._model.says_why and self._reason is None):
            raise EngineError("lost", "Triton ended the stream before the model had said why")
        if rest := self._stops.rest():
            self.texts.append(rest)
        reason = self._reason or ("length" if self.tokens >= self._job.max_tokens else "stop")
        self.end = JobEnd(reason, self._tokens_in, self.tokens)


class _Server(Server):
    """A Triton server: its 400 may mean anything."""

    def refusal(self, path: str, status: int, parsed: Any) -> EngineError:
        error = super().refusal(path, status, parsed)
        if error.kind == "refused" and any(words in error.message.lower() for words in TROUBLE):
            return EngineError("failed", error.message)
        return error


class Triton:
    """One model of a Triton server. See `ports.Engine`.

    model: its name, where the server has several. ctx: the tokens its context holds, unless its configuration has a
    parameter that says so. slots: how many requests to give it at once, unless it is one per instance and batch seat.
    """

    engine = ENGINE
    driver = "triton"
    taskless = True
    command = staticmethod(triton_process.command)
    environment = staticmethod(triton_process.environment)

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        api_key: str | None = None,
        model: str | None = None,
        ctx: int | None = None,
        slots: int | None = None,
    ) -> None:
        self._server = _Server("Triton", url, clock=clock, api_key=api_key)
        self._name = model
        self._ctx = ctx
        self._slots = slots
        self._model: Model | None = None

    async def ready(self) -> str | None:
        # Not /v2/health/ready: it also tells of models that are none of ours.
        status, parsed = await self._server.ask("GET", "/v2/health/live")
        if status != 200:
            return message_of(parsed, f"health check answers {status}").lower()
        name = await self._find_name()
        if name is None:
            return "no model is loaded"
        if self._model is not None and self._model.name != name:
            return REPLACED
        status, parsed = await self._server.ask("GET", f"/v2/models/{name}/ready")
        if status in (400, 404, 503):
            return message_of(parsed, f"model {name} is not ready").lower()
        if status != 200:
            raise self._server.refusal(f"/v2/models/{name}/ready", status, parsed)
        return None

    async def _find_name(self) -> str | None:
        """The model to ask; None while there is none. Raises EngineError when there is a choice."""
        if self._name is not None:
            return self._name
        index = read(list[_Indexed], await self._server.call("POST", "/v2/repository/index", {}), "Triton's index")
        names = sorted({entry.name for entry in index if entry.state == "READY"})
        known = next((name for name in MODELS if name in names), None)
        if known is None and len(names) > 1:
            raise EngineError(
                "protocol", f"Triton serves several models ({', '.join(names)[:300]}): name one in options"
            )
        return known or next(iter(names), None)

    async def _find_model(self) -> Model:
        name = await self._find_name()
        if name is None:
            raise EngineError("full", "no model is loaded")
        metadata = await self._server.call("GET", f"/v2/models/{name}")
        config = await self._server.call("GET", f"/v2/models/{name}/config")
        self._model = describe(metadata, config, ctx=self._ctx, slots=self._slots)
        return self._model

    async def props(self) -> EngineProps:
        model = await self._find_model()
        server = await self._server.call("GET", "/v2")
        version = server.get("version") if isinstance(server, dict) else None
        if not isinstance(version, str) or not version:
            raise EngineError("protocol", "Triton's /v2 names no version")
        return EngineProps(
            engine_version=version,
            model_id=f"{model.name}:{model.version}" if model.version else model.name,
            ctx=model.ctx,
            slots=model.slots,
            workloads=frozenset({"completion"}),
            chat_template=False,
            features=tuple(sorted(model.knobs)),
        )

    async def run(self, job: Job, deliver: Deliver) -> None:
        if job.workload != "completion":
            raise EngineError("refused", f"Triton serves no {job.workload} here")
        model = self._model or await self._find_model()
        check_knobs(job.sampling, model.knobs, f"model {model.name}")
        path = f"/v2/models/{model.name}/generate_stream"
        await self._server.stream(path, model.request(job), job, _Stream(job, model), deliver)

    async def busy(self) -> frozenset[int] | None:
        return None  # it has no slots; an abandoned stream is cancelled at its next token

    def bound(self, text: str) -> int:
        return byte_bound(text)

    async def tokenize(self, text: str) -> int:
        """Triton has no tokenizer to ask: the bound is the best there is."""
        return self.bound(text)

    async def render(self, messages: Sequence[Message]) -> str:
        raise EngineError("refused", "Triton applies no chat template")

    async def close(self) -> None:
        await self._server.close()
