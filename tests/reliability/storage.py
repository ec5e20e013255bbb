"""E: crashes, disks, files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import psutil
import pytest

from orchestratord.domain.facts import Admitted
from orchestratord.infra.journal.sqlite import SqliteJournal
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import submit, task, wait_for
from tests.ports.damage import trials
from tests.ports.journal_samples import admitted, archive
from tests.reliability.rows import Seen, program, row, tests
from tests.reliability.stage import all_end, daemon, installed, small_disk, works

program(
    "E1",
    "kill -9 under load, then every promise checked",
    "lost 0, findings 0",
    "tests.kills --seed 2 --count {}",
    5,
    200,
)
tests(
    "E2",
    "kill -9 at named points of a commit, a checkpoint and an artifact (reloads: I3)",
    "all of it or nothing",
    "ports/test_sqlite_journal.py::test_a_crash_at_a_commit_leaves_all_of_it_or_nothing",
    "ports/test_sqlite_journal.py::test_kill_9_loses_no_acknowledged_fact",
    "ports/test_artifact_store.py::test_a_crash_before_the_rename_leaves_nothing_visible",
)
tests(
    "E3", "a running task at a crash", "WORKER_RESET, never run again", "crash/test_kill9.py", "domain/test_recovery.py"
)
tests(
    "E4",
    "an event somebody saw, then a crash",
    "still there under its id (and see E1)",
    "crash/test_kill9.py::test_kills_at_random_moments",
    "domain/test_recovery.py::test_a_task_that_waits_again_shows_no_token_before_its_start_is_durable",
)


def _journaled(path: Path, tasks: int) -> list[Admitted]:
    """A journal that was not closed: all its commits are in the write-ahead log. What it acknowledged, in order."""
    code = f"""
import asyncio, os, sys
from pathlib import Path
from orchestratord.infra.journal.sqlite import SqliteJournal
from tests.ports.journal_samples import admitted, archive
async def body():
    journal = SqliteJournal(Path({str(path)!r}), archive)
    await journal.open()
    for order in range(1, {tasks} + 1):
        await journal.append(admitted(order))
    os._exit(0)
asyncio.run(body())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return [admitted(order) for order in range(1, tasks + 1)]


def _orders(path: Path) -> list[int]:
    async def body() -> list[int]:
        journal = SqliteJournal(path, archive)
        loaded = await journal.open()
        await journal.close()
        return [one.admitted.order for one in loaded]

    return asyncio.run(body())


@row(
    "E5",
    "the write-ahead log cut off at any byte: what a power cut leaves",
    "opens clean, a prefix of what was acknowledged",
    60,
    1_000,
)
def torn(size: int) -> Seen:
    """With `durability = "power"` nothing acknowledged is in the part that can be lost: each commit is flushed."""
    draw, shortest = Random(5), 10**9
    with TemporaryDirectory() as folder:
        path = Path(folder) / "j.db"
        _journaled(path, 40)
        database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
        for _ in range(size):
            cut = draw.randrange(len(log) + 1)
            torn_page = draw.randbytes(min(512, len(log) - cut)) if draw.random() < 0.5 else b""
            path.write_bytes(database)
            Path(f"{path}-wal").write_bytes(log[:cut] + torn_page)
            found = _orders(path)
            assert found == list(range(1, len(found) + 1)), found
            shortest = min(shortest, len(found))
    return Seen(size, f"all open; always the first n of 40 tasks, n from {shortest}; the whole log gives 40")


BACK_S = 5.0


def outage(process: DaemonProcess, broken: Callable[[], object], mended: Callable[[], object]) -> str:
    """What every outage of the journal looks like, and its end."""
    with process.session() as session:
        running = submit(session, max_tokens=200, on_disconnect="continue")
        queued = submit(session)
        broken()

        def refusing() -> bool:
            answer = session.post("/v1/tasks", json=task())
            assert answer.status_code in (202, 429, 503), answer.text
            return answer.status_code == 503 and bool(answer.json()["code"] == "STORAGE_UNAVAILABLE")

        wait_for(refusing, "admission says that the disk is broken", 30)
        assert session.get("/readyz").status_code == 503
        failed = process.says("journal_failed")
        assert failed["level"] == "error", failed
        assert failed["reason"].isupper(), failed
        assert "set data_dir" in failed["human"], failed
        assert session.get("/healthz").status_code == 200
        assert session.get(f"/v1/tasks/{running}").status_code == 200
        answer = session.post(f"/v1/tasks/{queued}/cancel")
        assert answer.status_code in (204, 503), answer.text
        assert session.get(f"/v1/tasks/{queued}").json()["state"] in ("canceled", "ended")
        mended()
        began = time.monotonic()
        wait_for(lambda: session.get("/readyz").status_code == 200, "ready again by itself", 30)
        took = time.monotonic() - began
        assert took <= BACK_S, f"ready {took:.1f} s after"
        assert process.says("journal_recovered")["outage_ms"] >= 0
        works(session)
        before = session.get(f"/v1/tasks/{queued}").json()
    process.kill()
    with DaemonProcess(process.config) as restarted, restarted.up().session() as session:
        after = session.get(f"/v1/tasks/{queued}").json()
    kept = (before["state"], before["last_event_id"]) == (after["state"], after["last_event_id"])
    assert kept, f"the end told in the outage was {before}, after a kill -9 it is {after}"
    return f"as said; ready {took:.2f} s after; a kill -9 forgets nothing"


OUTAGE = "503 STORAGE_UNAVAILABLE, not ready, reads and cancels work; back by itself <= 5 s; nothing lost"


@row("E6", "3 MB tmpfs full, then room again, then kill -9", OUTAGE, 1, 5, timed=True)
def disk_full(size: int) -> Seen:
    figure = ""
    for _ in range(size):
        with TemporaryDirectory() as folder, small_disk(Path(folder)) as disk:
            filler = disk / "filler"

            def fill(filler: Path = filler) -> None:
                file = os.open(filler, os.O_WRONLY | os.O_CREAT)
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file, bytes(4096))
                os.close(file)

            with daemon(data=disk / "data", token_ms=5) as process:
                figure = outage(process, fill, filler.unlink)
    return Seen(size, figure)


def _file_limit(process: DaemonProcess, most: int) -> None:
    psutil.Process(process.process.pid).rlimit(psutil.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@row("E16", "no file may outgrow 64 KiB (RLIMIT_FSIZE), then they may, then kill -9", OUTAGE, 1, 5, timed=True)
def file_size(size: int) -> Seen:
    figure = ""
    for _ in range(size):
        with daemon(journal=True, token_ms=5) as process:
            figure = outage(
                process, lambda: _file_limit(process, 64 << 10), lambda: _file_limit(process, resource.RLIM_INFINITY)
            )
    return Seen(size, figure)


@row("E7", "EIO on every write and fsync (strace), then none, then kill -9", OUTAGE, 1, 5, timed=True)
def input_output_error(size: int) -> Seen:
    figure, calls = "", "pwrite64,fdatasync,fsync"
    command = [installed("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
    for _ in range(size):
        with daemon(journal=True, token_ms=5) as process, contextlib.ExitStack() as stack:
            pid = process.process.pid

            def trace(pid: int = pid, stack: contextlib.ExitStack = stack) -> None:
                tracer = subprocess.Popen(
                    [*command, "-e", f"inject={calls}:error=EIO", "-p", str(pid)], stderr=subprocess.DEVNULL
                )
                stack.callback(tracer.wait, 10)
                stack.callback(tracer.send_signal, signal.SIGINT)
                status = Path(f"/proc/{pid}/status")
                wait_for(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace is attached", 10)

            figure = outage(process, trace, stack.close)
    return Seen(size, figure)


@row(
    "E8", "another program wants the journal, before and while the daemon runs", "no 500, no `database is locked`", 1, 5
)
def locked(size: int) -> Seen:
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        config = write_config(Path(folder), data=data, token_ms=0)
        for _ in range(size):
            with DaemonProcess(config) as daemon, daemon.up().session() as session:
                other = sqlite3.connect(data / "journal.db", timeout=0.1)
                with contextlib.closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")
                ids = [submit(session) for _ in range(5)]
                all_end(session, ids)
                daemon.signal()
                assert daemon.ended() == 0
            assert "locked" not in daemon.output()
            holder = sqlite3.connect(data / "journal.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            refused = DaemonProcess(config)
            assert refused.ended() == 69
            assert "Traceback" not in refused.output()
            holder.close()
        with DaemonProcess(config) as daemon, daemon.up().session() as session:
            assert session.post("/v1/tasks", json=task()).status_code == 202
    return Seen(
        size, "the other is kept out while it runs; a locked journal is exit 69 with the reason; then it starts"
    )


@row("E9", "a byte flipped, bytes overwritten, the end cut off, in the journal", "wrong bytes served 0", 30, 1_000)
def damaged(size: int) -> Seen:
    with TemporaryDirectory() as folder:
        found = trials(Path(folder), size)
    assert found["WRONG"] == 0, found
    return Seen(size, f"{found['refused']:,} refused at the start, {found['unharmed']:,} read as written, 0 wrong")


tests(
    "E10",
    "kill between temporary file, flush, rename and directory flush",
    "absent or complete",
    "ports/test_artifact_store.py::test_a_crash_before_the_rename_leaves_nothing_visible",
    "ports/test_artifact_store.py::test_a_write_that_fails_leaves_nothing_and_can_be_repeated",
)
tests(
    "E11",
    "two daemons on one data directory",
    "the second refuses and says why",
    "http/test_lifecycle.py::test_a_data_directory_has_one_daemon",
    "http/test_lifecycle.py::test_a_second_daemon_on_a_data_directory_does_not_run",
    "ports/test_sqlite_journal.py::test_a_second_daemon_on_the_same_store_is_refused",
)
tests(
    "E12",
    "data of older versions, and of a newer one",
    "brought up to date, or refused",
    "ports/test_sqlite_journal.py::test_a_store_that_cannot_be_used_says_why",
)


@row("E14", "a read-only disk at the start", "exit 69 with file and reason")
def read_only(_: int) -> Seen:
    with TemporaryDirectory() as folder, small_disk(Path(folder), "ro") as disk:
        refused = DaemonProcess(write_config(Path(folder), data=disk / "data"))
        code, said = refused.ended(), refused.output().strip().splitlines()[-1]
        assert code == 69, (code, said)
        assert str(disk / "data" / "journal.db") in said, said
        assert "Read-only file system" in said, said
    return Seen(1, "exit 69, the journal's path and `Read-only file system`")


@row("E15", "no room for artifacts, then room", "503, nothing partial; stored after")
def artifacts_full(_: int) -> Seen:
    with daemon(journal=True) as process, process.session() as session:
        body = {"kind": "other", "content": {"text": "x" * 20_000}}
        _file_limit(process, 4096)
        answer = session.post("/v1/artifacts", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "STORAGE_UNAVAILABLE"), answer.text
        assert session.get("/v1/artifacts").json()["items"] == []
        _file_limit(process, resource.RLIM_INFINITY)
        stored = session.post("/v1/artifacts", json=body).json()
        assert session.get(f"/v1/artifacts/{stored['id']}").json()["content"] == body["content"]
    return Seen(1, "503 STORAGE_UNAVAILABLE, nothing partial; the same artifact is stored once there is room")


program(
    "E13",
    "transcripts dropped while clients store the same ones",
    "lost 0",
    "tests.collect --seed 1 --count {}",
    200,
    10_000,
)
