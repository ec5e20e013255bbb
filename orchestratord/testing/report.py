"""What a provider verification found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from orchestratord import contract


@dataclass(frozen=True, slots=True)
class Row:
    """One operation (or shared answer) and one status of it. `problem` is empty when the contract was kept."""

    operation: str
    status: int
    problem: str = ""


@dataclass(slots=True)
class Report:
    """What was found at one address."""

    url: str
    api_version: str
    rows: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what stays on the server
    skipped: list[str] = field(default_factory=list)  # and why

    @property
    def failed(self) -> bool:
        return any(row.problem for row in self.rows)

    def json(self) -> str:
        return json.dumps({**asdict(self), "failed": self.failed}, indent=2)

    def table(self) -> Iterator[str]:
        """One line for each operation, then the problems, then what is left."""
        yield f"{'operation':<24} {'kept':<32} {'broken':<12} not shown"
        for name, declared in _declared().items():
            shown = {row.status for row in self.rows if row.operation == name}
            broken = {row.status for row in self.rows if row.operation == name and row.problem}
            kept, missing = sorted(shown - broken), sorted(declared - shown)
            yield f"{name:<24} {_words(kept):<32} {_words(sorted(broken)):<12} {_words(missing)}"
        yield ""
        yield from (f"BROKEN {row.operation} {row.status}: {row.problem}" for row in self.rows if row.problem)
        yield from (f"skipped: {text}" for text in self.skipped)
        yield from (f"left behind: {text}" for text in self.left)
        kept_count = len({(row.operation, row.status) for row in self.rows if not row.problem})
        verdict = "BROKEN" if self.failed else "kept"
        yield f"contract {self.api_version} is {verdict} at {self.url}: {kept_count} answers as declared"


def _words(statuses: list[int]) -> str:
    return " ".join(map(str, statuses)) or "-"


def _declared() -> dict[str, set[int]]:
    found = {op.operation_id: {int(status) for status in op.responses} for op in contract.operations()}
    return found | {"NotFound": {404}, "MethodNotAllowed": {405}}
