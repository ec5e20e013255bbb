"""Hugging Face's Text Generation Inference through its native API.

Learned from the router's source at 3.3.6; no server was at hand, so nothing here has met a real one. What an adapter
must know: `/generate_stream` answers 200 whatever happens, and errors are events; only the last token's event carries
`generated_text`; a temperature of 0 and a top_p of 1 are errors, not "off"; texts include the stop string and special
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestratord.domain.outcome import FinishReason
from orchestratord.domain.request import Message, Sampling
from orchestratord.infra.engines.plumbing import REPLACED, Count, Server, check_knobs, message_of, read
from orchestratord.infra.engines.relay import Decoders, JsonFrames
from orchestratord.infra.engines.texts import StopFilter, byte_bound, same_prompt
from orchestratord.infra.engines.transport import ErrorKind
from orchestratord.ports import Clock, Deliver, EngineError, EngineProps, Job, JobEnd

ENGINE = "tgi"
KNOBS = frozenset({"temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty", "stop", "json_schema"})
_KINDS: dict[str, ErrorKind] = {
    "overloaded": "full",
    "validation": "refused",
    "template_error": "refused",
}


class _Token(msgspec.Struct, gc=False):
    text: str
    special: bool = False


class _Details(msgspec.Struct):
    finish_reason: str
    generated_tokens: Count
    input_length: Count | None = None


class _Event(msgspec.Struct, gc=False):
    """One event of a stream; `error` excludes the rest."""

    error: Any = None
    error_type: str = ""
    token: _Token | None = None
    index: Count = 0
    generated_text: str | None = None
    details: _Details | None = None


class _Info(msgspec.Struct):
    model_id: str
    version: str
    max_total_tokens: Count
    max_concurrent_requests: Count


class _SimpleToken(msgspec.Struct):
    id: int
    text: str = ""


class _ChatTokens(msgspec.Struct):
    tokenize_response: list[_SimpleToken]
    templated_text: str


_REASONS: dict[str, FinishReason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class _Stream(JsonFrames[_Event]):
    """A generation. It ends with the event that carries `generated_text`, or where we cut it at a stop string: TGI
    looks for those at the end of a token only, and would go on."""

    who = "TGI"
    decoders = Decoders(_Event)

    def __init__(self, stops: Sequence[str]) -> None:
        super().__init__()
        self._stops = StopFilter(stops)

    def tell_texts(self, events: Sequence[_Event]) -> int:
        texts: list[str] = []
        tokens = self.tokens
        for event in events if self._stops.idle else ():
            token = event.token
            if token is None or not token.text or token.special or event.error is not None:
                break
            if event.generated_text is not None:
                break
            texts.append(token.text)
            if event.index > tokens:
                tokens = event.index
        self.texts += texts
        self.tokens = tokens
        return len(texts)

    def tell(self, event: _Event) -> None:
        if event.error is not None:
            kind = _KINDS.get(event.error_type, "failed")
            raise EngineError(kind, message_of({"error": event.error}, "TGI reports an error without a message"))
        if event.token is None:
            raise EngineError("protocol", "TGI sent an event without a token")
        self.tokens = max(self.tokens, event.index)
        text = "" if event.token.special else self._stops.feed(event.token.text)
        if event.generated_text is not None:
            if event.details is None or event.details.finish_reason not in _REASONS:
                raise EngineError("protocol", "TGI ended without saying why")
            text += self._stops.rest()  # not a text of its own: more texts than tokens would be one too many
            self.tokens = max(self.tokens, event.details.generated_tokens)
            reason = "stop" if self._stops.hit else _REASONS[event.details.finish_reason]
            self.end = JobEnd(reason, event.details.input_length, self.tokens)
        elif self._stops.hit:
            self.end = JobEnd("stop", None, self.tokens)
        if text:
            self.texts.append(text)


class Tgi:
    """One TGI server. See `ports.Engine`. slots: how many requests to give it at once; else as many as it takes before
    it says that it is overloaded."""

    engine = ENGINE
    driver = "tgi"
    taskless = True

    def __init__(self, url: str, *, clock: Clock, api_key: str | None = None, slots: int | None = None) -> None:
        self._server = Server("TGI", url, clock=clock, api_key=api_key)
        self._slots = slots
        self._known: _Info | None = None  # as last read

    async def ready(self) -> str | None:
        status, parsed = await self._server.ask("GET", "/health")
        if status != 200:
            return message_of(parsed, f"health check answers {status}").lower()
        return REPLACED if self._known not in (None, await self._info()) else None

    async def _info(self) -> _Info:
        return read(_Info, await self._server.call("GET", "/info"), "TGI's /info")

    async def props(self) -> EngineProps:
        info = self._known = await self._info()
        return EngineProps(
            engine_version=info.version,
            model_id=info.model_id,
            ctx=info.max_total_tokens,
            slots=self._slots or max(1, info.max_concurrent_requests),
            workloads=frozenset({"completion"}),
            chat_template=await self._has_template(),
            features=tuple(sorted(KNOBS)),
        )

    async def _has_template(self) -> bool:
        status, parsed = await self._server.ask("POST", "/chat_tokenize", _chat([Message("user", "x")]))
        if status >= 500:
            raise self._server.refusal("/chat_tokenize", status, parsed)
        return status == 200

    async def run(self, job: Job, deliver: Deliver) -> None:
        if job.workload != "completion":
            raise EngineError("refused", f"TGI serves no {job.workload}")
        check_knobs(job.sampling, KNOBS, "TGI")
        body = {"inputs": job.prompt, "parameters": _parameters(job)}
        await self._server.stream("/generate_stream", body, job, _Stream(job.sampling.stop or ()), deliver)

    async def busy(self) -> frozenset[int] | None:
        return None  # it has no slots; an abandoned request is dropped at its next token

    def bound(self, text: str) -> int:
        return byte_bound(text)

    async def tokenize(self, text: str) -> int:
        return len(await self._tokens(text))

    async def _tokens(self, text: str) -> list[int]:
        answer = await self._server.call("POST", "/tokenize", {"inputs": text})
        return [token.id for token in read(list[_SimpleToken], answer, "TGI's /tokenize")]

    async def render(self, messages: Sequence[Message]) -> str:
        """The template's text; without the begin mark, where /generate would put a second one before it."""
        answer = await self._server.call("POST", "/chat_tokenize", _chat(messages))
        made = read(_ChatTokens, answer, "TGI's /chat_tokenize")
        tokens = [token.id for token in made.tokenize_response]
        first = made.tokenize_response[0].text if made.tokenize_response else ""
        return await same_prompt(made.templated_text, tokens, first, self._tokens)

    async def close(self) -> None:
        await self._server.close()


def _chat(messages: Sequence[Message]) -> dict[str, Any]:
    return {"model": "tgi", "messages": [{"role": message.role, "content": message.content} for message in messages]}


def _parameters(job: Job) -> dict[str, Any]:
    """What TGI accepts: a knob at its neutral value is an error there, so it is left out."""
    return {
        "max_new_tokens": job.max_tokens,
        "seed": job.seed,
        "details": True,
        "return_full_text": False,
        **_choice(job.sampling),
        **_rest(job.sampling),
    }


def _choice(sampling: Sampling) -> dict[str, Any]:
    """How a token is chosen. Any of these but do_sample switches sampling on."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    chosen: dict[str, Any] = {}
    if sampling.temperature is not None:
        chosen["temperature"] = sampling.temperature
    if sampling.top_k:
        chosen["top_k"] = sampling.top_k
    if sampling.top_p is not None and sampling.top_p < 1:
        chosen["top_p"] = sampling.top_p
    return {"do_sample": bool(chosen), **chosen}


def _rest(sampling: Sampling) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if sampling.repetition_penalty is not None and sampling.repetition_penalty != 1:
        given["repetition_penalty"] = sampling.repetition_penalty
    if sampling.frequency_penalty:
        given["frequency_penalty"] = sampling.frequency_penalty
    if sampling.stop:
        given["stop"] = list(sampling.stop)
    if sampling.json_schema is not None:
        given["grammar"] = {"type": "json", "value": sampling.json_schema}
    return given
