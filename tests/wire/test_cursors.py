"""Cursors: opaque, and good for the list that made them only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestratord.domain.errors import InvalidParams
from orchestratord.wire import cursors

LISTS: dict[str, tuple[str, Callable[[str], Any], Any]] = {
    "tasks": (cursors.order(7), cursors.parse_order, 7),
    "pools": (cursors.text("home:1"), cursors.parse_text, "home:1"),
    "artifacts": (cursors.key("artifacts", 5, "a b"), lambda c: cursors.parse_key("artifacts", c), (5, "a b")),
    "models": (cursors.key("models", 5, "a b"), lambda c: cursors.parse_key("models", c), (5, "a b")),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_takes_its_own_cursors_and_no_others(name: str) -> None:
    """OD-10, OD-11, OD-13: one of another list would cut a page anywhere."""
    _, parse, _ = LISTS[name]
    for other, (cursor, _, value) in LISTS.items():
        if other == name:
            assert parse(cursor) == value
        else:
            with pytest.raises(InvalidParams):
                parse(cursor)


@pytest.mark.parametrize(
    "spoil", [lambda c: c + "A", lambda c: c[:4] + "!" + c[4:], lambda c: c[:-1], lambda c: c + "="]
)
def test_what_was_changed_is_no_cursor(spoil: Callable[[str], str]) -> None:
    with pytest.raises(InvalidParams):
        cursors.parse_key("models", spoil(LISTS["models"][0]))
