"""The requirements and what shows each of them: `python -m features.trace` writes build/requirements.md.

A scenario is evidence only when it passed in the last run (`build/evidence.jsonl`). Tests are named by the ids in their
docstrings; that they pass is what `make test` says. The page is made, never committed. After a run of everything, a
must that nothing shows ends it with 1.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from features.environment import EVIDENCE
from orchestratord import contract
from tests.contract.test_requirements import deferred, proofs_in

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build" / "requirements.md"


def evidence() -> list[dict[str, Any]]:
    """First whether the run was of everything, then each scenario that passed."""
    return [json.loads(line) for line in EVIDENCE.read_text("utf-8").splitlines()]


def scenarios() -> dict[str, list[str]]:
    """Requirement: where the scenarios are that passed."""
    found = defaultdict(list)
    for passed in evidence()[1:]:
        for tag in passed["tags"]:
            found[tag].append(passed["location"])
    return found


def tests() -> dict[str, list[str]]:
    """Requirement: the test files that name it."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in proofs_in(path.read_text("utf-8")):
            found[name].append(str(path.relative_to(ROOT)))
    return found


def rows() -> list[tuple[dict[str, Any], str]]:
    """Each requirement of the catalogue with what shows it; "" is nothing at all."""
    passed, named, later = scenarios(), tests(), deferred()
    operations = {name: op.operation_id for op in contract.operations() for name in op.req_ids}
    found = []
    for entry in yaml.safe_load((ROOT / "requirements" / "catalogue.yaml").read_text("utf-8")):
        name = entry["id"]
        shown = [*dict.fromkeys(passed.get(name, [])), *named.get(name, [])]
        reason = f"deferred: {later[name]}" if name in later else ""
        found.append(({**entry, "operation": operations.get(name, "")}, ", ".join(shown) or reason))
    return found


def main() -> int:
    if not EVIDENCE.exists():
        sys.stderr.write(f"{EVIDENCE} is missing: run the features first (python -m behave)\n")
        return 1
    found = rows()
    lines = [
        "# Requirements and what shows them",
        "",
        "| id | level | requirement | operation | shown by |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {e['id']} | {e['level']} | {e['text']} | {e['operation']} | {shown} |" for e, shown in found]
    REPORT.write_text("\n".join([*lines, ""]), "utf-8")
    bare = [entry["id"] for entry, shown in found if entry["level"] == "must" and not shown]
    by_scenario = sum(".feature:" in shown for _, shown in found)
    sys.stdout.write(
        f"{REPORT.relative_to(ROOT)}: {len(found)} requirements, {by_scenario} shown by passed scenarios, "
    )
    sys.stdout.write(f"{sum(shown.startswith('deferred') for _, shown in found)} deferred, {len(bare)} of nothing\n")
    if not evidence()[0]["complete"]:
        return 0  # of a part nothing follows
    sys.stdout.writelines(f"{name}: a must that nothing shows\n" for name in bare)
    return 1 if bare else 0


if __name__ == "__main__":
    sys.exit(main())
