"""The cheap rows of `python -m tests.reliability`, in every run; and that no row of the bar is forgotten."""

from __future__ import annotations

import pytest

from tests.reliability import __main__ as table
from tests.reliability.rows import NOT_HERE, ROWS, Skipped

BAR = {"A": 10, "B": 13, "C": 12, "D": 14, "E": 16, "F": 8, "G": 11, "H": 17, "I": 9}  # rows of each group
SIZES = {"A1": 1, "A2": 20, "A3": 3000, "A4": 3000, "A5": 20, "A7": 2, "B5": 2, "B6": 20, "B9": 1, "B13": 60}
SIZES |= {"C6": 10, "C11": 30, "D11": 400, "D12": 400, "E5": 15, "E15": 1, "E16": 1, "F2": 1, "F6": 500, "I5": 1}
SIZES |= {"I8": 1, "K1": 1}


def test_every_row_is_there_or_says_why_not() -> None:
    """OD-16."""
    wanted = {f"{group}{number}" for group, count in BAR.items() for number in range(1, count + 1)} | {"K1"}
    assert set(ROWS) | set(NOT_HERE) == wanted
    assert not set(ROWS) & set(NOT_HERE)
    assert table.PARTS


@pytest.mark.parametrize("name", SIZES)
def test_row(name: str) -> None:
    """OD-16: in small; the figures of the large sizes are in docs/reliability.md."""
    try:
        seen = ROWS[name].run(SIZES[name])
    except Skipped as why:
        pytest.skip(str(why))
    assert seen.count > 0
    assert seen.figure
