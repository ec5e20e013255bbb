"""Retention of transcripts in the running daemon (OD-40)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.services import retention
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import records, submit, wait_for

BRIEF: dict[str, Any] = {"tasks_ms": 1_000, "transcripts_ms": 60_000, "sweep_ms": 10_000}


@contextmanager
def live(path: Path | None = None, *, store: Any = None, **keep: Any) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    """Tasks and sessions are gone after 10 s, transcripts may go after a minute."""
    settings = mock_settings(path, retention={**BRIEF, **keep}, sessions={"ttl_ms": 1_000})
    parts = {"store": store} if store is not None else {}
    with LiveApp(settings, **parts) as app, app.session() as session:
        yield app, session


def transcript_of(app: LiveApp, session: VerifyingSession, task_id: str | None = None, **fields: Any) -> str:
    task_id = task_id or submit(session, **fields)
    app.settle()
    found: str = session.get(f"/v1/tasks/{task_id}").json()["transcript_id"]
    return found


def listed(session: VerifyingSession) -> list[str]:
    return [item["id"] for item in session.get("/v1/artifacts", params={"limit": 200}).json()["items"]]


def metric(session: VerifyingSession, line: str) -> float:
    found = [row.rpartition(" ")[2] for row in session.get("/metrics").text.splitlines() if row.startswith(line)]
    return float(found[0]) if found else 0.0


def test_transcripts_go_when_they_are_old_and_not_before() -> None:
    """OD-40"""
    with live() as (app, session):
        first = transcript_of(app, session)
        app.advance(30)
        second = transcript_of(app, session)
        app.advance(28)
        assert set(listed(session)) == {first, second}
        app.advance(13)
        assert listed(session) == [second]
        gone = session.get(f"/v1/artifacts/{first}")
        assert (gone.status_code, gone.json()["code"]) == (404, "NOT_FOUND")
        assert "limited time" in gone.json()["message"]
        assert metric(session, 'orchestratord_transcripts_dropped_total{reason="age"}') == 1
        (told,) = records(app, "transcripts_dropped")
        assert (told["by_age"], told["by_size"]) == (1, 0)
        app.advance(30)
        assert listed(session) == []
        assert metric(session, 'orchestratord_artifact_bytes{origin="automatic"}') == 0


def test_the_oldest_go_while_they_are_too_many_bytes() -> None:
    """OD-40"""
    with live(transcripts_ms=10**9, transcripts_bytes=10_000) as (app, session):
        every = []
        for _ in range(10):
            every.append(transcript_of(app, session))
            app.advance(0.5)
        size = metric(session, 'orchestratord_artifact_bytes{origin="automatic"}') / 10
        assert size > 1_000
        app.advance(25)
        assert listed(session) == every[::-1][: int(10_000 / size)]
        dropped = metric(session, 'orchestratord_transcripts_dropped_total{reason="size"}')
        assert dropped == 10 - int(10_000 / size)


def test_what_the_task_or_its_session_still_shows_stays() -> None:
    """OD-40: a `transcript_id` that is shown leads somewhere."""
    with live(tasks_ms=200_000, transcripts_bytes=0) as (app, session):
        task_id = submit(session)
        found = transcript_of(app, session, task_id)
        app.advance(150)
        assert session.get(f"/v1/artifacts/{found}").status_code == 200
        app.advance(80)
        assert session.get(f"/v1/tasks/{task_id}").status_code == 404
        assert listed(session) == []
    with live(transcripts_bytes=0) as (app, session):
        found = transcript_of(app, session)
        session_id = next(tag for tag in session.get(f"/v1/artifacts/{found}").json()["tags"] if "session:" in tag)[8:]
        app.call(app.engine().hold)
        running = submit(session, session_id=session_id)  # keeps its session, and only that
        app.advance(100)
        assert listed(session) == [found]
        app.call(app.engine().release_hold)
        app.settle()
        assert session.get(f"/v1/tasks/{running}").json()["state"] == "ended"
        app.advance(30)
        assert listed(session) == []


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_what_a_client_stored_and_its_parent_stay(tmp_path: Path, kind: str) -> None:
    """OD-40"""
    with live(tmp_path if kind == "files" else None, transcripts_bytes=0) as (app, session):
        named, copied, neither = (transcript_of(app, session) for _ in range(3))
        body = session.get(f"/v1/artifacts/{copied}").json()
        again = {field: body[field] for field in ("kind", "content", "tags", "metadata")}
        assert session.post("/v1/artifacts", json=again).json()["id"] == copied
        child = session.post("/v1/artifacts", json={"kind": "summary", "content": "x", "parent": named}).json()["id"]
        # By a thread, if it is a file, once another has stored it: time passes until then.
        wait_for(lambda: app.advance(100) or [*records(app, "transcripts_dropped")], "one is dropped")
        assert set(listed(session)) == {named, copied, child}
        assert session.get(f"/v1/artifacts/{copied}").json() == body
        assert session.get(f"/v1/artifacts/{neither}").status_code == 404
        assert metric(session, 'orchestratord_artifact_bytes{origin="client"}') > 0


def test_a_start_sweeps_at_once(tmp_path: Path) -> None:
    """OD-40"""
    with live(tmp_path, sweep_ms=600_000) as (app, session):
        task_id = submit(session)
        transcript_of(app, session, task_id)

        def forgotten() -> bool:  # not before a thread has stored its transcript, for which no time passes here
            app.advance(1)
            return session.get(f"/v1/tasks/{task_id}").status_code == 404

        wait_for(forgotten, "the task is forgotten")
        assert len(listed(session)) == 1
    with live(tmp_path, transcripts_bytes=0, sweep_ms=600_000) as (app, session):
        wait_for(lambda: [*records(app, "transcripts_dropped")], "the transcript is dropped")
        assert listed(session) == []


class Stubborn(MemoryArtifacts):
    """Does not let go of its oldest."""

    attempts = 0

    async def drop(self, artifact_id: str) -> bool:
        if artifact_id == min(self._index._keys)[1]:
            self.attempts += 1
            raise OSError(30, "Read-only file system")
        return await super().drop(artifact_id)


def test_one_that_cannot_be_dropped_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more of them than one page."""
    monkeypatch.setattr(retention, "BATCH", 2)
    store = Stubborn()
    with live(store=store, transcripts_bytes=0) as (app, session):
        every = []
        for _ in range(6):
            every.append(transcript_of(app, session))
            app.advance(0.5)
        app.advance(30)
        assert listed(session) == every[:1]
        assert 1 < store.attempts < 5, "once in every sweep"
        assert next(records(app, "retention_failed"))["error"].endswith("Read-only file system")


def test_capabilities_tell_the_retention() -> None:
    with live(transcripts_bytes=77) as (_, session):
        limits = session.get("/v1/capabilities").json()["limits"]
        assert (limits["transcript_retention_ms"], limits["transcript_retention_bytes"]) == (60_000, 77)
        assert limits["max_artifact_bytes"] == 64 << 20
