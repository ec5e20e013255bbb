"""From an engine's event stream to chunks: what every adapter that streams over HTTP shares.

An adapter brings a `Frames`: what one stream of its engine has said so far. Everything that is the same for all of them
is here: errors come after the good texts before them, an end is handed over with the texts of its read, and bytes that
stop without an end are `lost`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from orchestratord.infra.engines.sse import SSEDecoder
from orchestratord.infra.engines.transport import Reply
from orchestratord.ports import Chunk, Deliver, EngineError, JobEnd


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
