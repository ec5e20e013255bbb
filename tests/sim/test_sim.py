"""The simulation itself: it reproduces exactly, and it notices a daemon that is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.__main__ import simulate
from tests.sim.sabotage import SABOTAGES

# Broken in every third run at the latest; `python -m tests.sim.sabotage` tries all of them.
QUICK = ("batch_first", "settle_nothing", "count_starts_twice", "cancel_before_the_commit", "keep_every_third_slot")


def test_equal_seeds_give_equal_traces_in_any_process() -> None:
    """I27: neither what ran before nor the hash seed of the process has a part in it."""
    code = "from tests.sim.__main__ import simulate; print(simulate(7).trace, simulate(8).trace)"
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONWARNINGS": "ignore"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert [simulate(8).trace, simulate(7).trace] == other.stdout.split()[::-1]


@pytest.mark.parametrize("name", QUICK)
def test_sabotage_is_noticed(name: str) -> None:
    assert any(simulate(seed, SABOTAGES[name]).broken for seed in range(1, 31))
