"""The canonical form made piece by piece: the same bytes as of the whole. Requirements: OC-CTRL-2065."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord import contract
from orchestratord.ports import Encoded
from orchestratord.wire import bodies, bulk
from orchestratord.wire.canonical import artifact_id, canonical
from orchestratord.wire.errors import HttpError

TEXTS = st.text(st.sampled_from('ab"\\\n[]{},: \x01\u2028\uffee\u20ac\U0001f600'), max_size=5)
NUMBERS = st.integers(1 - 2**53, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)
SPACED = {None: (",", ":"), 1: (" ,\t", " : ")}


@given(
    content=st.dictionaries(TEXTS, VALUES, max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    run=st.sampled_from([2, 1024]),
)
def test_by_pieces_and_as_a_whole_are_the_same(
    content: dict[str, Any], ascii_only: bool, indent: int | None, run: int
) -> None:
    text = json.dumps(content, ensure_ascii=ascii_only, indent=indent, separators=SPACED[indent])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "RUN", run)
        assert bulk.canonical_text(text.encode()) == canonical(content)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 9)), max_size=20))
def test_of_a_name_that_comes_twice_the_last_value_counts(members: list[tuple[str, int]]) -> None:
    text = '{"a":{' + ",".join(f"{json.dumps(name)}:{value}" for name, value in members) + "}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "RUN", 3)
        assert bulk.canonical_text(text.encode()) == canonical({"a": dict(members)})


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":"\xff"}',
        b'{"a":["\\ud800"]}',
        b'{"a":[9007199254740992]}',
        b'{"a":[123456789012345678901234567890]}',
        b'{"a":' + b"[" * 63 + b"[]" + b"]" * 63 + b"}",
        b'{"a":' + b"[" * 61 + b"[[]]" + b"]" * 61 + b"}",
        b'{"a":' + b"[" * 60 + b"[1,[[]]]" + b"]" * 60 + b"}",
        b"{%b}" % b",".join(b'"%d":1' % i for i in range(1025)),
    ],
)
def test_what_no_artifact_may_have_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        bulk.canonical_text(content)


def test_the_limits_are_those_of_the_contract() -> None:
    deepest = b'{"a":' + b"[" * 62 + b"]" * 62 + b"}"
    assert bulk.canonical_text(deepest) == deepest
    assert bulk.DEPTH == bodies.DEPTH - 1
    (op,) = (op for op in contract.operations() if op.operation_id == "createArtifact")
    assert op.body_schema is not None
    assert op.body_schema["properties"]["content"]["oneOf"][1]["maxProperties"] == bulk.NAMES
    assert set(op.body_schema["properties"]) == set(bodies.Parts.__struct_fields__)


def test_text_and_objects_have_one_address() -> None:
    content = {"b": [1.0, {"z": 1, "a": None}], "a": "x"}
    given_id, kept = bulk.address("plan", Encoded(json.dumps(content).encode()), ("t",), None, {"m": 1})
    assert given_id == artifact_id("plan", content, ("t",), None, {"m": 1})
    assert kept == canonical(content)
    assert bulk.address("plan", content, ("t",), None, {"m": 1}) == (given_id, kept)


MANY = b"[%b]" % b",".join([b"1"] * 9000)


def test_a_bulky_body_is_its_document_without_the_content() -> None:
    raw = bytearray(b'{"metadata":{"m":[1]},"content": {"a":%b} ,"kind":"plan"}' % MANY)
    assert bodies.is_bulky(raw)
    body, content = bodies.parse_bulky(raw)
    assert body == {"kind": "plan", "content": {}, "metadata": {"m": [1]}}
    assert content == b'{"a":%b}' % MANY
    assert isinstance(content, Encoded)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"kind":"plan","content":{},"metadata":{"a":%b}}' % MANY, "8192 names and values"),
        (b'{"kind":"plan","content":{"a":[%b,]}}' % MANY, "not valid JSON"),
        (b'{"kind":"plan","content":{"a":%b}}' % (b"[" * 5000 + MANY + b"]" * 5000), "nests deeper"),
    ],
)
def test_what_a_bulky_body_is_refused_for(raw: bytes, said: str) -> None:
    with pytest.raises(HttpError, match=said):
        bodies.parse_bulky(bytearray(raw))


@given(st.binary().map(lambda b: b.translate(bytes(b'",:\\a'[i % 5] for i in range(256)))), st.integers(0, 3))
def test_marks_in_texts_do_not_count(raw: bytes, most: int) -> None:
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "PIECE", 5)
        assert bodies._outside(bytearray(raw), b",:", most) == (sum(bodies._count(p, b",:") for p in plain) > most)


def test_pieces_are_small() -> None:
    """H17: what is objects at once is little, whatever the text is."""
    for text in (b'{"a":[%b]}' % b",".join([b'{"b":[1,2]}'] * 3000), b'{"a":%b}' % MANY):
        assert max(len(match[0]) for match in bulk._TOKEN.finditer(text)) <= 4100
        assert bulk.canonical_text(text) == canonical(orjson.loads(text))
