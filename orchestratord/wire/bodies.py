"""Request bodies: JSON documents whose shape cannot hold up everybody else."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
import orjson

from orchestratord.ports import Encoded
from orchestratord.wire.errors import HttpError, short

DEPTH = 64
CONTAINERS = 65_536  # objects and arrays: more would hold up everybody else while they are read
VALUES = 8_192  # commas and colons: a value takes ten times its bytes and more while it is an object
BULK_VALUES = 196_608  # in a body with a part that stays text
PIECE = 16 * 1024  # bytes that are looked at together: fewer objects at once than would be kept for good
BIG = 64 * 1024
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19  # digits in a row: perhaps an integer beyond 64 bits
SHOWN, SHOWN_ITEMS = 10_000, 2_000  # values of a large body that its refusal is about, and of one array or object


class Parts(msgspec.Struct, forbid_unknown_fields=True):
    """A body of createArtifact, each field as its text."""

    kind: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    content: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    tags: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parent: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_parts = msgspec.json.Decoder(Parts)
_UNKNOWN = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_EMPTY: dict[bytes, Any] = {b"{": {}, b"[": []}


def is_bulky(raw: bytearray) -> bool:
    """Whether there are more values in it than may be objects at once."""
    return _count(raw, b",:") > VALUES and _outside(raw, b",:", VALUES)


def parse_bulky(raw: bytearray) -> tuple[Any, Encoded | None]:
    """A bulky body of createArtifact: its document, in which an empty one stands for the content, and the content.

    Of a body that is none, a small document that has its first fault. Raises HttpError INVALID_PARAMS, rule
    body_syntax.
    """
    _check_counts(raw, BULK_VALUES)
    try:
        found = _parts.decode(raw)
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN.match(str(error))
        return ({"kind": "other", "content": "", unknown[1]: None} if unknown else []), None
    except msgspec.DecodeError as error:
        raise _malformed(error) from None
    except RecursionError:
        raise _too_deep() from None
    given = {name: value for name in Parts.__struct_fields__ if (value := getattr(found, name)) is not msgspec.UNSET}
    content = bytes(given.get("content", b""))
    stand_in = _EMPTY.get(content[:1])
    if stand_in is not None:
        del given["content"]
    body = parse(bytearray(b"{%b}" % b",".join(b'"%b":%b' % (n.encode(), bytes(v)) for n, v in given.items())))
    if stand_in is not None:
        body["content"] = stand_in
    return body, Encoded(content) if content[:1] == b"{" else None


def parse(raw: bytearray) -> Any:
    """The document. Raises HttpError INVALID_PARAMS, rule body_syntax."""
    brackets = _check_counts(raw, VALUES)
    try:
        body = _loads(raw)
    except orjson.JSONDecodeError as error:
        raise _malformed(error) from None
    if brackets > DEPTH and _deeper(body, DEPTH):
        raise _too_deep()
    if brackets > 1 and is_long(raw):  # a flat body has nothing but fields with bounds
        del body
        body = msgspec.json.decode(raw)  # orjson makes floats of such, and nobody could tell any more
    return body


def _check_counts(raw: bytearray, values: int) -> int:
    brackets = _count(raw, b"{[")
    if brackets > CONTAINERS and _outside(raw, b"{[", CONTAINERS):
        raise _bad(f"The body has more than {CONTAINERS} objects and arrays.")
    if _count(raw, b",:") > values and _outside(raw, b",:", values):
        raise _bad(f"The body has more than {values} names and values.")
    return brackets


def is_long(raw: bytes | bytearray) -> bool:
    """Whether there may be an integer beyond 64 bits in it, which orjson would make a float."""
    return _LONG in raw.translate(_DIGITS)


def beginning(body: Any) -> Any:
    """What is shown of a large body when it is refused."""
    return _some(body, [SHOWN])


def _malformed(error: Exception) -> HttpError:
    return _bad(f"The body is not valid JSON: {short(str(error))}.")


def _too_deep() -> HttpError:
    return _bad(f"The body nests deeper than {DEPTH} levels.")


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
    text, found, inside = bytes(raw).replace(b"\\\\", b"").replace(b'\\"', b""), 0, 0
    for begin in range(0, len(text), PIECE):
        pieces = text[begin : begin + PIECE].split(b'"')
        found += _count(b"".join(pieces[inside::2]), marks)
        inside ^= ~len(pieces) & 1  # an odd number of quotes
        if found > most:
            return True
    return False


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
