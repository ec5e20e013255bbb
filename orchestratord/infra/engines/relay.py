"""From an engine's event stream to chunks: what every adapter that streams over HTTP shares."""

from __future__ import annotations

from collections.abc import Callable

from orchestratord.infra.engines.sse import SSEDecoder
from orchestratord.infra.engines.transport import Reply
from orchestratord.ports import Chunk, Deliver, EngineError

Take = Callable[[bytes, Chunk], None]


async def relay(reply: Reply, take: Take, deliver: Deliver, lost: str) -> None:
    """Decode a stream and deliver what each read brought, up to the engine's own end.

    take: adds the data of one event to the chunk of its read, and sets `end` where the event is the end; raises
    EngineError for an event that reports a failure or cannot be read, and then what came before it in the same read is
    delivered first. `tokens_out` of a chunk begins with the count of the chunk before. lost: what to say when the bytes
    end before the end.
    """
    feed = SSEDecoder().feed
    tokens = 0
    over = False

    def read(data: bytes) -> bool:
        nonlocal tokens, over
        chunk = Chunk([], [], tokens)
        fault: EngineError | None = None
        try:
            for payload in feed(data):
                take(payload, chunk)
                if chunk.end is not None:
                    break
        except EngineError as error:
            fault = error
        tokens = chunk.tokens_out
        if chunk.texts or chunk.results or chunk.end is not None:
            over = not deliver(chunk) or chunk.end is not None
        if fault is not None and not over:
            raise fault
        return not over

    await reply.each(read)
    if not over:
        raise EngineError("lost", lost)
