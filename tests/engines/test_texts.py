"""Stop strings cut out of a text that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.infra.engines.texts import StopFilter

TEXTS = st.text("ab", max_size=12)


def shown(pieces: list[str], stops: list[str]) -> str:
    cut = StopFilter(stops)
    return "".join(cut.feed(piece) for piece in pieces) + cut.rest()


@given(st.lists(TEXTS), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_it_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut, what is shown is all before the first place a stop string was complete, or all of it."""
    whole = "".join(pieces)
    ends = [at + len(stop) for stop in stops if (at := whole.find(stop)) >= 0]
    result = shown(pieces, stops)
    if not ends:
        assert result == whole
        return
    assert whole.startswith(result)
    assert not any(stop in result for stop in stops)
    assert len(result) < min(ends)


@given(st.text("abc", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_letter_by_letter_it_holds_back_only_what_it_must(whole: str, stops: list[str]) -> None:
    """What is held back is the beginning of a stop string."""
    cut, out = StopFilter(stops), ""
    for count, letter in enumerate(whole, 1):
        out += cut.feed(letter)
        held = whole[len(out) : count]
        if cut.hit:
            return
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [(["a\n", "\nb"], "a"), (["a\n", "b"], "a\nb"), (["", "x\n\n"], "x"), (["\n"], "\n"), (["\n\n", "y"], "")],
)
def test_examples(pieces: list[str], expected: str) -> None:
    assert shown(pieces, ["\n\n"]) == expected
