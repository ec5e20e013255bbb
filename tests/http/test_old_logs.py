"""Finished logs beyond the memory bound: read from the journal, byte for byte."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from orchestratord.app import Daemon
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.http.support import submit, task, wait_for


def small(folder: Path) -> LiveApp:
    return LiveApp(mock_settings(folder, retention={"log_bytes": 500}))


def bytes_of(session: VerifyingSession, task_id: str, after: int = 0) -> bytes:
    with session.events(task_id, last_event_id=after or None) as events:
        return b"".join(event.raw for event in events if event.id is not None)


def evicted(app: LiveApp, task_id: str) -> bool:
    return app.call(lambda: app.daemon.core.tasks[task_id].log.evicted)


def test_an_old_log_is_let_go_and_read_back_for_whoever_comes(tmp_path: Path) -> None:
    """Retention by time is kept while memory is bounded; a resume works as before (OC-CTRL-2026)."""
    with small(tmp_path) as app, app.session() as session:
        first = submit(session, max_tokens=20)
        app.settle()
        whole = bytes_of(session, first)
        submit(session, max_tokens=20)
        app.advance(11)
        wait_for(lambda: evicted(app, first), "the oldest log is evicted")
        assert app.call(lambda: app.daemon.core.tasks.log_bytes) <= 1200
        assert bytes_of(session, first) == whole
        assert whole.endswith(bytes_of(session, first, after=7))
        with session.events(first, last_event_id=22) as events:
            assert events.status == 204


def test_a_start_keeps_no_more_logs_than_may_be_in_memory(tmp_path: Path) -> None:
    """A journal has what a daemon finished in an hour: at once in memory, that could be more than there is."""
    with small(tmp_path) as app, app.session() as session:
        ids = [submit(session, max_tokens=20) for _ in range(3)]
        app.settle()
        before = [bytes_of(session, one) for one in ids]
    with small(tmp_path) as app, app.session() as session:
        assert [evicted(app, one) for one in ids] == [True] * 3
        assert app.call(lambda: app.daemon.core.tasks.log_bytes) == 0
        assert [bytes_of(session, one) for one in ids] == before
        assert [bytes_of(session, one, after=7) for one in ids] == [
            whole[whole.index(b"id: 8\n") :] for whole in before
        ]


def test_an_old_log_that_was_read_back_stays_until_its_reader_is_done(tmp_path: Path) -> None:
    """Between the reading back and the first byte nobody may let it go again: that reader would wait for ever."""
    with LiveApp(mock_settings(tmp_path, retention={"log_bytes": 0})) as app, app.session() as session:
        task_id = submit(session, max_tokens=20)
        app.settle()
        app.advance(11)
        wait_for(lambda: evicted(app, task_id), "the log is evicted")

        async def read_while_swept() -> tuple[bool, bytes, bool]:
            cursor = await app.daemon.streams.follow(task_id, None, None)
            assert cursor is not None
            await app.daemon.sweeps._evict()
            there = not cursor.task.log.evicted
            cursor.follow(lambda: None, lambda: None)
            data, over = cursor.take(), cursor.over
            cursor.close()
            await app.daemon.sweeps._evict()
            return there, data, over and cursor.task.log.evicted

        there, data, done = asyncio.run_coroutine_threadsafe(read_while_swept(), app._loop).result(5)
        assert there
        assert data.count(b"event: token") == 20
        assert done, "and is let go once it is"


def test_an_old_log_that_cannot_be_read_is_a_503(tmp_path: Path) -> None:
    """The journal is down: nothing hangs, nothing is shown wrong, and it works again afterwards."""
    broken: list[bool] = []

    def fault(point: str) -> None:
        if broken:
            raise sqlite3.OperationalError("disk I/O error")

    def archive(source: object) -> object:
        return Daemon._archive(daemons[0], source)  # type: ignore[arg-type]

    daemons: list[Daemon] = []
    journal = SqliteJournal(tmp_path / "journal.db", archive, fault=fault)  # type: ignore[arg-type]
    with LiveApp(mock_settings(tmp_path, retention={"log_bytes": 0}), journal=journal) as app, app.session() as session:
        daemons.append(app.daemon)
        task_id = submit(session, max_tokens=3)
        app.settle()
        app.advance(11)
        wait_for(lambda: evicted(app, task_id), "the log is evicted")
        broken.append(True)
        session.post("/v1/tasks", json=task())
        answer = session.get(f"/v1/tasks/{task_id}/stream")
        assert (answer.status_code, answer.json()["code"]) == (503, "STORAGE_UNAVAILABLE")
        broken.clear()
        wait_for(lambda: app.daemon.journal.healthy, "the journal is back")
        assert bytes_of(session, task_id).count(b"event: token") == 3
