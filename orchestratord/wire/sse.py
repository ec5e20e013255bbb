r"""Event <-> bytes. One frame is `id`, `event` and one `data` line of JSON, ended by a blank line.

JSON escapes every line break inside a string, so no token text can forge a frame.

>>> encode(2, "token", {"t": 'a"b\n', "i": 0})
b'id: 2\nevent: token\ndata: {"t":"a\\"b\\n","i":0}\n\n'
>>> decode(TOKEN % (2, quote("hi"), 0))
[(2, 'token', {'t': 'hi', 'i': 0})]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from operator import add
from typing import Any

import msgspec
import orjson

RETRY = b"retry: 3000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_FRAME = re.compile(rb"^(?:id: (\d+)\n)?event: ([^\n]*)\ndata: ([^\n]*)$", re.MULTILINE)

TOKEN = b'id: %d\nevent: token\ndata: {"t":%b,"i":%d}\n\n'  # `encode` by the thousand: event id, quoted text, index
quote: Callable[[str], bytes] = msgspec.json.Encoder().encode

PREPARED = 4096  # numbers


class Numbered:
    """What `form` gives for 0, 1, 2 and so on: what differs by a number alone is made once for all streams."""

    __slots__ = ("_form", "_made")

    def __init__(self, form: bytes) -> None:
        self._form = form
        self._made: list[bytes] = []

    def of(self, start: int, count: int) -> list[bytes]:
        """For `count` numbers from `start` on. May be called in any thread."""
        made, stop, form = self._made, start + count, self._form
        if stop > PREPARED:
            return [form % number for number in range(start, stop)]
        if len(made) < stop:
            more = range(len(made), min(PREPARED, 2 * stop))
            made = self._made = [*made, *[form % number for number in more]]
        return made[start:stop]


def around(before: Iterable[bytes], texts: Iterable[bytes], behind: Iterable[bytes]) -> list[bytes]:
    """Each text between its two."""
    return list(map(add, map(add, before, texts), behind))


_BEFORE, _BEHIND = (Numbered(part) for part in TOKEN.split(b"%b"))


def tokens(event_id: int, texts: Sequence[str], index: int) -> list[bytes]:
    """Frames of texts that come together, the first with these two numbers: the same as `TOKEN` gives for each."""
    count = len(texts)
    return around(_BEFORE.of(event_id, count), map(quote, texts), _BEHIND.of(index, count))


def encode(event_id: int, name: str, payload: dict[str, Any]) -> bytes:
    """A log event: it has an id, and the same bytes for every reader."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event_id, name.encode(), orjson.dumps(payload))


def encode_live(name: str, payload: dict[str, Any]) -> bytes:
    """A live frame (`metrics`): no id, so it never moves a reader's Last-Event-ID."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(payload))


def split(frames: bytes) -> list[bytes]:
    """Single frames, each with its blank line."""
    return [frame + b"\n\n" for frame in frames.split(b"\n\n") if frame]


def decode(frames: bytes) -> list[tuple[int | None, str, Any]]:
    """(id, event, payload) of each frame that `encode` and its siblings made; comments and `retry` are left out."""
    found = _FRAME.findall(frames)
    payloads = orjson.loads(b"[%b]" % b",".join([data for _, _, data in found]))  # at once: a log has thousands
    names = {name: name.decode() for _, name, _ in found}
    return [
        (int(event_id) if event_id else None, names[name], payload)
        for (event_id, name, _), payload in zip(found, payloads, strict=True)
    ]
