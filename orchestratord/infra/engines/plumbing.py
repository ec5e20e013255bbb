"""What the adapters of HTTP engines share: refusals, control requests, and the loop from a reply's bytes to chunks.

An adapter brings a `Frames`: what one stream of its engine has said so far. Everything that is the same for all of them
is here: errors come after the good texts before them, an end is handed over with the texts of its read, and bytes that
stop without an end are `lost`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Annotated, Any, TypeVar

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.sse import SSEDecoder
from orchestratord.infra.engines.transport import ErrorKind, Reply, Transport
from orchestratord.ports import Chunk, Clock, EngineError, JobEnd

T = TypeVar("T")

CONTROL_S = 5.0  # for everything but a stream
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


def kind_of(status: int) -> ErrorKind:
    """What an HTTP status means, of a reply or inside an error frame."""
    if status in (429, 503):  # no room, or not loaded yet: no fault of the request or the engine
        return "full"
    if status in (401, 403, 404, 405):  # our own key or paths: whoever asked for the work can do nothing about it
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


def read(kind: type[T], parsed: Any, what: str) -> T:
    """`parsed` as a struct. Raises EngineError(protocol)."""
    try:
        return msgspec.convert(parsed, kind)
    except msgspec.ValidationError as error:
        raise EngineError("protocol", f"{what} cannot be read: {error}") from None


def decode(decoder: msgspec.json.Decoder[T], payload: bytes, who: str) -> T:
    """A frame. Raises EngineError(protocol)."""
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError("protocol", f"{who} sent a frame that cannot be read: {error}") from None


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


class Frames:
    """What one stream has said: texts not handed over yet, the engine's count, and the end once it has come."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens = 0
        self.end: JobEnd | None = None

    def take(self, payload: bytes) -> None:
        """The data of one event. Raises EngineError: what the engine reports, or protocol."""
        raise NotImplementedError

    def closed(self) -> None:
        """The body ended in good order. Sets `end` where that proves the end; raises EngineError where it cannot."""

    def chunk(self) -> Chunk | None:
        """What is new since the last call."""
        texts, self.texts = self.texts, []
        return Chunk(texts, (), self.tokens, self.end) if texts or self.end else None


async def _chunks(reply: Reply, frames: Frames, who: str) -> AsyncGenerator[Chunk, None]:
    """What each read brought, up to and including the end. Raises EngineError."""
    decoder = SSEDecoder()
    async for data in reply.chunks():
        fault: EngineError | None = None
        try:
            for payload in decoder.feed(data):
                frames.take(payload)
                if frames.end:
                    break
        except EngineError as error:
            fault = error  # after what came before it in the same read
        if chunk := frames.chunk():
            yield chunk
        if fault:
            raise fault
        if frames.end:
            return
    if decoder.within:
        raise EngineError("lost", f"{who} closed the stream within an event")
    frames.closed()
    if chunk := frames.chunk():
        yield chunk
    if not frames.end:
        raise EngineError("lost", f"{who} closed the stream before it said that it was done")


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

    async def work(self, path: str, fields: Any) -> Any:
        """A request that may take as long as it takes: the caller's watchdogs decide. Raises EngineError."""
        async with self._http.post(path, msgspec.json.encode(fields)) as reply:
            parsed = _parsed(await reply.body(64 << 20))
            if reply.status != 200:
                raise self.refusal(path, reply.status, parsed)
            return parsed

    async def text(self, path: str) -> str | None:
        """A GET's body as text; None if its status is not 200. Raises EngineError."""
        status, _, text = await self._http.request_json("GET", path, limit_s=CONTROL_S, max_bytes=16 << 20)
        return text if status == 200 else None

    def refusal(self, path: str, status: int, parsed: Any) -> EngineError:
        return EngineError(kind_of(status), message_of(parsed, f"{self.who} answers {path} with status {status}"))

    def stream(
        self, path: str, fields: Any, frames: Frames
    ) -> AbstractAsyncContextManager[AsyncGenerator[Chunk, None]]:
        """A job's chunks. Leaving closes the connection at once. Raises EngineError."""
        return self._stream(path, fields, frames)

    @asynccontextmanager
    async def _stream(self, path: str, fields: Any, frames: Frames) -> AsyncIterator[AsyncGenerator[Chunk, None]]:
        async with self._http.post(path, msgspec.json.encode(fields), keep=False) as reply:
            kind = reply.headers.get("Content-Type", "")
            events = kind.lower().startswith("text/event-stream")
            if reply.status != 200:
                raise self.refusal(path, reply.status, _first(await reply.body(1 << 16), events))
            if not events:
                raise EngineError("protocol", f"{self.who} answers {path} with {kind or 'no type'!r}")
            async with aclosing(_chunks(reply, frames, self.who)) as chunks:
                yield chunks

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
