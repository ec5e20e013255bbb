"""Readers of streams: what each has seen so far, and how a scenario writes it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.testing.checker import Reader as SeenBy
from orchestratord.testing.checker import Seen
from orchestratord.testing.session import Event, EventStream

TERMINAL = ("end", "error")


class Reader:
    """One reader of one stream. Reads when it is asked to, and waits for what must come."""

    def __init__(self, name: str, task: str, stream: EventStream, after: int = 0, cut: bool = False) -> None:
        self.name = name
        self.task = task
        self.after = after
        self.stream = stream
        self.seen: list[Event] = []
        self.ended = stream.status != 200
        self.left = False
        self.cut = cut

    def until(self, enough: Callable[[Reader], bool]) -> list[Event]:
        """Read on until it is enough or nothing more comes."""
        while not enough(self) and not self.ended:
            event = next(self.stream, None)
            if event is None:
                self.ended = True
            else:
                self.seen.append(event)
        return self.seen

    def rest(self) -> list[Event]:
        """Read to the end."""
        return self.until(lambda _: False)

    def leave(self) -> None:
        self.left = not self.ended
        self.stream.close()

    def named(self, name: str) -> list[Event]:
        return [event for event in self.seen if event.name == name]

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.seen if event.id is not None]

    @property
    def text(self) -> str:
        return "".join(event.data["t"] for event in self.named("token"))

    @property
    def last(self) -> Event | None:
        """The terminal event, once it was seen."""
        return self.seen[-1] if self.seen and self.seen[-1].name in TERMINAL else None

    @property
    def record(self) -> SeenBy:
        """For the checker."""
        seen = [Seen(event.id, event.name, event.data, event.raw) for event in self.seen]
        closed = "cut" if self.cut else "end" if self.ended and not self.left else "client"
        return SeenBy(self.name, self.after, seen, closed)


def line(event: Event) -> str:
    """One event as transcripts in features show it."""
    number = "-" if event.id is None else str(event.id)
    return f"{number} {event.name} {_SAYS[event.name](event.data)}".rstrip()


_SAYS: dict[str, Callable[[Any], str]] = {
    "started": lambda d: f"position {d['queue_position']}, in {d['predicted_start_ms']} ms",
    "token": lambda d: f'{d["i"]} "{d["t"]}"',
    "metrics": lambda d: f"{d['queue_depth']} waiting",
    "result": lambda d: f"{d['index']}",
    "end": lambda d: f"{d['finish_reason']}, {d['tokens_out']} tokens in {d['decode_ms']} ms",
    "error": lambda d: f"{d['code']}, {'worth retrying' if d['retriable'] else 'final'}",
}
