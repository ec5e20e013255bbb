"""The independent judge of an event stream: a strict parser, the order of events, their ids and their data.

Nothing here is shared with the code that writes streams; all it goes by is the contract. Stricter than what a browser
accepts: one way to write a frame, UTF-8, no carriage returns, no unknown fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from orchestratord import contract

LIVE = frozenset({"metrics"})  # made for one reader at one moment: no id
_WORD = re.compile(r"\w+|[()|*+?]")
_ID = re.compile(rb"[1-9][0-9]{0,18}")
_FIELD = re.compile(rb"(id|event|data|retry): (.*)", re.DOTALL)


class Malformed(ValueError):
    """The bytes are not what a stream or a JSON document may be."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as it was on the wire; `raw` includes the blank line."""

    id: int | None
    name: str
    data: Any
    raw: bytes


def strict_json(text: bytes | str, *, repeats: bool = False) -> Any:
    """The value of a JSON text. Raises Malformed for what readers disagree about: NaN, lone surrogates, repeated names.

    repeats: an object may have a name twice; the last one counts.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if not repeats and len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name comes twice in one object")
        return dict(pairs)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=unique, parse_constant=constant)
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not strict JSON: {error}") from error
    return value


def parse_frame(block: bytes) -> Frame | None:
    """One frame with its blank line; None when it holds only comments or a retry time. Raises Malformed."""
    if not block.endswith(b"\n\n") or b"\r" in block:
        raise Malformed(f"a frame ends with an empty line and has no carriage return: {block[-80:]!r}")
    fields: dict[bytes, bytes] = {}
    for line in block[:-2].split(b"\n"):
        if line.startswith(b":"):
            continue
        match = _FIELD.fullmatch(line)
        if match is None or match[1] in fields:
            raise Malformed(f"not a field, or one that came before: {line[:80]!r}")
        fields[match[1]] = match[2]
    if not fields.pop(b"retry", b"0").isdigit():
        raise Malformed("retry is a decimal number of milliseconds")
    if not fields:
        return None
    if fields.keys() - {b"id"} != {b"event", b"data"}:
        raise Malformed(f"a frame has event and data: {block[:80]!r}")
    if b"id" in fields and _ID.fullmatch(fields[b"id"]) is None:
        raise Malformed(f"not an event id: {fields[b'id'][:80]!r}")
    event_id = int(fields[b"id"]) if b"id" in fields else None
    return Frame(event_id, fields[b"event"].decode("utf-8", "replace"), strict_json(fields[b"data"]), block)


class Order:
    """The grammar of `x-sse-order`: words with `|`, `*`, `+`, `?` and parentheses.

    Kept as what may follow what (a position automaton), so that a part of a stream can be judged as well as a whole.

    >>> order = Order("a (b|c)* d")
    >>> order.first_wrong(["a", "c", "d"]), order.first_wrong(["a", "d", "b"]), order.first_wrong(["c"], inside=True)
    (None, 2, None)
    """

    def __init__(self, grammar: str) -> None:
        self._tokens = _WORD.findall(grammar)
        if "".join(self._tokens) != "".join(grammar.split()):
            raise ValueError(f"not an order of events: {grammar!r}")
        self._words: list[str] = []
        self._follow: list[set[int]] = []
        _, self._first, last = self._alternatives()
        if self._tokens:
            raise ValueError(f"unbalanced: {grammar!r}")
        self.terminal = frozenset(self._words[p] for p in last if not self._follow[p])

    def _take(self, *expected: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in expected else None

    def _alternatives(self) -> tuple[bool, set[int], set[int]]:
        empty, first, last = self._sequence()
        while self._take("|"):
            more_empty, more_first, more_last = self._sequence()
            empty, first, last = empty or more_empty, first | more_first, last | more_last
        return empty, first, last

    def _sequence(self) -> tuple[bool, set[int], set[int]]:
        empty, first, last = self._item()
        while self._tokens and self._tokens[0] not in {"|", ")"}:
            next_empty, next_first, next_last = self._item()
            for position in last:
                self._follow[position] |= next_first
            first = first | next_first if empty else first
            last = last | next_last if next_empty else next_last
            empty = empty and next_empty
        return empty, first, last

    def _item(self) -> tuple[bool, set[int], set[int]]:
        if self._take("("):
            empty, first, last = self._alternatives()
            if self._take(")") is None:
                raise ValueError("a parenthesis is not closed")
        elif self._tokens and self._tokens[0] not in set("()|*+?"):
            self._words.append(self._tokens.pop(0))
            self._follow.append(set())
            empty, first, last = False, {len(self._words) - 1}, {len(self._words) - 1}
        else:
            raise ValueError("a name of an event is missing")
        while sign := self._take("*", "+", "?"):
            empty = empty or sign != "+"
            for position in last if sign != "?" else ():
                self._follow[position] |= first
        return empty, first, last

    def first_wrong(self, names: list[str], *, inside: bool = False) -> int | None:
        """Index of the first event out of order; None when all of them can be the beginning of a stream.

        inside: the events may begin anywhere behind the first one of a stream.
        """
        allowed = set().union(*self._follow) if inside else self._first
        for index, name in enumerate(names):
            here = {position for position in allowed if self._words[position] == name}
            if not here:
                return index
            allowed = set().union(*(self._follow[position] for position in here))
        return None


@cache
def _order(grammar: str) -> Order:
    return Order(grammar)


@cache
def _validators(operation_id: str) -> Mapping[str, Any]:
    operation = next(op for op in contract.operations() if op.operation_id == operation_id)
    return {name: contract.compile_schema(schema) for name, schema in (operation.sse_events or {}).items()}


@dataclass(slots=True)
class StreamJudge:
    """What is wrong with one stream. `after` is the last event id the reader had; 0 when it began at the start."""

    operation: contract.Operation
    after: int = 0
    frames: list[Frame] = field(default_factory=list)

    def problems(self, body: bytes, *, complete: bool) -> Iterator[tuple[str, str]]:
        """(where, what) of every rule broken. An incomplete stream may lack its end and half of its last frame."""
        *blocks, rest = body.split(b"\n\n")
        for block in blocks:
            try:
                frame = parse_frame(block + b"\n\n")
            except Malformed as error:
                yield f"/{len(self.frames)}", str(error)
                return
            if frame is not None:
                self.frames.append(frame)
        if rest and complete:
            yield f"/{len(self.frames)}", f"the stream ends inside a frame: {rest[:80]!r}"
        yield from self._data()
        yield from self._sequence(complete)
        yield from self._ids()
        yield from self._token_indexes()

    def _data(self) -> Iterator[tuple[str, str]]:
        validators = _validators(self.operation.operation_id)
        for index, frame in enumerate(self.frames):
            if frame.name not in validators:
                yield f"/{index}/event", f"{frame.name!r} is not declared in x-sse-events"
                continue
            for error in validators[frame.name].iter_errors(frame.data):
                yield "/".join((f"/{index}/data", *map(str, error.instance_path))), f"{frame.name}: {error.message}"

    def _sequence(self, complete: bool) -> Iterator[tuple[str, str]]:
        grammar = self.operation.sse_order or ""
        order, names = _order(grammar), [frame.name for frame in self.frames]
        wrong = order.first_wrong(names, inside=self.after > 0)
        if wrong is not None:
            before = names[wrong - 1] if wrong else "nothing"
            yield f"/{wrong}/event", f"{names[wrong]!r} after {before!r} breaks the order {grammar}"
        elif complete and (not names or names[-1] not in order.terminal):
            yield f"/{len(names)}", f"the stream ends without {' or '.join(sorted(order.terminal))}"

    def _ids(self) -> Iterator[tuple[str, str]]:
        expected = self.after + 1
        for index, frame in enumerate(self.frames):
            if frame.name in LIVE or frame.id is None:
                if (frame.name in LIVE) != (frame.id is None):
                    yield f"/{index}/id", f"{frame.name} has {'no id' if frame.id is None else 'an id'}"
                continue
            if frame.id != expected and not (frame.id > expected and may_skip(frame.name, frame.data)):
                yield f"/{index}/id", f"{frame.name} has id {frame.id}, expected {expected}"
            expected = frame.id + 1

    def _token_indexes(self) -> Iterator[tuple[str, str]]:
        expected = None if self.after else 0
        for index, frame in enumerate(self.frames):
            given = frame.data.get("i") if frame.name == "token" and isinstance(frame.data, dict) else None
            if not isinstance(given, int):
                continue
            if expected is not None and given != expected:
                yield f"/{index}/data/i", f"token index {given}, expected {expected}"
            expected = given + 1


def may_skip(name: str, data: Any) -> bool:
    """Only the last word on a task whose daemon died may leave ids out."""
    return name == "error" and isinstance(data, dict) and data.get("code") == "WORKER_RESET"
