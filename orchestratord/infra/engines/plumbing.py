"""What the adapters of HTTP engines share: refusals and control requests."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.relay import Frames, relay
from orchestratord.infra.engines.sse import SSEDecoder
from orchestratord.infra.engines.transport import ErrorKind, Reply, Transport
from orchestratord.ports import Clock, Deliver, EngineError, Job

T = TypeVar("T")

CONTROL_S = 5.0  # for everything but a stream
REPLACED = "another engine, model or setting has taken the place of what was there"  # quicker than a look finds nobody
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


OURS = frozenset({401, 403, 404, 405})  # our key, our paths: whoever asked for the work can do nothing about them


def kind_of(status: int) -> ErrorKind:
    """What an HTTP status means, of a reply or inside an error frame: the rule of `ports.EngineError`."""
    if status in (429, 503):  # no room, or not loaded yet: no fault of the request or the engine
        return "full"
    if status in OURS:
        return "failed"
    if status == 501 or 400 <= status < 500:
        return "refused"
    return "failed" if status >= 500 else "protocol"


def message_of(parsed: Any, fallback: str) -> str:
    """The engine's own words out of an error body of any of the usual shapes, bounded."""
    said = parsed
    for _ in range(2):
        if isinstance(said, dict):
            said = next((said[key] for key in ("error", "message", "detail") if said.get(key)), None)
    return (said if isinstance(said, str) and said else fallback)[:500]


async def refused(reply: Reply) -> bytes:
    """The body of a reply that is no success, as far as it matters: engines repeat what they were sent, and however
    much that is, the status says which kind of failure it was."""
    return await reply.body(1 << 16, whole=False)


def refusal(who: str, path: str, status: int, parsed: Any) -> EngineError:
    """What a reply that is no success means. `who`: the engine's name."""
    return EngineError(kind_of(status), message_of(parsed, f"{who} answers {path} with status {status}"))


def read(kind: type[T], parsed: Any, what: str) -> T:
    """`parsed` as a struct. Raises EngineError(protocol)."""
    try:
        return msgspec.convert(parsed, kind)
    except msgspec.ValidationError as error:
        raise EngineError("protocol", f"{what} cannot be read: {error}") from None


def too_long(tokens: int, max_tokens: int, ctx: int) -> EngineError:
    """The refusal of a job that does not fit, where the engine would cut it in silence."""
    return EngineError(
        "refused", f"the prompt has {tokens} tokens; with max_tokens {max_tokens} that is more than the model's {ctx}"
    )


def check_knobs(sampling: Sampling, honoured: frozenset[str], who: str) -> None:
    """Raises EngineError(refused) that names a knob which would be lost."""
    for knob in Sampling.__slots__:
        if getattr(sampling, knob) is not None and knob not in honoured:
            raise EngineError("refused", f"{who} cannot honour sampling.{knob}")


class Server:
    """One engine's HTTP server. `who`: its name in messages."""

    def __init__(self, who: str, url: str, *, clock: Clock, api_key: str | None) -> None:
        self.who = who
        self._http = Transport(url, clock=clock, api_key=api_key)

    async def ask(self, method: str, path: str, fields: Any = None) -> tuple[int, Any]:
        """A control request: status and parsed body. Raises EngineError; no status is an error."""
        body = None if fields is None else msgspec.json.encode(fields)
        status, parsed, _ = await self._http.request_json(method, path, body, limit_s=CONTROL_S, max_bytes=16 << 20)
        return status, parsed

    async def call(self, method: str, path: str, fields: Any = None) -> Any:
        """A control request that must succeed: the parsed body. Raises EngineError."""
        status, parsed = await self.ask(method, path, fields)
        if status != 200:
            raise self.refusal(path, status, parsed)
        return parsed

    async def work(self, path: str, fields: Any, job: Job) -> Any:
        """A request that may take as long as it takes: the caller's watchdogs decide. Raises EngineError."""
        async with self._http.post(path, msgspec.json.encode(fields), extra=job.trace) as reply:
            parsed = _parsed(await reply.body(64 << 20))
            if reply.status != 200:
                raise self.refusal(path, reply.status, parsed)
            return parsed

    async def text(self, path: str) -> str | None:
        """A GET's body as text; None if its status is not 200. Raises EngineError."""
        status, _, text = await self._http.request_json("GET", path, limit_s=CONTROL_S, max_bytes=16 << 20)
        return text if status == 200 else None

    def refusal(self, path: str, status: int, parsed: Any) -> EngineError:
        return refusal(self.who, path, status, parsed)

    async def stream(self, path: str, fields: Any, job: Job, frames: Frames, deliver: Deliver) -> None:
        """Run a streamed job to its end, as `Engine.run` does. Raises EngineError."""
        async with self._http.post(path, msgspec.json.encode(fields), stream=True, extra=job.trace) as reply:
            kind = reply.headers.get("content-type", "")
            events = kind.lower().startswith("text/event-stream")
            if reply.status != 200:
                raise self.refusal(path, reply.status, _first(await refused(reply), events))
            if not events:
                raise EngineError("protocol", f"{self.who} answers {path} with {kind or 'no type'!r}")
            await relay(reply, frames, deliver, self.who)
            reply.satisfied = frames.end is not None

    async def close(self) -> None:
        await self._http.close()


def _parsed(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None


def _first(raw: bytes, events: bool) -> Any:
    """An error body, which may come as an event."""
    payloads = SSEDecoder().feed(raw) if events else [raw]
    return _parsed(payloads[0]) if payloads else None
