"""What the log says of the journal's outages, and how often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.services.outages import PAUSE_S
from orchestratord.testing.live import LiveApp
from orchestratord.wire.transcript import transcript
from tests.http.support import wait_for
from tests.services.support import BreakingJournal, records, submit, task

CANARY = "canary-prompt-nobody-may-see"


def told(app: LiveApp) -> list[str]:
    return [r["event"] for r in records(app) if r["event"] in ("journal_failed", "journal_recovered")]


def test_one_line_when_it_breaks_and_one_when_it_is_back() -> None:
    """OD-28: however many tasks are refused meanwhile."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        app.call(lambda: setattr(journal, "broken", "ENOSPC"))
        for _ in range(5):
            assert session.post("/v1/tasks", json=task()).status_code == 503
        app.advance(3)
        app.call(journal.mend)
        submit(session)
        failed, recovered = records(app, "journal_failed"), records(app, "journal_recovered")
        assert [(r["level"], r["reason"]) for r in failed] == [("error", "ENOSPC")]
        assert [(r["level"], r["outage_ms"]) for r in recovered] == [("info", 3000)]


def test_a_disk_that_comes_and_goes_does_not_fill_the_log() -> None:
    """OD-28: a pair of lines in ten seconds; the next one tells how many were left out."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app:
        for _ in range(50):
            app.call(lambda: setattr(journal, "broken", "EIO"))
            app.call(journal.mend)
        assert told(app) == ["journal_failed", "journal_recovered"]
        app.advance(PAUSE_S)
        assert len(told(app)) == 2
        app.call(lambda: setattr(journal, "broken", "EIO"))
        assert [r.get("untold") for r in records(app, "journal_failed")] == [None, 49]


def test_an_outage_that_lasts_is_told_after_a_pause() -> None:
    """Even if one just before it used up the line of these ten seconds."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app:
        app.call(lambda: setattr(journal, "broken", "EIO"))
        app.call(journal.mend)
        app.advance(1)
        app.call(lambda: setattr(journal, "broken", "EROFS"))
        app.advance(PAUSE_S - 2)
        assert told(app) == ["journal_failed", "journal_recovered"]
        app.advance(1)
        assert [r["reason"] for r in records(app, "journal_failed")] == ["EIO", "EROFS"]
        app.call(journal.mend)
        assert [r["outage_ms"] for r in records(app, "journal_recovered")] == [0, PAUSE_S * 1000 - 1000]


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(28, CANARY), "ENOSPC"), (ValueError(CANARY), "ValueError")], ids=["disk", "other"]
)
def test_what_failed_is_named_and_not_quoted(tmp_path: Path, error: Exception, reason: str) -> None:
    """OD-28: on the real journal; what to do is told, a text that may hold a prompt is not."""
    broken: list[Exception] = []

    def fault(point: str) -> None:
        if broken and point == "before_commit":
            raise broken[0]

    journal = SqliteJournal(tmp_path / "j.db", transcript, fault=fault)
    with LiveApp(journal=journal, manual=False) as app, app.session() as session:
        wait_for(lambda: session.get("/readyz").status_code == 200, "it is ready")
        broken.append(error)
        assert session.post("/v1/tasks", json=task(prompt=CANARY)).json()["code"] == "STORAGE_UNAVAILABLE"
        wait_for(lambda: told(app), "the outage is told")
        broken.clear()
        wait_for(lambda: len(told(app)) == 2, "the end of the outage is told")
        (failed,) = records(app, "journal_failed")
        assert failed["reason"] == reason
        assert "set data_dir" in failed["human"]
        assert CANARY not in json.dumps(list(records(app)))
