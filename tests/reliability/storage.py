"""E: crashes, disks, files."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from orchestratord.domain.facts import Admitted
from orchestratord.infra.journal.sqlite import SqliteJournal
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import submit, task, wait_for
from tests.ports.journal_samples import admitted, archive
from tests.reliability.rows import Seen, fault, program, row, tests

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


fault(
    "E6",
    "E6 disk full",
    "3 MB tmpfs full, then room again, then kill -9",
    "503, not ready, reads work; back <= 5 s; nothing lost",
)
fault("E7", "E7 EIO on write and fsync", "EIO on every write and fsync (strace)", "no acknowledgement; back by itself")


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
                for task_id in ids:
                    wait_for(
                        lambda task_id=task_id: session.get(f"/v1/tasks/{task_id}").json()["state"] == "ended",
                        "it ends",
                    )
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
    from tests.ports.damage import trials

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
fault("E14", "E read-only disk at start", "a read-only disk at the start", "exit 69 with file and reason")
fault("E15", "E artifacts on a full disk", "no room for artifacts, then room", "503, nothing partial; stored after")
program(
    "E13",
    "transcripts dropped while clients store the same ones",
    "lost 0",
    "tests.collect --seed 1 --count {}",
    200,
    10_000,
)
