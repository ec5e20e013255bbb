"""A copy of the tree in which faults are planted and tests run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("orchestratord", "contracts", "tests", "features", "requirements", "specs", "docs", "ci", "pyproject.toml")
COPIED += ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "tox.ini", "Makefile", "benchmarks", "deploy")
COPIED += (".github",)
NO_KILL = (  # one compares the contract with a copy of itself, the other asks whether faults can be planted
    "tests/contract/test_breaking.py",
    "tests/contract/test_mutants.py",
)
PYTEST = ("-m", "pytest", "-q", "--tb=no", "--assert=plain", "-m", "not llamacpp and not tools")
PYTEST += ("-p", "tests.mutants.watch")


RUNNING: set[int] = set()  # process groups of tests


def end_all(*_: object) -> None:
    """Whoever ends us ends the tests as well. Handles SIGTERM and SIGINT."""
    for group in RUNNING:
        os.killpg(group, 9)
    os._exit(1)


@dataclass
class Notes:
    """What a run of pytest noted: the seconds of each test, those that failed, what could not be judged."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    out_of_time: bool = False


class Field:
    """One copy; workers have one each. Bytecode is made once and checked by content: a fault is always read."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, self.folder / name)
        compileall = ("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "orchestratord", "tests")
        subprocess.run([sys.executable, *compileall], cwd=self.folder, check=True)

    def plant(self, text: str, *options: str) -> bool:
        """Whether the diff applied."""
        command = ["git", "apply", "--unsafe-paths", "--whitespace=nowarn", f"--directory={self.folder}", *options, "-"]
        done = subprocess.run(command, input=text, cwd="/", capture_output=True, text=True, check=False)
        return done.returncode == 0

    def remove(self, text: str) -> None:
        assert self.plant(text, "--reverse"), "a fault could not be taken out again"

    def run(self, tests: Sequence[str], limit_s: float, *options: str, red: Iterable[str] | None = None) -> Notes:
        """Run tests. red: those that fail anyhow; with it, the run stops at the first other one that fails."""
        told = self.folder / "notes.json"
        told.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"MUTANTS_NOTES": str(told), "CI": "1"}
        if red is not None:
            environment["MUTANTS_RED"] = json.dumps(sorted(red))
        without = [f"--deselect={path}" for path in NO_KILL]
        listed = self.folder / "tests.txt"
        listed.write_text("\n".join(tests), "utf-8")
        command = [sys.executable, *PYTEST, *options, *without, f"@{listed}"]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        RUNNING.add(process.pid)
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return Notes(out_of_time=True)
        finally:
            RUNNING.discard(process.pid)
        if not told.exists():
            return Notes(broken=[f"pytest ended with {process.returncode}: {output[-300:]}"])
        noted: dict[str, Any] = json.loads(told.read_text("utf-8"))
        return Notes(**noted)

    def close(self) -> None:
        shutil.rmtree(self.folder)
