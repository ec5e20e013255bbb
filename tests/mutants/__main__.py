"""Do the tests notice a fault? `python -m tests.mutants` plants one fault after the other and runs the tests it names.

Half of the faults were written by hand before the first run (`patches/`: what must never happen, and what a contract
must never lose); the others are drawn by `operators` with a fixed seed. A fault is killed when a test fails because of
what the code does: not by an import that fails, and not by a copy of the contract that differs (test_breaking).

Our own operators, since the known tools do not fit: mutmut and cosmic-ray mutate Python only, while half of what is
promised here is YAML, and they run one command for all, while here each fault has its own tests and they run first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local

from tests.mutants.operators import draw

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).resolve().parent / "patches"
COPIED = ("orchestratord", "contracts", "tests", "features", "requirements", "specs", "docs", "ci", "pyproject.toml")
COPIED += ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tox.ini", "benchmarks")
LAST_RESORT = (
    "tests/domain tests/services tests/wire tests/contract tests/http/test_errors.py tests/http/test_streams.py"
)
LIMIT_S = 600
NO_KILL = ("tests/contract/test_breaking.py",)
PYTEST = ("-m", "pytest", "-x", "-q", "--tb=line", "-m", "not llamacpp", "-p", "no:randomly")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: how to plant it and which tests must notice."""

    name: str
    patch: str  # a unified diff
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """killed, survived or invalid, and by what."""

    mutant: Mutant
    outcome: str
    by: str
    seconds: float


def written(folder: Path) -> Iterator[Mutant]:
    """The patches of a folder. Lines before the diff are comments; `# kills:` names tests."""
    for path in sorted(folder.glob("*.patch")):
        text = path.read_text("utf-8")
        named = re.search(r"^# kills: (.*)$", text, re.MULTILINE)
        yield Mutant(path.stem, text, tuple(named[1].split()) if named else tuple(LAST_RESORT.split()))


class Field:
    """A copy of the tree in which faults are planted; one for each worker."""

    def __init__(self, named: bool) -> None:
        self.named = named
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self.folder / name)

    def judge(self, mutant: Mutant) -> Verdict:
        begun = time.monotonic()
        if not self._patch(mutant.patch):
            return Verdict(mutant, "invalid", "the patch does not apply", time.monotonic() - begun)
        try:
            outcome, by = self._tests(mutant.tests)
            if outcome == "survived" and not self.named and set(mutant.tests) != set(LAST_RESORT.split()):
                outcome, by = self._tests(tuple(LAST_RESORT.split()))
                by += " (none of those it names)" * (outcome == "killed")
        finally:
            self._patch(mutant.patch, "--reverse")
        return Verdict(mutant, outcome, by, time.monotonic() - begun)

    def _patch(self, text: str, *options: str) -> bool:
        command = ["git", "apply", "--unsafe-paths", "--whitespace=nowarn", f"--directory={self.folder}", *options, "-"]
        done = subprocess.run(command, input=text, cwd="/", capture_output=True, text=True, check=False)
        return done.returncode == 0

    def _tests(self, tests: tuple[str, ...]) -> tuple[str, str]:
        """Run them on the copy. Exit code 1 with a failed test is a kill; anything else that is wrong is not."""
        ignored = [f"--deselect={path}" for path in NO_KILL]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, *PYTEST, *ignored, *tests],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "killed", f"nothing came to an end in {LIMIT_S} s"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        if done.returncode == 0:
            return "survived", ""
        if done.returncode != 1 or failed is None or "::" not in failed[1] or "ImportError" in done.stdout:
            return "invalid", done.stdout[-400:] + done.stderr[-400:]
        return "killed", failed[1]

    def close(self) -> None:
        shutil.rmtree(self.folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, action="append", help="folders of patches instead of our own")
    parser.add_argument("--generated", type=int, default=None, help="how many faults to draw (32; 0 with --patches)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="names that contain this")
    parser.add_argument("--named", action="store_true", help="run only the tests a fault names, nothing after them")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    count = arguments.generated if arguments.generated is not None else 0 if arguments.patches else 32
    mutants = [mutant for folder in arguments.patches or [PATCHES] for mutant in written(folder)]
    mutants += [Mutant(name, patch, tests) for name, patch, tests in draw(ROOT, count, arguments.seed)]
    mutants = [mutant for mutant in mutants if (arguments.only or "") in mutant.name]
    verdicts = _run(mutants, arguments.workers, named=arguments.named)
    survivors = [verdict.mutant.name for verdict in verdicts if verdict.outcome == "survived"]
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    invalid = sum(verdict.outcome == "invalid" for verdict in verdicts)
    print(f"{len(verdicts)} mutants, {killed} killed, {len(survivors)} survived, {invalid} invalid")
    return 1 if survivors or invalid else 0


def _run(mutants: list[Mutant], workers: int, *, named: bool) -> list[Verdict]:
    own, fields = local(), []

    def judge(mutant: Mutant) -> Verdict:
        if not hasattr(own, "field"):
            own.field = Field(named)
            fields.append(own.field)
        verdict: Verdict = own.field.judge(mutant)
        print(f"{verdict.outcome:<9} {mutant.name:<28} {verdict.seconds:>6.1f} s  {verdict.by}", flush=True)
        return verdict

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(judge, mutants))
    finally:
        for field in fields:
            field.close()


if __name__ == "__main__":
    sys.exit(main())
