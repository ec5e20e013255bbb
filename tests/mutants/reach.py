"""Which tests reach a line: noted in one run of the quick tests with coverage, kept until the tree changes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage import CoverageData

from tests.mutants.field import COPIED, ROOT, Field

KEPT = ROOT / "build" / "mutants.reach.json"
QUICK = (
    "tests/domain",
    "tests/ports",
    "tests/services",
    "tests/wire",
    "tests/contract",
    "tests/testing",
    "tests/engines",
    "tests/cli",
    "tests/http/test_auth.py",
    "tests/http/test_errors.py",
    "tests/http/test_examples.py",
    "tests/http/test_guard_compare.py",
    "tests/http/test_routes.py",
    "tests/http/test_streams.py",
)
OF_CONTRACTS = (
    "tests/contract",
    "tests/testing",
    "tests/http/test_errors.py",
    "tests/http/test_auth.py",
    "tests/http/test_examples.py",
    "tests/http/test_streams.py",
)
LIMIT_S = 1500


@dataclass(frozen=True, slots=True)
class Reach:
    """seconds of each test without a fault, those that are red even so, and which tests reach a line of a file."""

    seconds: dict[str, float]
    red: tuple[str, ...]
    lines: dict[str, dict[int, tuple[str, ...]]]

    def tests(self, path: str, lines: Iterable[int]) -> list[str]:
        """Test ids, the cheapest file first and the cheapest test of it first."""
        if not path.endswith(".py"):
            return [test for test in self.seconds if test.startswith(OF_CONTRACTS)]
        of_file = self.lines.get(path, {})
        begun = {
            max((above for above in of_file if above <= line), default=0) for line in lines
        }  # the statement's line
        found = {test for line in begun for test in of_file.get(line, ()) if test not in self.red}
        cost: dict[str, float] = defaultdict(float)
        for test in found:
            cost[test.partition("::")[0]] += self.seconds.get(test, 0.0)
        return sorted(
            found, key=lambda test: (cost[test.partition("::")[0]], test.partition("::")[0], self._cost(test))
        )

    def _cost(self, test: str) -> float:
        return self.seconds.get(test, 0.0)

    def limit(self, tests: Iterable[str]) -> float:
        """Seconds after which a run of them is one that does not end. A name may be a file or a folder."""
        names = tuple(tests)
        return 90 + 10 * sum(seconds for test, seconds in self.seconds.items() if test.startswith(names))


def _digest() -> str:
    found = hashlib.sha256()
    for name in COPIED:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(str(path).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def reach() -> Reach:
    """From the last run of this very tree, or from a new one."""
    digest = _digest()
    if not KEPT.exists() or json.loads(KEPT.read_text("utf-8"))["digest"] != digest:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps({"digest": digest, **_measured()}), "utf-8")
    told = json.loads(KEPT.read_text("utf-8"))
    names = told["names"]
    lines = {
        path: {int(line): tuple(names[number] for number in numbers) for line, numbers in of_file.items()}
        for path, of_file in told["lines"].items()
    }
    return Reach(told["seconds"], tuple(told["red"]), lines)


def _measured() -> dict[str, Any]:
    field = Field()
    try:
        data = field.folder / "reach.data"
        rc = field.folder / "reach.rc"
        rc.write_text(f"[run]\nsource = {field.folder}/orchestratord\ndata_file = {data}\n", "utf-8")
        options = ("-n", "2", "--cov", f"--cov-config={rc}", "--cov-context=test", "--cov-report=")
        notes = field.run(QUICK, LIMIT_S, *options)
        assert notes.seconds, f"nothing ran: {notes}"
        found = CoverageData(str(data))
        found.read()
        names: dict[str, int] = {}
        lines: dict[str, dict[int, list[int]]] = {}
        for path in found.measured_files():
            of_file = lines.setdefault(Path(path).relative_to(field.folder).as_posix(), {})
            for line, contexts in found.contexts_by_lineno(path).items():
                tests = {context.rpartition("|")[0] for context in contexts if context}
                of_file[line] = sorted(names.setdefault(test, len(names)) for test in tests)
        return {
            "seconds": {test: round(seconds, 3) for test, seconds in notes.seconds.items()},
            "red": [*notes.failed, *notes.broken],
            "names": list(names),
            "lines": lines,
        }
    finally:
        field.close()
