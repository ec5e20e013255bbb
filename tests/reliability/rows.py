"""The rows of the reliability table: what is broken, what must hold, and who looks.

A row is one function that breaks something `size` times and returns what it saw, or a proof that lives elsewhere:
tests, a row of `tests.faults`, or a program of `tests`. Rows that do not apply say why.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Skipped(Exception):
    """This machine cannot do it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a row found: how often it tried, and its figure."""

    count: int
    figure: str


@dataclass(frozen=True, slots=True)
class Row:
    """`quick` and `full` are sizes: for every run of the table, and for the one the documentation shows."""

    id: str
    what: str
    bar: str
    run: Callable[[int], Seen]
    quick: int
    full: int


ROWS: dict[str, Row] = {}
NOT_HERE: dict[str, str] = {}


def row(
    name: str, what: str, bar: str, quick: int = 1, full: int | None = None
) -> Callable[..., Callable[[int], Seen]]:
    def add(run: Callable[[int], Seen]) -> Callable[[int], Seen]:
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, bar, run, quick, full or quick)
        return run

    return add


def not_here(name: str, why: str) -> None:
    """A row that does not apply, and why."""
    NOT_HERE[name] = why


# -- proofs that live elsewhere ------------------------------------------------------------------------------
def _run(command: list[str], what: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"{what}: {' / '.join(said.splitlines()[-4:])}"
    return said.splitlines()[-1] if said else ""


def tests(name: str, what: str, bar: str, *nodes: str) -> None:
    """A row that tests of pytest prove: paths, or path::test."""

    def run(_: int) -> Seen:
        paths = [node if node.startswith("tests/") else f"tests/{node}" for node in nodes]
        report = _run(["pytest", "-q", "-rN", "--no-header", "-p", "no:warnings", *paths, "-vv"], "pytest")
        passed = re.search(r"(\d+) passed", report)
        assert passed is not None, report
        skipped = re.search(r"(\d+) skipped", report)
        note = f", {skipped[1]} left out on this machine" if skipped else ""
        return Seen(int(passed[1]), f"all pass{note}")

    row(name, what, bar)(run)


def program(name: str, what: str, bar: str, command: str, quick: int, full: int) -> None:
    """A row that a program of `tests` proves; `{}` is the size. Its last line is the figure."""

    def run(size: int) -> Seen:
        return Seen(size, _run(command.format(size).split(), command.split()[0]))

    row(name, what, bar, quick, full)(run)


def fault(name: str, broken: str, what: str, bar: str, quick: int = 1, full: int | None = None) -> None:
    """A row of `tests.faults`."""

    def run(size: int) -> Seen:
        from tests import faults

        try:
            with tempfile.TemporaryDirectory() as folder:
                return Seen(size, faults.ROWS[broken](Path(folder), argparse.Namespace(readers=size)))
        except faults.Skipped as why:
            raise Skipped(str(why)) from None

    row(name, what, bar, quick, full)(run)
