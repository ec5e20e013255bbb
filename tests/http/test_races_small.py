"""A small run of the races, so that every test run has one; `python -m tests.races` plays the large ones."""

from __future__ import annotations

import pytest

from tests import races


@pytest.mark.parametrize("seed", [1, 2], ids=["memory", "sqlite"])
def test_races(seed: int) -> None:
    tally, findings = races.run(60, seed, clients=32)
    assert findings == []
    assert tally.odd == []
    assert tally.cancelled > 5
    assert tally.resumed > 20


def test_a_seed_decides_every_plan() -> None:
    sessions = ["a", "b", "c"]
    first, second = ([races.make_plan(seed, n, sessions) for n in range(50)] for seed in (3, 3))
    assert first == second
    assert first != [races.make_plan(4, n, sessions) for n in range(50)]
