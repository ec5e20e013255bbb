"""The rows of the reliability table: what is broken, what must hold, and who looks.

A row is one function that breaks something `size` times and returns what it saw, or a proof that lives elsewhere: tests
or a program of `tests`. Rows that do not apply say why.
"""

from __future__ import annotations

import re
import subprocess
import sys
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


Run = Callable[[int], Seen]


@dataclass(frozen=True, slots=True)
class Row:
    """`quick` and `full` are sizes: for every run of the table, and for the one the documentation shows.

    timed: its bar is a time, so what else the machine did meanwhile belongs to the figure.
    """

    id: str
    what: str
    bar: str
    run: Run
    quick: int
    full: int
    timed: bool


ROWS: dict[str, Row] = {}
NOT_HERE: dict[str, str] = {}


def row(
    name: str, what: str, bar: str, quick: int = 1, full: int | None = None, *, timed: bool = False
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, bar, run, quick, full or quick, timed)
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


def passing(*nodes: str) -> Seen:
    """Tests of pytest, as paths below `tests` or path::test: how many, and that all pass."""
    report = _run(
        ["pytest", "-q", "-rN", "--no-header", "-p", "no:warnings", *(f"tests/{node}" for node in nodes), "-vv"],
        "pytest",
    )
    passed = re.search(r"(\d+) passed", report)
    assert passed is not None, report
    skipped = re.search(r"(\d+) skipped", report)
    note = f", {skipped[1]} left out on this machine" if skipped else ""
    return Seen(int(passed[1]), f"all pass{note}")


def tests(name: str, what: str, bar: str, *nodes: str) -> None:
    """A row that tests of pytest prove."""
    row(name, what, bar)(lambda _: passing(*nodes))


def program(name: str, what: str, bar: str, command: str, quick: int, full: int) -> None:
    """A row that a program of `tests` proves; `{}` is the size. Its last line is the figure."""

    def run(size: int) -> Seen:
        return Seen(size, _run(command.format(size).split(), command.split()[0]))

    row(name, what, bar, quick, full)(run)
