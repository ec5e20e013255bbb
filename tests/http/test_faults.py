"""The cheap rows of `python -m tests.faults`, in every run."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.faults import ROWS, Skipped

CHEAP = ("E6 file size limit", "E artifacts on a full disk", "F2 descriptors run out", "K1 the wall clock jumps")


@pytest.mark.parametrize("name", CHEAP)
def test_faults(name: str, tmp_path: Path) -> None:
    """OD-16: a broken disk or a lack of descriptors is told, survived, and over when its reason is."""
    try:
        ROWS[name](tmp_path, argparse.Namespace(readers=20))
    except Skipped as why:
        pytest.skip(str(why))
