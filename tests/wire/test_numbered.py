"""Frames of texts that come together are made of prepared parts: the same bytes as each alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.wire import sse

TEXTS = ["a", 'b"\n', "\u00e9", ""]


@pytest.mark.parametrize("index", [0, 1, 70, sse.PREPARED - 6, sse.PREPARED - 3, sse.PREPARED, 10**6])
def test_tokens_are_what_their_form_makes_of_each(index: int) -> None:
    made = [sse.TOKEN % (index + 2 + n, sse.quote(text), index + n) for n, text in enumerate(TEXTS)]
    assert sse.tokens(index + 2, TEXTS, index) == made


@given(st.lists(st.tuples(st.integers(0, sse.PREPARED + 9), st.integers(0, 40)), max_size=6))
def test_any_numbers_in_any_order(asked: list[tuple[int, int]]) -> None:
    numbered = sse.Numbered(b"<%d>")
    for start, count in asked:
        assert numbered.of(start, count) == [b"<%d>" % number for number in range(start, start + count)]
