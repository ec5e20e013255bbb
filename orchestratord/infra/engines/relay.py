"""From an engine's event stream to chunks: what every adapter that streams over HTTP shares.

An adapter brings a `Frames`: what one stream of its engine has said so far. Everything that is the same for all of them
is here: errors come after the good texts before them, an end is handed over with the texts of its read, and bytes that
stop without an end are `lost`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from orchestratord.infra.engines.sse import SSEDecoder
from orchestratord.infra.engines.transport import Reply
from orchestratord.ports import Chunk, Deliver, EngineError, JobEnd

T = TypeVar("T")


class Frames(ABC):
    """What one stream has said: texts not handed over yet, the engine's count, and the end once it has come.

    keep: `Deliver.text` of whoever wants them; `relay` sets it.
    """

    __slots__ = ("end", "keep", "texts", "tokens")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens = 0
        self.end: JobEnd | None = None
        self.keep: Callable[[str, int], bool]

    @abstractmethod
    def take(self, payload: bytes) -> None:
        """The data of one event. Raises EngineError: what the engine reports, or protocol."""

    def take_all(self, payloads: list[bytes]) -> None:
        """The data of the events that came in one read: the same as `take` for each up to the end."""
        for payload in payloads:
            self.take(payload)
            if self.end is not None:
                return

    def keep_text(self, payload: bytes) -> bool:
        """The data of one event, where that is a text and nothing more: hand it to `keep`, in as few steps as can be.

        False: it is anything else, or was not kept. Then nothing has changed, and `take` gets it.
        """
        return False

    def closed(self) -> None:
        """The body ended in good order. Sets `end` where that proves the end; raises EngineError where it cannot."""
        return


class Decoders(Generic[T]):
    """Of one event of an engine, and of all events of a read: one call for all of them costs a third less."""

    def __init__(self, kind: type[T]) -> None:
        self.one = msgspec.json.Decoder(kind).decode
        self._list = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]

    def all(self, payloads: list[bytes]) -> list[T] | None:
        """None: one of them at least is not what it should be.

        An engine that tears one object into two events, and fills up their number, gets away with it.
        """
        try:
            told = self._list(b"[%b]" % b",".join(payloads))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return told if len(told) == len(payloads) else None


class JsonFrames(Frames, Generic[T]):
    """A stream whose events are JSON objects of one kind."""

    __slots__ = ()

    who: ClassVar[str]  # the engine's name in messages
    decoders: ClassVar[Decoders[Any]]  # of T

    @abstractmethod
    def tell(self, event: T) -> None:
        """One event. Raises EngineError: what the engine reports, or protocol."""

    def tell_texts(self, events: Sequence[T]) -> int:
        """How many of these, from the first on, are texts and nothing more: those are told, in few steps."""
        return 0

    def tell_all(self, events: Sequence[T]) -> None:
        """The same as `tell` for each up to the end."""
        for event in events[self.tell_texts(events) :]:
            self.tell(event)
            if self.end is not None:
                return

    def take(self, payload: bytes) -> None:
        try:
            event = self.decoders.one(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError("protocol", f"{self.who} sent a frame that cannot be read: {error}") from None
        self.tell(event)

    def take_all(self, payloads: list[bytes]) -> None:
        if len(payloads) < 2 or (events := self.decoders.all(payloads)) is None:
            super().take_all(payloads)  # what is good before what is not
        else:
            self.tell_all(events)


async def relay(reply: Reply, frames: Frames, deliver: Deliver, who: str) -> None:
    """Deliver what each read brought, up to and including the end. Raises EngineError."""
    decoder = SSEDecoder()
    feed = decoder.feed
    frames.keep = deliver.text
    wanted = True

    def read(data: bytes) -> bool:
        nonlocal wanted
        fault: EngineError | None = None
        try:
            frames.take_all(feed(data))
        except EngineError as error:
            fault = error  # after what came before it in the same read
        texts, end = frames.texts, frames.end
        if texts or end is not None:
            frames.texts = []
            wanted = deliver(Chunk(texts, [], frames.tokens, end))
        if fault is not None and wanted:
            raise fault
        reply.event = frames.keep_text if decoder.between else None
        return wanted and frames.end is None

    await reply.each(read)
    if not wanted or frames.end is not None:
        return
    if decoder.within:
        raise EngineError("lost", f"{who} closed the stream within an event")
    frames.closed()
    if frames.texts or frames.end is not None:
        wanted = deliver(Chunk(frames.texts, [], frames.tokens, frames.end))
    if wanted and frames.end is None:
        raise EngineError("lost", f"{who} closed the stream before it said that it was done")
