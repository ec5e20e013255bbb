"""RFC 8785, and that the fast path is the same function."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.ports import Artifact
from orchestratord.wire.canonical import artifact_id, canonical, canonical_fast, fingerprint, fingerprint_of, id_of

SAFE = 2**53 - 1
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def documents(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


PLAIN = st.none() | st.booleans() | st.integers(-SAFE, SAFE) | TEXT
PLAIN_DOCUMENTS = documents(PLAIN, st.text(st.characters(max_codepoint=127)))
ALL_DOCUMENTS = documents(PLAIN | st.floats(allow_nan=False, allow_infinity=False), TEXT)


@settings(max_examples=500)
@given(PLAIN_DOCUMENTS)
def test_the_fast_path_takes_plain_documents_and_equals_the_reference(document: Any) -> None:
    assert canonical_fast(document) == rfc8785.dumps(document)


@settings(max_examples=500)
@given(ALL_DOCUMENTS)
def test_every_document_has_the_reference_form(document: Any) -> None:
    assert canonical(document) == rfc8785.dumps(document)


@given(ALL_DOCUMENTS)
def test_the_order_of_keys_does_not_matter_and_the_form_says_the_same(document: Any) -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return [reversed_keys(one) for one in value] if isinstance(value, list) else value

    encoded = canonical(document)
    assert canonical(reversed_keys(document)) == encoded
    assert json.loads(encoded, parse_int=float) == document  # a number is a double


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"b": 1.0, "a": [1e21, 1e-7, -0.0, 0.002, 1e23, 333333333.33333329]}, None),
        ({"\ufb33": 1, "\U0001f600": 2, "\u20ac": 3, "1": 4, "\r": 5}, None),
        ([1e0, 100.0, 1e16], b"[1,100,10000000000000000]"),
        ({"": ()}, b'{"":[]}'),
        ('\x7f\x1f\b\u2028"\\/', b'"\x7f\\u001f\\b\xe2\x80\xa8\\"\\\\/"'),
        ({"a": SAFE, "b": -SAFE, "c": True}, b'{"a":9007199254740991,"b":-9007199254740991,"c":true}'),
    ],
)
def test_corner_cases(document: Any, expected: bytes | None) -> None:
    assert canonical(document) == rfc8785.dumps(document)
    assert expected is None or canonical(document) == expected


def test_keys_are_ordered_by_utf_16() -> None:
    assert canonical({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


def nested(depth: int) -> Any:
    document: Any = 1
    for _ in range(depth):
        document = [document]
    return document


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (math.nan, "nan"),
        ([math.inf], "inf"),
        ({"a": -math.inf}, "inf"),
        (SAFE + 1, "integers beyond"),
        ({"a": [-SAFE - 1]}, "integers beyond"),
        ("\ud800", "non-UTF-8"),
        ({"\ud800": 1}, "surrogates"),
        ({1: 2}, "keys must be strings"),
        (b"bytes", "unsupported type"),
        (nested(100_000), "nested too deeply"),
    ],
)
def test_what_has_no_canonical_form_is_refused(document: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical(document)


def test_deep_but_sane_nesting_is_fine() -> None:
    assert canonical(nested(300)) == b"[" * 300 + b"1" + b"]" * 300


def test_a_fingerprint_is_a_digest_of_what_the_body_says() -> None:
    assert fingerprint({"a": 1, "b": [1.0]}) == hashlib.sha256(b'{"a":1,"b":[1]}').digest()
    assert fingerprint({"b": [1], "a": 1.0}) == fingerprint({"a": 1, "b": [1.0]})
    assert fingerprint({"a": "1"}) != fingerprint({"a": 1})


def test_an_artifact_id_hashes_the_five_fields_with_tags_as_a_set() -> None:
    form = b'{"content":{"x":1},"kind":"note","metadata":{},"parent":null,"tags":["a","b"]}'
    expected = hashlib.sha256(form).hexdigest()
    assert artifact_id("note", {"x": 1}, ["b", "a", "b"], None, {}) == expected
    assert id_of(Artifact("", "note", {"x": 1}, ("a", "b"), None, {}, 123)) == expected
    variants: list[tuple[str, Any, list[str], str | None, dict[str, Any]]] = [
        ("trace", {"x": 1}, ["a"], None, {}),
        ("note", {"x": 1}, ["a"], expected, {}),
    ]
    assert len({artifact_id(*variant) for variant in variants} | {expected}) == 3


@pytest.mark.parametrize(
    "body",
    [{"a": 1}, {"a": 0.5}, {"a": [0.5] * 9000}, {"\u00fc": 1}, {"\u00fc": "x" * 20_000}],
    ids=["plain", "float", "many floats", "name", "long"],
)
def test_a_fingerprint_is_the_same_wherever_it_is_made(body: Any) -> None:
    assert asyncio.run(fingerprint_of(body)) == fingerprint(body)


def test_what_has_no_canonical_form_has_none_there_either() -> None:
    for body in ({"a": 2**60}, {"a": [2**60] + [0.5] * 9000}, {"a": "\ud800"}):
        with pytest.raises(ValueError, match="RFC 8785"):
            asyncio.run(fingerprint_of(body))
