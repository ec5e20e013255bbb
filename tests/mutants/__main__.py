"""Do the tests notice a fault? `python -m tests.mutants` plants one fault after the other and runs the tests it names.

Half of the faults were written by hand before the first run (`patches/`: what must never happen, and what a contract
must never lose); the others are drawn by `operators` with a fixed seed, and the tests that reach their line are theirs.
A fault is killed when a test fails because of what the code does: not by an import or a fixture that breaks, and not by
a copy of the contract that differs (test_breaking). Faults that change nothing are judged in `equivalent.yaml`.

Our own operators, since the known tools do not fit: mutmut and cosmic-ray mutate Python only, while half of what is
promised here is YAML, and they run one command for all, while here each fault has its own tests and they run first.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import local

import yaml

from tests.mutants.field import ROOT, Field, end_all
from tests.mutants.operators import Drawn, draw
from tests.mutants.reach import Reach, reach

HERE = Path(__file__).resolve().parent
PATCHES = HERE / "patches"
EQUIVALENT = HERE / "equivalent.yaml"
DRAWN = 47


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: how to plant it and which tests must notice."""

    name: str
    patch: str  # a unified diff
    tests: tuple[str, ...]  # files, folders or single tests; () is all that reach it
    touched: tuple[tuple[str, range], ...]  # files and their lines


@dataclass(frozen=True, slots=True)
class Verdict:
    """killed, survived or invalid, and by what."""

    mutant: Mutant
    outcome: str
    by: str
    seconds: float


def touched(patch: str) -> Iterator[tuple[str, range]]:
    """Files and lines a diff changes, as they were."""
    path = ""
    for line in patch.splitlines():
        if line.startswith("--- a/"):
            path = line[6:].partition("\t")[0]
        elif hunk := re.match(r"@@ -(\d+)(?:,(\d+))? ", line):
            at = int(hunk[1])
        elif path and line.startswith("-") and not line.startswith("---"):
            yield path, range(at, at + 1)
            at += 1
        elif path and line.startswith("+") and not line.startswith("+++"):
            yield path, range(max(1, at - 1), at + 1)  # something comes between two lines
        elif path and line.startswith((" ", "\n")):
            at += 1


def written(folder: Path) -> Iterator[Mutant]:
    """The patches of a folder. Lines before the diff are comments; `# kills:` names tests."""
    for path in sorted(folder.glob("*.patch")):
        text = path.read_text("utf-8")
        named = re.search(r"^# kills: (.*)$", text, re.MULTILINE)
        yield Mutant(path.stem, text, tuple(named[1].split()) if named else (), tuple(touched(text)))


def judged() -> dict[tuple[str, str, str], str]:
    """(function, line as it was, line as it would be): why that changes nothing."""
    entries = yaml.safe_load(EQUIVALENT.read_text("utf-8")) or []
    return {(entry["function"], entry["was"], entry["now"]): entry["reason"] for entry in entries}


def drawn(count: int, seed: int) -> Iterator[Mutant]:
    """So many that are not judged to change nothing."""
    equivalent = judged()
    faults = (each for each in draw(ROOT, seed) if (each.name, each.was, each.now) not in equivalent)
    for each in islice(faults, count):
        yield Mutant(each.name, each.diff, (), ((each.path, _lines(each)),))


def _lines(each: Drawn) -> range:
    return range(each.first, each.last + 1)


class Worker:
    """Plants faults in a copy of its own."""

    def __init__(self, known: Reach, *, named: bool) -> None:
        self.known = known
        self.named = named
        self.field = Field()

    def judge(self, mutant: Mutant) -> Verdict:
        begun = time.monotonic()
        if not self.field.plant(mutant.patch):
            return Verdict(mutant, "invalid", "the patch does not apply", time.monotonic() - begun)
        try:
            outcome, by = self._judge(mutant)
        finally:
            self.field.remove(mutant.patch)
        return Verdict(mutant, outcome, by, time.monotonic() - begun)

    def _judge(self, mutant: Mutant) -> tuple[str, str]:
        """The tests it names first, then all others that reach what it changes."""
        outcome, by = self._tests(mutant.tests) if mutant.tests else ("survived", "")
        if outcome == "killed" or (self.named and mutant.tests):
            return outcome, by
        found = dict.fromkeys(test for path, lines in mutant.touched for test in self.known.tests(path, lines))
        rest = [test for test in found if not mutant.tests or not test.startswith(mutant.tests)]
        if not rest:
            return outcome, by or "no other test comes here"
        second, also = self._tests(rest)
        if second == "killed":
            return second, also + " (none of those it names)" * bool(mutant.tests)
        return (
            ("invalid", by or also) if "invalid" in (outcome, second) else ("survived", f"{len(rest)} tests come here")
        )

    def _tests(self, tests: tuple[str, ...] | list[str]) -> tuple[str, str]:
        notes = self.field.run(tests, self.known.limit(tests), red=self.known.red)
        if notes.out_of_time:
            return "killed", f"nothing came to an end in {self.known.limit(tests):.0f} s"
        if notes.failed:
            return "killed", notes.failed[0]
        return ("invalid", notes.broken[0]) if notes.broken else ("survived", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, action="append", help="folders of patches instead of our own")
    parser.add_argument("--drawn", type=int, help=f"how many faults to draw ({DRAWN}; 0 with --patches)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--named", action="store_true", help="run only the tests a fault names, nothing after them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="show the faults that are drawn, and plant none")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_all)
    begun = time.monotonic()
    count = arguments.drawn if arguments.drawn is not None else 0 if arguments.patches else DRAWN
    mutants = [mutant for folder in arguments.patches or [PATCHES] for mutant in written(folder)]
    mutants += drawn(count, arguments.seed)
    mutants = [mutant for mutant in mutants if arguments.only in mutant.name]
    if arguments.list:
        print("\n".join(f"{mutant.name}\n{mutant.patch}" for mutant in mutants))
        return 0
    if not mutants:
        parser.error("there is no such fault")
    known = reach()
    seconds = time.monotonic() - begun
    print(f"{len(known.seconds)} tests, {len(known.red)} red without a fault, {seconds:.0f} s", flush=True)
    verdicts = _run(mutants, arguments.workers, known, named=arguments.named)
    survivors = [verdict.mutant.name for verdict in verdicts if verdict.outcome == "survived"]
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    invalid = sum(verdict.outcome == "invalid" for verdict in verdicts)
    print(f"{len(verdicts)} mutants, {killed} killed, {len(survivors)} survived, {invalid} invalid", end=", ")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - begun:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU")
    return 1 if survivors or invalid else 0


def _run(mutants: list[Mutant], workers: int, known: Reach, *, named: bool) -> list[Verdict]:
    own, all_of_them = local(), []

    def judge(mutant: Mutant) -> Verdict:
        if not hasattr(own, "worker"):
            own.worker = Worker(known, named=named)
            all_of_them.append(own.worker)
        verdict: Verdict = own.worker.judge(mutant)
        print(f"{verdict.outcome:<9} {mutant.name:<52} {verdict.seconds:>6.1f} s  {verdict.by}", flush=True)
        return verdict

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(judge, mutants))
    finally:
        for worker in all_of_them:
            worker.field.close()


if __name__ == "__main__":
    sys.exit(main())
