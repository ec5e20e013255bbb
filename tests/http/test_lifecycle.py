"""Starting and stopping a real process: signals, a busy port, a data directory that is taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestratord.app import Daemon
from orchestratord.testing.live import mock_settings
from orchestratord.testing.session import EventStream, VerifyingSession
from tests.http.daemon import DaemonProcess, free_port, write_config
from tests.http.support import RawConnection, submit, task

GRACE_S = 1.0
LONG_GRACE_MS = 600_000  # longer than any test's patience: a daemon that waits for it is found out


def first_token(events: EventStream) -> None:
    while next(events).name != "token":
        pass


def launch(tmp_path: Path, *, data: bool, **config: object) -> DaemonProcess:
    file = write_config(tmp_path, data=tmp_path / "data" if data else None, grace_ms=int(GRACE_S * 1000), **config)  # type: ignore[arg-type]
    return DaemonProcess(file)


# -- SIGTERM -------------------------------------------------------------------------------------------------
def test_in_memory_every_stream_ends_with_its_terminal_event(tmp_path: Path) -> None:
    """Running or queued: nothing will bring the tasks back, so each is told its end."""
    with launch(tmp_path, data=False) as daemon, daemon.up().session() as session:
        ids = [submit(session, max_tokens=400, ctx=4000) for _ in range(4)]
        streams = [session.events(task_id) for task_id in ids]
        first_token(streams[0])
        daemon.signal()
        for stream in streams:
            events = list(stream)  # a stream that breaks off raises
            assert events[-1].name == "error"
            assert events[-1].data["code"] == "WORKER_RESET"
            assert events[-1].data["retriable"] is True
        assert daemon.ended() == 0, daemon.output()
        assert "Traceback" not in daemon.output()


def test_what_can_finish_within_the_grace_finishes(tmp_path: Path) -> None:
    with launch(tmp_path, data=False) as daemon, daemon.up().session() as session:
        task_id = submit(session, max_tokens=20)
        with session.events(task_id) as events:
            first_token(events)
            daemon.signal()
            assert list(events)[-1].name == "end"
        assert daemon.ended() == 0


@contextlib.contextmanager
def raw_stream(session: VerifyingSession, task_id: str) -> Iterator[RawConnection]:
    with RawConnection(session.base_url) as connection:
        connection.get(f"/v1/tasks/{task_id}/stream")
        assert connection.head()[0] == 200
        yield connection


def test_on_disk_queued_tasks_run_after_the_restart(tmp_path: Path) -> None:
    with launch(tmp_path, data=True) as daemon, daemon.up().session() as session:
        running = submit(session, max_tokens=400, ctx=4000)
        queued = [submit(session, max_tokens=3) for _ in range(3)]
        with session.events(running) as events:
            first_token(events)
            daemon.signal()
            assert list(events)[-1].data["code"] == "WORKER_RESET"
        assert daemon.ended() == 0, daemon.output()
    with DaemonProcess(tmp_path / "orchestratord.toml") as daemon, daemon.up().session() as session:
        for task_id in queued:
            with session.events(task_id, last_event_id=1) as events:
                assert list(events)[-1].name == "end"
        assert session.get(f"/v1/tasks/{running}").json()["error"]["code"] == "WORKER_RESET"


def test_on_disk_a_waiting_reader_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Its task survives: the stream ends properly, without a terminal event, and says why."""
    with launch(tmp_path, data=True) as daemon, daemon.up().session() as session:
        running, queued = submit(session, max_tokens=400, ctx=4000), submit(session)
        with session.events(running) as events:
            first_token(events)
            with raw_stream(session, queued) as stream:
                daemon.signal()
                body = b"".join(stream.chunks())  # fails unless the body has its proper end
        assert body.startswith(b"retry: ")
        assert body.count(b"event: started") == 1
        assert body.count(b'"waiting_for":"restart"') == 1
        assert body.endswith(b"retry: 3000\n\n")
        assert b"event: end" not in body
        assert b"event: error" not in body
        assert daemon.ended() == 0, daemon.output()


def test_a_stopping_daemon_takes_no_work_and_says_so(tmp_path: Path) -> None:
    """A connection that is open already is answered 503 until the end."""
    with launch(tmp_path, data=False) as daemon, daemon.up().session() as session:
        running = submit(session, max_tokens=400, ctx=4000)
        with session.events(running) as events:
            first_token(events)
            daemon.signal()
            statuses = []
            while (answer := session.get("/readyz")).status_code == 200:
                statuses.append(answer.status_code)
            assert answer.status_code == 503
            assert "shutting down" in answer.text
            refusal = session.post("/v1/tasks", json=task())
            assert (refusal.status_code, refusal.json()["code"]) == (503, "OVERLOADED")
            list(events)
        assert daemon.ended() == 0


def hurry(daemon: DaemonProcess, session: VerifyingSession) -> None:
    """Two signals, the second one once the first has been noticed."""
    daemon.signal()
    while session.get("/readyz").status_code == 200:
        pass
    daemon.signal()


@pytest.mark.parametrize("data", [False, True], ids=["memory", "sqlite"])
def test_a_second_signal_does_not_wait_for_the_grace(tmp_path: Path, data: bool) -> None:
    file = write_config(tmp_path, data=tmp_path / "data" if data else None, grace_ms=LONG_GRACE_MS)
    with DaemonProcess(file) as daemon, daemon.up().session() as session:
        running = submit(session, max_tokens=3000, ctx=4000)
        with raw_stream(session, running) as stream:
            stream.until(b"event: token")
            hurry(daemon, session)
            assert daemon.ended() == 0


@pytest.mark.parametrize("data", [False, True], ids=["memory", "sqlite"])
def test_a_second_signal_leaves_no_stream_without_an_end(tmp_path: Path, data: bool) -> None:
    file = write_config(tmp_path, data=tmp_path / "data" if data else None, grace_ms=LONG_GRACE_MS)
    with (
        DaemonProcess(file) as daemon,
        daemon.up().session() as session,
        raw_stream(session, submit(session, max_tokens=3000, ctx=4000)) as stream,
    ):
        stream.until(b"event: token")
        hurry(daemon, session)
        stream.until(b"\r\n")
        assert b"event: error" in b"".join(stream.chunks())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_daemon_stops_at_once(tmp_path: Path, number: int) -> None:
    with DaemonProcess(write_config(tmp_path, data=tmp_path / "data", grace_ms=LONG_GRACE_MS)) as daemon:
        daemon.up()
        daemon.signal(number)
        assert daemon.ended() == 0
        assert "Traceback" not in daemon.output()


def test_idle_connections_do_not_hold_it_up(tmp_path: Path) -> None:
    with DaemonProcess(write_config(tmp_path, data=None, grace_ms=LONG_GRACE_MS)) as daemon:
        daemon.up()
        with RawConnection(daemon.url) as silent, RawConnection(daemon.url) as idle:
            idle.get("/healthz")
            assert idle.answer().status == 200
            daemon.signal()
            assert daemon.ended() == 0
            assert silent.closed()
            assert idle.closed()


# -- starting ------------------------------------------------------------------------------------------------
def one_line(output: str) -> str:
    """What was said besides log records: one line, for people."""
    said = [line for line in output.splitlines() if not line.startswith("{")]
    assert len(said) == 1, output
    assert said[0].startswith("orchestratord: ")
    return said[0]


def test_a_data_directory_has_one_daemon(tmp_path: Path) -> None:
    """The second one refuses, names the directory and the process, and harms nothing."""
    with launch(tmp_path, data=True) as first, first.up().session() as session:
        task_id = submit(session)
        with DaemonProcess(tmp_path / "orchestratord.toml") as second:
            assert second.ended() not in (0, 1)
            said = one_line(second.output())
        assert str(tmp_path / "data") in said
        assert str(first.process.pid) in said
        with session.events(task_id) as events:
            assert list(events)[-1].name == "end"


def test_a_second_daemon_on_a_data_directory_does_not_run(tmp_path: Path) -> None:
    with launch(tmp_path, data=True) as first, first.up().session() as session:
        with DaemonProcess(tmp_path / "orchestratord.toml") as second:
            assert second.ended() != 0
        task_id = submit(session)
        with session.events(task_id) as events:
            assert list(events)[-1].name == "end"


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with launch(tmp_path, data=False) as first:
        first.up()
        with DaemonProcess(tmp_path / "orchestratord.toml", port=first.port) as second:
            assert second.ended() != 0
            assert f"127.0.0.1:{first.port}" in one_line(second.output())


def test_the_message_of_a_busy_port_gives_the_reason(tmp_path: Path) -> None:
    with launch(tmp_path, data=False) as first:
        first.up()
        with DaemonProcess(tmp_path / "orchestratord.toml", port=first.port) as second:
            second.ended()
            assert "in use" in second.output()


def test_port_0_picks_one_and_says_which(tmp_path: Path) -> None:
    with DaemonProcess(write_config(tmp_path, data=None), port=0) as daemon:
        daemon.port = int(daemon.says("listening")["url"].rpartition(":")[2])
        assert daemon.port > 0
        assert daemon.up().session().get("/healthz").status_code == 200


def test_no_configuration_is_needed(tmp_path: Path) -> None:
    """Zero config: it serves, has no pool, and is not ready because of that."""
    with DaemonProcess(
        None, cwd=tmp_path, env={"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    ) as daemon:
        with daemon.up("/healthz").session() as session:
            answer = session.get("/readyz")
            assert answer.status_code == 503
            assert "no pool" in answer.text
            assert session.get("/v1/pools").json() == {"items": [], "next_cursor": None}
        daemon.signal()
        assert daemon.ended() == 0
    journal = tmp_path / "state" / "orchestratord" / "journal.db"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.parent.stat().st_mode) == 0o700


def test_a_data_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "data").write_text("in the way")
    with launch(tmp_path, data=True) as daemon:
        assert daemon.ended() != 0
        assert "Traceback" not in daemon.output()


@pytest.mark.parametrize(
    ("in_the_way", "says"), [("artifacts", "cannot open the artifacts"), ("journal.db.lock", "cannot open the journal")]
)
def test_what_is_in_the_way_of_a_start_is_said_so(tmp_path: Path, in_the_way: str, says: str) -> None:
    """69 and one line that names it, whichever of the stores it is."""
    (tmp_path / "data").mkdir(mode=0o700)
    blocked = tmp_path / "data" / in_the_way
    if in_the_way == "artifacts":
        blocked.write_text("a file where a directory should be")
    else:
        blocked.mkdir()
    with launch(tmp_path, data=True) as daemon:
        assert daemon.ended() == 69
        said = one_line(daemon.output())
    assert (says in said, str(tmp_path / "data") in said) == (True, True), said


def test_a_bug_that_ends_the_start_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is not lost: the server shows nothing of it."""
    log: list[Any] = []
    daemon = Daemon(mock_settings(), log=log.append)

    async def broken() -> None:
        raise RuntimeError("nobody foresaw this")

    async def serve() -> None:
        async with daemon._lifespan(None):
            raise AssertionError("it has started")

    monkeypatch.setattr(daemon.journal, "open", broken)
    with pytest.raises(RuntimeError):
        asyncio.run(serve())
    assert [(line["event"], line["level"]) for line in log] == [("start_failed", "error")]
    assert isinstance(log[0]["exc_info"], RuntimeError)


def test_the_mock_needs_to_be_allowed(tmp_path: Path) -> None:
    file = write_config(tmp_path, data=None)
    file.write_text(file.read_text().replace("allow_mock = true", ""))
    with DaemonProcess(file) as daemon:
        assert daemon.ended() == 78
        assert "allow_mock" in one_line(daemon.output())


def test_the_log_goes_to_stderr_one_json_object_a_line(tmp_path: Path) -> None:
    with launch(tmp_path, data=False) as daemon, daemon.up().session() as session:
        submit(session)
        daemon.signal()
        assert daemon.ended() == 0
        records = [json.loads(line) for line in daemon.output().splitlines()]
        assert {"daemon_started", "replica_ready", "task_admitted", "daemon_stopped"} <= {r["event"] for r in records}


def test_a_port_can_be_taken_again_at_once(tmp_path: Path) -> None:
    """A restart must not wait for old connections to be forgotten."""
    port = free_port()
    file = write_config(tmp_path, data=None)
    for _ in range(2):
        with DaemonProcess(file, port=port) as daemon, daemon.up().session() as session:
            assert session.get("/healthz").status_code == 200
            daemon.signal()
            assert daemon.ended() == 0
