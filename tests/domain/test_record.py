"""What `record` makes: values that compare and hash by their content, and take no more room than that."""

from __future__ import annotations

import pytest

from orchestratord.domain.record import record


@record
class Place:
    pool: str
    at: int


def test_equal_values_are_one_key() -> None:
    assert {Place("a", 1): "first"}[Place("a", 1)] == "first"
    assert Place("a", 1) != Place("a", 2)


def test_it_has_no_room_for_anything_else() -> None:
    """A dict for each would cost as much memory as the value itself, and hide a misspelt name."""

    @record  # made here, so that the run of the mutants sees who comes by
    class Seat:
        at: int

    with pytest.raises(AttributeError):
        Seat(1).ta = 2  # type: ignore[attr-defined]
