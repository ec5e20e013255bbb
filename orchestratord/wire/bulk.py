"""The canonical form of a JSON text with many values, made of it piece by piece.

As Python objects a mebibyte of JSON takes ten, and the allocator keeps most of that for good: whatever small thing was
put between them holds a mebibyte. Here no more than a piece is objects at any time; what is complete is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from heapq import merge
from operator import itemgetter
from typing import Any

import msgspec
import orjson

from orchestratord.ports import Encoded
from orchestratord.wire.bodies import is_long
from orchestratord.wire.canonical import artifact_id, canonical

DEPTH = 63  # of an artifact's content; the body around it is one more
RUN = 1024  # members of an object that are looked at together
NAMES = 1024  # of the outermost object: the contract's maxProperties

_SPACE = b" \t\r\n"
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'[\[{](?:[^\[\]{}"]{1,64}+|%b){0,32}+[\]}]' % _STRING  # an array or object with nothing nested
_TOKEN = re.compile(
    rb'([\[{](?:[^\[\]{}"]{1,64}+|%b|%b){0,32}+[\]}])' % (_STRING, _FLAT)  # one that nests once at most, and not much
    + rb"|(%b)" % _STRING
    + rb"|([\[\]{}])"
    + rb'|([^\[\]{}"]{1,4000},|[^\[\]{}",]++)',  # numbers and words, with the punctuation around them
    re.DOTALL,
)
_NAME = re.compile(_STRING, re.DOTALL)
_SMALL, _TEXT, _BRACKET = 1, 2, 3


class _List:
    """An array that is open."""

    def __init__(self) -> None:
        self._text = bytearray()

    def add(self, value: bytes) -> None:
        self._text += value
        self._text += b","

    def string(self, piece: bytes) -> None:
        self.add(_in_order(piece))

    def plain(self, piece: bytes) -> None:
        values = piece.strip(_SPACE + b",")
        if values:
            self.add(_in_order(b"[%b]" % values)[1:-1])

    def close(self) -> bytes:
        return b"[" + self._text[:-1] + b"]"


class _Object:
    """An object that is open. Of a name that comes twice the last value counts."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._members: dict[str, bytes] = {}
        self._name: str | None = None
        self._runs: list[bytes] = []  # lines of members, each run sorted: those of a large object are not kept apart

    def add(self, value: bytes) -> None:
        assert self._name is not None
        self._members[self._name] = b":" + value  # a copy: what orjson has made keeps 4 KiB in a thread
        self._name = None
        if self._most is not None:
            if len(self._members) > self._most:
                raise ValueError(f"The content has more than {self._most} names at its top.")
        elif len(self._members) == RUN:
            self._runs.append(self._run())

    def string(self, piece: bytes) -> None:
        if self._name is None:
            self._name = orjson.loads(piece)
        else:
            self.add(_in_order(piece))

    def plain(self, piece: bytes) -> None:
        value = piece.strip(_SPACE + b":,")
        if value:
            self.add(_in_order(value))

    def close(self) -> bytes:
        last = self._run()
        if not self._runs:
            return b"{" + last.replace(b"\n", b",") + b"}"
        text, before = bytearray(b"{"), None
        # Of equal names that of the last run comes first.
        for name, member in merge(*map(_members, [last, *reversed(self._runs)]), key=itemgetter(0)):
            if name != before:
                text += member
                text += b","
                before = name
        text[-1:] = b"}"
        return bytes(text)

    def _run(self) -> bytes:
        members, self._members = self._members, {}
        return b"\n".join([canonical(name) + members[name] for name in sorted(members, key=_utf16)])


def _members(run: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What is sorted by, and the member. In canonical JSON no line ends."""
    begin = 0
    while begin < len(run):
        end = run.find(b"\n", begin) % (len(run) + 1)  # -1: the last one ends with the run
        name = _NAME.match(run, begin)
        assert name is not None
        yield _utf16(orjson.loads(name[0])), run[begin:end]
        begin = end + 1


def canonical_text(text: bytes) -> bytes:
    """The RFC 8785 form of an artifact's content, an object whose grammar has been checked.

    Raises ValueError for what `canonical` does, for texts that are no UTF-8, and beyond DEPTH and NAMES.
    """
    inner: list[_List | _Object] = []
    here: _List | _Object = _List()  # what the content itself is put in
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastindex, match[0]
        levels = len(inner)
        if kind == _SMALL:
            levels += 1 if levels + 2 <= DEPTH else _levels(orjson.loads(piece))
        if levels > DEPTH:
            raise ValueError(f"The body nests deeper than {DEPTH + 1} levels.")
        if kind == _SMALL:
            here.add(_in_order(piece))
        elif kind == _TEXT:
            here.string(piece)
        elif kind != _BRACKET:
            here.plain(piece)
        elif piece in b"[{":
            inner.append(here)
            here = _List() if piece == b"[" else _Object(NAMES if len(inner) == 1 else None)
        else:
            whole = here.close()
            here = inner.pop()
            here.add(whole)
    return here.close()[1:-1]


def address(
    kind: str, content: Any, tags: tuple[str, ...], parent: str | None, metadata: dict[str, Any]
) -> tuple[str, Any]:
    """The id of an artifact, and its content as it is kept: in canonical form, of which `Encoded` is not yet.

    Raises ValueError.
    """
    if isinstance(content, Encoded):
        content = Encoded(canonical_text(content))
    elif isinstance(content, dict):
        content = Encoded(canonical(content))
    return artifact_id(kind, content, tags, parent, metadata), content


def _levels(small: Any) -> int:
    return 2 if any(type(one) in (dict, list) for one in (small.values() if type(small) is dict else small)) else 1


def _in_order(piece: bytes) -> bytes:
    return canonical(msgspec.json.decode(piece) if is_long(piece) else orjson.loads(piece))


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be")
