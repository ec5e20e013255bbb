"""Bodies: what is refused for its shape, and that it costs no more than it has bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from typing import Any

import pytest

from orchestratord.wire import bodies, canonical
from orchestratord.wire.bodies import CONTAINERS, DEPTH
from orchestratord.wire.errors import HttpError


def refusal(raw: bytes) -> str:
    with pytest.raises(HttpError) as caught:
        bodies.parse(raw)
    assert (caught.value.code, caught.value.details["rule"]) == ("INVALID_PARAMS", "body_syntax")
    return caught.value.message


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_at_the_limit_and_beyond(opening: str) -> None:
    closing = "]" if opening == "[" else "}"

    def nested(levels: int) -> bytes:
        inner = "1" if opening != "[" else ""
        return (opening * levels + inner + closing * levels).encode()

    for levels in (DEPTH - 1, DEPTH):
        assert bodies.parse(nested(levels)) == json.loads(nested(levels))
    assert "64 levels" in refusal(nested(DEPTH + 1))


def test_depth_is_found_beside_shallow_parts() -> None:
    deep = "[" * DEPTH + "]" * DEPTH
    assert "levels" in refusal(f'{{"a": [1, {{}}], "b": {deep}, "c": []}}'.encode())


@pytest.mark.parametrize("one", ["[]", "{}"])
def test_the_number_of_containers_at_the_limit_and_beyond(one: str) -> None:
    def many(count: int) -> bytes:
        return ("[" + ",".join([one] * (count - 1)) + "]").encode()

    for count in (CONTAINERS - 1, CONTAINERS):
        assert len(bodies.parse(many(count))) == count - 1
    assert "20000 lists and objects" in refusal(many(CONTAINERS + 1))


@pytest.mark.parametrize(
    "text",
    ["[{" * CONTAINERS, '\\"[' * CONTAINERS, "\\\\" + "[" * CONTAINERS * 2, "\u4f60[" * CONTAINERS],
    ids=["plain", "escaped quotes", "backslash", "not ASCII"],
)
def test_brackets_in_a_text_are_text(text: str) -> None:
    """A prompt may be a program."""
    body = {"prompt": text, "more": ["["]}
    assert bodies.parse(json.dumps(body).encode()) == body
    assert bodies.parse(json.dumps(body, ensure_ascii=False).encode()) == body


@pytest.mark.parametrize(
    "raw",
    [b"[" * 500_000, b'["' + b'\\"[' * 300_000, b'{"a' * 300_000, b'["\\' * 200_000, b"[" * 30_000 + b'"\\'],
    ids=["open lists", "one string without end", "strings", "escapes", "cut escape"],
)
def test_broken_bodies_full_of_brackets_are_refused(raw: bytes) -> None:
    """Also those on which a careless pattern would take quadratic time."""
    assert refusal(raw)


@pytest.mark.parametrize("raw", [b"[1," + b"1," * 40_000, json.dumps(["x"] * 40_000).encode()], ids=["bad", "good"])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(raw: bytes, enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(HttpError):
            bodies.parse(raw)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize(
    "body",
    [{"a": 1}, {"a": 0.5}, {"a": [0.5] * 9000}, {"\u00fc": 1}, {"\u00fc": "x" * 20_000}],
    ids=lambda b: f"{b!s:.20}",
)
def test_a_fingerprint_is_the_same_wherever_it_is_made(body: Any) -> None:
    assert asyncio.run(canonical.fingerprint_of(body)) == canonical.fingerprint(body)


def test_what_has_no_canonical_form_has_none_there_either() -> None:
    for body in ({"a": 2**60}, {"a": [2**60] + [0.5] * 9000}, {"a": "\ud800"}):
        with pytest.raises(ValueError, match="RFC 8785"):
            asyncio.run(canonical.fingerprint_of(body))
