"""Request bodies: JSON documents whose shape cannot hold up everybody else."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
import orjson

from orchestratord.wire.errors import HttpError, short

DEPTH = 64
CONTAINERS = 65_536  # objects and arrays: more would hold up everybody else while they are read
VALUES = 196_608  # commas and colons: a value takes ten times its bytes and more while it is read
PIECES = 8192  # strings, and what is between them, that are looked at together; even
BIG = 64 * 1024
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19  # digits in a row: perhaps an integer beyond 64 bits
SHOWN, SHOWN_ITEMS = 10_000, 2_000  # values of a large body that its refusal is about, and of one array or object


def parse(raw: bytearray) -> Any:
    """The document. Raises HttpError INVALID_PARAMS, rule body_syntax."""
    brackets = _count(raw, b"{[")
    if brackets > CONTAINERS and _outside(raw, b"{[", CONTAINERS):
        raise _bad(f"The body has more than {CONTAINERS} objects and arrays.")
    if _count(raw, b",:") > VALUES and _outside(raw, b",:", VALUES):
        raise _bad(f"The body has more than {VALUES} names and values.")
    try:
        body = _loads(raw)
    except orjson.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {short(str(error))}.") from None
    if brackets > DEPTH and _deeper(body, DEPTH):
        raise _bad(f"The body nests deeper than {DEPTH} levels.")
    if brackets > 1 and _LONG in raw.translate(_DIGITS):  # a flat body has nothing but fields with bounds
        del body
        body = msgspec.json.decode(raw)  # orjson makes floats of such, and nobody could tell any more
    return body


def beginning(body: Any) -> Any:
    """What is shown of a large body when it is refused."""
    return _some(body, [SHOWN])


def _bad(message: str) -> HttpError:
    return HttpError("INVALID_PARAMS", message, rule="body_syntax")


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for node in layer
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not layer:
            return False
    return True


def _count(raw: bytes | bytearray, marks: bytes) -> int:
    return raw.count(marks[0]) + raw.count(marks[1])


def _outside(raw: bytearray, marks: bytes, most: int) -> bool:
    """Whether more than `most` of these two bytes are outside of strings."""
    rest, found = bytes(raw).replace(b"\\\\", b"").replace(b'\\"', b""), 0
    while rest and found <= most:
        pieces = rest.split(b'"', PIECES)
        rest = pieces.pop() if len(pieces) > PIECES else b""
        found += _count(b"".join(pieces[::2]), marks)
    return found > most


def _loads(raw: bytearray) -> Any:
    """A JSON document. The collector would look at all of a large one several times while it grows."""
    if len(raw) <= BIG:
        return orjson.loads(raw)
    gc.disable()
    try:
        return orjson.loads(raw)
    finally:
        gc.enable()


def _some(value: Any, left: list[int]) -> Any:
    """The same document with long arrays and objects cut off, and nothing behind the first `left[0]` values."""

    def some(values: Iterable[Any]) -> Iterator[Any]:
        for one in islice(values, SHOWN_ITEMS):
            if left[0] <= 0:
                return
            left[0] -= 1
            yield one

    if isinstance(value, dict):
        return {key: _some(inner, left) for key, inner in some(value.items())}
    if isinstance(value, list):
        return [_some(inner, left) for inner in some(value)]
    return value
