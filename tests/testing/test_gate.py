"""`testing.gate`: what no test has shown is listed, and the list may only shrink."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestratord.testing import gate
from orchestratord.testing.session import Record


def everything() -> Record:
    """A record in which every promise was shown."""
    record = Record()
    for line in gate.declared():
        name, *rest = line.split()
        if rest[0] == "header":
            record.seen_headers.add((name, rest[1]))
        elif rest[0] == "event":
            record.seen_events.add((name, rest[1]))
        else:
            record.coverage.add((name, int(rest[0])))
    return record


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    path = tmp_path / "uncovered.txt"
    path.write_text("# nobody can show these\n\n")
    return path


def test_every_kind_of_promise_is_declared() -> None:
    """Statuses, optional headers, events and the answers before any operation; required headers need no line."""
    declared = gate.declared()
    assert {
        "createTask 429",
        "streamTask 204",
        "streamTask event result",
        "createTask header X-Idempotent-Replay",
        "cancelTask header Retry-After",
        "MethodNotAllowed 405",
        "NotFound 404",
        "ConnectionLimit 503",
    } <= set(declared)
    assert not {"createTask header Location", "createTask header X-Correlation-Id", "Unauthorized 401"} & set(declared)
    assert len(declared) == len(set(declared))


def test_nothing_shown_leaves_everything_uncovered() -> None:
    """An empty run covers nothing."""
    assert gate.uncovered(Record()) == gate.uncovered() == gate.declared()


def test_all_shown_leaves_nothing(allowed: Path) -> None:
    """A complete run opens the gate; several records count together."""
    whole = everything()
    assert gate.uncovered(whole) == gate.problems(whole, allowed=allowed) == []
    part = Record(coverage={("createTask", 202)})
    whole.coverage.discard(("createTask", 202))
    assert gate.uncovered(whole, part) == []


def test_what_nothing_shows_shuts_the_gate(allowed: Path) -> None:
    """A promise that is neither shown nor listed is named."""
    record = everything()
    record.coverage.discard(("createTask", 429))
    record.seen_events.discard(("streamTask", "result"))
    record.seen_headers.discard(("createTask", "X-Idempotent-Replay"))
    assert gate.problems(record, allowed=allowed) == [
        "createTask 429: nothing shows it",
        "createTask header X-Idempotent-Replay: nothing shows it",
        "streamTask event result: nothing shows it",
    ]


def test_what_is_listed_passes(allowed: Path) -> None:
    """The list excuses exactly what it names."""
    record = everything()
    record.coverage.discard(("createTask", 500))
    allowed.write_text("createTask 500\n")
    assert gate.problems(record, allowed=allowed) == []


def test_the_list_may_only_shrink(allowed: Path) -> None:
    """A line that is covered now, or that no contract declares, must go."""
    allowed.write_text("createTask 500\ncreateTask 299\n")
    assert gate.problems(everything(), allowed=allowed) == [
        "createTask 500: covered now, remove it",
        "createTask 299: no contract declares it, remove it",
    ]
