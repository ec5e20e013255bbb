"""What only the journal on disk has to do: survive kills and broken disks, stay private, keep others out."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestratord.domain import recovery
from orchestratord.domain.facts import Archived, Fact, Forgotten, Frames, JournaledTask, TranscriptSource
from orchestratord.infra.journal import book, codec, database, sqlite
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import Artifact, Encoded, JournalUnavailable
from orchestratord.wire import sse
from tests.ports.journal_samples import GUARD_S, admitted, archive, chat, eventually, finished, started, within

HERE = Path(__file__).parent


class Fault:
    """Called at the journal's named points: raises while `error` is set, counts, and can hold the writer."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.point = "before_commit"
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def __call__(self, point: str) -> None:
        self.seen.append(point)
        if point == self.point:
            self.reached.set()
            assert self.gate.wait(GUARD_S)
            if self.error is not None:
                raise self.error


async def load(path: Path) -> list[JournaledTask]:
    journal = SqliteJournal(path, archive)
    tasks = await journal.open()
    await journal.close()
    return tasks


async def failed(journal: SqliteJournal, *facts: Fact) -> None:
    tickets = [journal.append(fact) for fact in facts]
    for ticket in tickets:
        with pytest.raises(JournalUnavailable):
            await within(ticket)


def files(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


# -- commits and outages -----------------------------------------------------------------------------------
def test_nothing_is_acknowledged_before_its_commit(tmp_path: Path) -> None:
    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        fault.reached.clear()
        fault.gate.clear()
        first = journal.append(admitted(1))
        assert await asyncio.to_thread(fault.reached.wait, GUARD_S)
        crowd = [journal.append(admitted(number)) for number in range(2, 50)]
        await asyncio.to_thread(int)  # the loop has turned: a hasty acknowledgement would be here
        assert not any(ticket.done() for ticket in (first, *crowd))
        commits = fault.seen.count("before_commit")
        fault.gate.set()
        for ticket in (first, *crowd):
            await within(ticket)
        assert fault.seen.count("before_commit") == commits + 1  # the crowd shared one
        await journal.close()

    asyncio.run(body())


def test_what_nobody_waits_for_goes_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE_S", 3600.0)

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        await within(journal.append(admitted(1)))
        await within(journal.append(finished("task-1", b"")))
        fault.reached.clear()
        fault.gate.clear()
        busy = journal.append(admitted(2))
        assert await asyncio.to_thread(fault.reached.wait, GUARD_S)
        behind = journal.append(Archived(("task-1",)))  # neither the end of a batch brings it on
        fault.gate.set()
        await within(busy)
        commits = fault.seen.count("before_commit")
        alone = journal.append(Archived(("no",)))  # nor a turn of the loop
        await within(journal.log("task-1"))  # which the writer answers after what it has been given
        assert (behind.done(), alone.done(), fault.seen.count("before_commit")) == (False, False, commits)
        await within(journal.append(admitted(3)))
        assert behind.done()
        assert alone.done()
        assert fault.seen.count("before_commit") == commits + 1
        last = journal.append(Forgotten("task-1"))
        await journal.close()
        assert last.done()
        assert [task.admitted.order for task in await load(tmp_path / "j.db")] == [2, 3]

    asyncio.run(body())


def test_what_nobody_waits_for_goes_alone_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE_S", 0.001)

    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        await journal.open()
        await within(journal.append(admitted(1)))
        for _ in range(2):  # the second has a timer of its own
            await within(journal.append(Archived(("task-1",))))
        await journal.close()

    asyncio.run(body())


def test_a_failed_commit_fails_everything_until_a_write_succeeds(tmp_path: Path) -> None:
    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        for fact in (admitted(1), admitted(2), Frames("task-1", b"kept")):
            await within(journal.append(fact))

        fault.error = sqlite3.OperationalError("disk I/O error")
        await failed(journal, admitted(3), Frames("task-1", b"lost"), finished("task-2"))
        assert not journal.healthy
        assert journal.backlog == 0
        late = journal.append(started("task-1"))
        assert late.done()
        with pytest.raises(JournalUnavailable, match="disk I/O error"):
            late.result()
        failures = fault.seen.count("before_commit")
        await eventually(lambda: fault.seen.count("before_commit") >= failures + 2)  # probes that fail as well
        assert not journal.healthy

        fault.error = None
        await eventually(lambda: journal.healthy)
        for fact in (admitted(4), Frames("task-1", b"would not connect"), Frames("task-2", b"fine")):
            await within(journal.append(fact))
        await journal.close()
        tasks = await load(tmp_path / "j.db")
        assert [(task.admitted.order, task.frames) for task in tasks] == [(1, b"kept"), (2, b"fine"), (4, b"")]
        assert [task.finished or task.started for task in tasks] == [None] * 3

    asyncio.run(body())


def test_facts_that_wait_behind_a_failing_commit_fail_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        fault.reached.clear()
        fault.gate.clear()
        fault.error = OSError(5, "Input/output error")
        order: list[int] = []
        first = journal.append(admitted(1))
        first.add_done_callback(lambda _: order.append(1))
        assert await asyncio.to_thread(fault.reached.wait, GUARD_S)
        second = journal.append(started("task-1"))
        second.add_done_callback(lambda _: order.append(2))
        fault.gate.set()
        for ticket in (first, second):
            with pytest.raises(JournalUnavailable):
                await within(ticket)
        assert order == [1, 2]
        await journal.close()  # in the middle of the outage
        assert await load(tmp_path / "j.db") == []

    asyncio.run(body())


def test_a_commit_of_unknown_outcome_is_not_acknowledged_and_can_be_repeated(tmp_path: Path) -> None:
    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(1, "same", prompt="the first attempt"))
        fault.error = None
        await eventually(lambda: journal.healthy)
        await within(journal.append(admitted(2, "same")))
        await journal.close()
        assert [task.admitted for task in await load(tmp_path / "j.db")] == [admitted(2, "same")]
        assert b"the first attempt" not in files(tmp_path / "j.db")

    asyncio.run(body())


def test_what_a_failed_commit_left_all_the_same_is_gone_once_writes_work(tmp_path: Path) -> None:
    """Its admissions were refused: no restart may bring them back. An end stays, for the prompt went with it."""

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        await within(journal.append(admitted(1)))
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(2, prompt="REFUSED" * 200), started("task-2"), finished("task-1", b"frames"))
        fault.error = None
        await eventually(lambda: journal.healthy)
        await within(journal.append(admitted(3, prompt="x" * 3000)))
        await journal.close()
        tasks = await load(tmp_path / "j.db")
        assert [(task.admitted.order, task.finished is not None) for task in tasks] == [(1, True), (3, False)]
        assert tasks[1].admitted == admitted(3, prompt="x" * 3000)
        assert b"REFUSED" not in files(tmp_path / "j.db")

    asyncio.run(body())


def test_what_a_failed_commit_left_is_gone_if_the_journal_closes_in_its_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its admissions were refused: the next start may not take them for accepted."""
    monkeypatch.setattr(sqlite, "RETRY_S", (60.0, 60.0))

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        await within(journal.append(admitted(1)))
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(2))
        fault.error = None
        await within(journal.close())
        assert [task.admitted.order for task in await load(tmp_path / "j.db")] == [1]

    asyncio.run(body())


def test_who_is_told_of_a_failure_hears_of_it_before_new_facts_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the loop was busy for all of the outage: what failed is appended again before anything new."""
    monkeypatch.setattr(sqlite, "RETRY_S", (0.0, 0.0))

    async def body() -> None:
        fault, told = Fault(), threading.Event()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        tell = journal._tell

        def telling(callback: Callable[..., object], *arguments: object) -> None:
            tell(callback, *arguments)
            if journal._restore in (callback, *arguments):
                told.set()

        monkeypatch.setattr(journal, "_tell", telling)
        heard: list[str] = []
        journal.watch(lambda outage: heard.append("outage" if outage else "over"))
        fault.reached.clear()
        fault.gate.clear()
        fault.error = OSError(5, "Input/output error")
        journal.append(admitted(1)).add_done_callback(lambda _: heard.append("failed"))
        assert await asyncio.to_thread(fault.reached.wait, GUARD_S)
        fault.gate.set()
        while journal._database._doubt is None:  # the commit has failed, and now the disk is well again
            pass
        fault.error = None
        assert told.wait(GUARD_S), "the loop does nothing else meanwhile"
        await eventually(lambda: "over" in heard)
        assert heard == ["outage", "failed", "over"]
        await journal.close()

    asyncio.run(body())


def test_an_outage_makes_no_transcripts_anew(tmp_path: Path) -> None:
    """Those that wait may be many, and the same disk may be why they do."""

    async def body() -> None:
        fault, made = Fault(), []
        journal = SqliteJournal(tmp_path / "j.db", lambda source: made.append(source) or archive(source), fault=fault)
        await journal.open()
        for fact in (admitted(1), finished("task-1", b"frames")):
            await within(journal.append(fact))
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(2))
        fault.error = None
        await eventually(lambda: journal.healthy)
        assert len(made) == 1
        waiting = await within(journal.transcript("task-1"))
        assert waiting is not None
        await journal.close()

    asyncio.run(body())


def test_a_start_hands_over_no_more_transcripts_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have what a list shows of them, and the rest when it is asked for."""

    def text(source: TranscriptSource) -> Artifact:
        return replace(archive(source), content=Encoded(b'"%b"' % (b"x" * 98)))

    monkeypatch.setattr(database, "ROOM", 250)

    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", text)
        await journal.open()
        made = {}
        for order in range(1, 6):
            await within(journal.append(admitted(order)))
            made[f"task-{order}"] = await within(journal.append(finished(f"task-{order}", b"frames")))
        await journal.close()
        journal = SqliteJournal(tmp_path / "j.db", text)
        tasks = await journal.open()
        assert [task.transcript_id for task in tasks] == [one.id for one in made.values()]
        found = journal.transcripts()
        assert found[:2] == [*made.items()][:2]
        assert found[2:] == [(name, replace(one, content=None, metadata={})) for name, one in [*made.items()][2:]]
        assert await within(journal.transcript("task-5")) == made["task-5"]
        await journal.close()

    asyncio.run(body())


def test_a_log_that_somebody_has_taken_away_does_not_stop_the_writer(tmp_path: Path) -> None:
    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        await journal.open()
        (tmp_path / "j.db-wal").unlink()
        for order in (1, 2):
            await within(journal.append(admitted(order)))
        await within(journal.close())

    asyncio.run(body())


def test_readers_do_not_put_off_the_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads logs again and again, what tasks were asked leaves the write-ahead log all the same."""
    monkeypatch.setattr(sqlite, "ERASE_IDLE_S", 3600.0)

    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        await journal.open()
        await within(journal.append(admitted(1, prompt="SECRET" * 100)))
        await within(journal.append(finished("task-1")))
        assert b"SECRET" in files(tmp_path / "j.db")
        monkeypatch.setattr(sqlite, "ERASE_BUSY_S", 0.0)
        for _ in range(2):  # the first has its answer before the checkpoint
            await within(journal.log("task-1"))
        assert b"SECRET" not in files(tmp_path / "j.db")
        await journal.close()

    asyncio.run(body())


def test_a_checkpoint_that_fails_is_an_outage_but_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT", 0)  # a checkpoint after every commit

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "j.db", archive, fault=fault)
        await journal.open()
        fault.point, fault.error = "after_checkpoint", OSError(28, "No space left on device")
        await within(journal.append(admitted(1)))
        await eventually(lambda: not journal.healthy)
        fault.error = None
        await eventually(lambda: journal.healthy)
        await journal.close()
        assert len(await load(tmp_path / "j.db")) == 1

    asyncio.run(body())


def test_the_log_never_grows_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT", 100_000)

    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        await journal.open()
        largest = 0
        for number in range(100):
            await within(journal.append(admitted(number)))
            largest = max(largest, (tmp_path / "j.db-wal").stat().st_size)
        assert 50_000 < largest < 200_000
        await journal.close()

    asyncio.run(body())


# -- privacy -----------------------------------------------------------------------------------------------
def test_a_prompt_is_nowhere_once_its_task_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "ERASE_IDLE_S", 0.01)
    path = tmp_path / "j.db"

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(path, archive, fault=fault)
        await journal.open()
        await within(journal.append(admitted(1, prompt="SECRET-A" * 300)))
        await within(journal.append(chat(2, "SECRET-B", "SECRET-C" * 5000)))
        assert {b"SECRET-A", b"SECRET-B", b"SECRET-C"} == set(re.findall(rb"SECRET-.", files(path)))
        fault.point = "after_checkpoint"
        fault.reached.clear()
        await within(journal.append(finished("task-1")))
        await within(journal.append(Forgotten("task-1")))
        await within(journal.append(finished("task-2")))
        assert await asyncio.to_thread(fault.reached.wait, GUARD_S)
        await eventually(lambda: b"SECRET" not in files(path))  # while it is open and idle
        assert (tmp_path / "j.db-wal").stat().st_size == 0
        await journal.close()
        assert b"SECRET" not in files(path)

    asyncio.run(body())


def test_a_crash_leaves_no_erased_prompt_beyond_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    child(path, "finish_and_die")
    assert b"SECRET" in files(path)  # in the log that nobody could truncate

    async def body() -> None:
        journal = SqliteJournal(path, archive)
        await journal.open()
        assert b"SECRET" not in files(path)
        await journal.close()

    asyncio.run(body())


def test_moving_rows_between_pages_leaves_no_copies_of_content(tmp_path: Path) -> None:
    """SQLite's secure_delete alone fails this: see the module's docstring."""
    path = tmp_path / "j.db"
    store = database.Database(path, "process", lambda _: None, lambda _: None)
    store.open()
    for seed in range(4):
        rnd = random.Random(seed)
        live: list[int] = []
        for order in range(seed * 1000, seed * 1000 + 600):
            prompt = f"SECRET{order:08d}!" * rnd.choice([1, 3, 10, 40, 100, 300])
            store.write([(admitted(order), *codec.encode(admitted(order, prompt=prompt)))])
            live.append(order)
            while live and rnd.random() < 0.5:
                end = finished(f"task-{live.pop(rnd.randrange(len(live)))}")
                store.write([(end, *codec.encode(end))])
        store.checkpoint()
        found = {int(number) for number in re.findall(rb"SECRET(\d{8})", files(path))}
        assert found == set(live)
        for order in live:
            store.write([(Forgotten(f"task-{order}"), b"", b"")])
    store.close()
    assert b"SECRET" not in files(path)


def test_rows_of_content_have_one_size_and_stay_where_they_are(tmp_path: Path) -> None:
    """That is why none is ever moved. What a crowd took is given back when a start finds nothing in it."""
    path = tmp_path / "j.db"

    def rows() -> list[tuple[int, int, bool]]:
        return list(store._run("SELECT slot, length(data), data = zeroblob(1000) FROM contents ORDER BY slot"))

    store = database.Database(path, "process", lambda _: None, lambda _: None)
    store.open()
    sizes = [0, 1, 900, 978, 979, 5000, 40_000]
    for order, size in enumerate(sizes):
        fact = admitted(order, prompt="x" * size)
        store.write([(fact, *codec.encode(fact))])
    full = len(rows())
    assert rows() == [(slot, 1000, 0) for slot in range(1, full + 1)]
    assert full > 40
    store.write([(finished(f"task-{order}"), *codec.encode(finished(f"task-{order}"))) for order in (1, 5)])
    assert [length for _, length, _ in rows()] == [1000] * full
    again = admitted(99, prompt="y" * 3000)
    store.write([(again, *codec.encode(again))])
    assert len(rows()) == full, "free ones are used first"
    for order in (0, 2, 3, 4, 6, 99):
        store.write([(finished(f"task-{order}"), *codec.encode(finished(f"task-{order}")))])
    assert rows() == [(slot, 1000, 1) for slot in range(1, full + 1)]
    store.close()
    store.open()
    assert rows() == []
    store.close()


def test_the_directory_and_the_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data" / "j.db"
    before = os.umask(0)
    try:

        async def body() -> None:
            journal = SqliteJournal(path, archive)
            await journal.open()
            await within(journal.append(admitted(1)))
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
            assert modes == {"j.db": 0o600, "j.db-wal": 0o600, "j.db.lock": 0o600}
            assert path.parent.stat().st_mode & 0o777 == 0o700
            await journal.close()

        asyncio.run(body())
    finally:
        os.umask(before)


# -- refusals ----------------------------------------------------------------------------------------------
def test_a_second_daemon_on_the_same_store_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        first, second = (SqliteJournal(tmp_path / "j.db", archive) for _ in range(2))
        await first.open()
        with pytest.raises(JournalUnavailable, match=f"in use by another daemon .process {os.getpid()}"):
            await second.open()
        await second.close()
        await within(first.append(admitted(1)))
        await first.close()
        third = SqliteJournal(tmp_path / "j.db", archive)
        assert len(await third.open()) == 1
        await third.close()

    asyncio.run(body())


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def older(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (newer, "newer version"),
        (older, "before the first release .schema 4.*move the file away"),
        (lambda path: path.write_bytes(b"not a database, but long enough" * 99), "not a database"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("elsewhere.db"), "symbolic link"),
    ],
)
def test_a_store_that_cannot_be_used_says_why(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(tmp_path / "j.db")

    async def body() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        with pytest.raises(JournalUnavailable, match=reason):
            await journal.open()
        assert not journal.healthy
        await journal.close()

    asyncio.run(body())


# -- kills and full disks, in a child process --------------------------------------------------------------
def command(path: Path, scenario: str) -> list[str]:
    return [sys.executable, str(HERE / "journal_child.py"), str(path), scenario]


def child(path: Path, scenario: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(
        command(path, scenario), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_kill_9_loses_no_acknowledged_fact(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    rnd = random.Random(0)
    expected: set[int] = set()
    ended: set[int] = set()
    for _ in range(20):
        with subprocess.Popen(command(path, "run"), env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            acknowledged = [process.stdout.readline() for _ in range(rnd.randrange(1, 200))]
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.readlines()
        for line in acknowledged:
            if line.endswith(b"\n"):
                kind, number = line.split()
                (expected if kind == b"A" else ended).add(int(number))
    tasks = {task.admitted.order: task for task in asyncio.run(load(path))}
    assert len(expected) > 500
    assert expected <= set(tasks)
    assert all(tasks[number].finished for number in ended)
    assert all(task.admitted.request.prompt for task in tasks.values() if task.finished is None)


@pytest.mark.parametrize(("scenario", "stored"), [("die_before_commit", [1]), ("die_after_commit", [1, 2])])
def test_a_crash_at_a_commit_leaves_all_of_it_or_nothing(tmp_path: Path, scenario: str, stored: list[int]) -> None:
    assert child(tmp_path / "j.db", scenario) == "A 1\n"
    assert [task.admitted.order for task in asyncio.run(load(tmp_path / "j.db"))] == stored


def test_a_full_disk_is_an_outage_and_ends_by_itself(tmp_path: Path) -> None:
    said = child(tmp_path / "j.db", "full_disk").split("\n")
    acknowledged = {int(line[2:]) for line in said if line.startswith("A ")}
    assert [line for line in said if line and not line.startswith("A ")] == ["full", "healthy"]
    assert {task.admitted.order for task in asyncio.run(load(tmp_path / "j.db"))} == acknowledged
    assert 1000 in acknowledged


# -- a start reads a large journal ---------------------------------------------------------------------------
MANY, FRAMES_EACH = 30, 3000


def token(number: int) -> bytes:
    return b'id: %d\nevent: token\ndata: {"t":"a word or two %d","i":%d}\n\n' % (number + 2, number, number)


def a_life(order: int, transcript: bytes | None = None) -> list[Fact]:
    """All facts of one task, in pieces: 200 KB of frames."""
    frames = [token(number) for number in range(FRAMES_EACH)]
    task_id = f"task-{order}"
    pieces = [Frames(task_id, b"".join(frames[at : at + 500])) for at in range(0, FRAMES_EACH, 500)]
    end = replace(finished(task_id, transcript), terminal_id=FRAMES_EACH + 2)
    return [admitted(order), started(task_id), *pieces, end]


def interleaved(lives: list[list[Fact]]) -> list[Fact]:
    """As tasks that ran side by side leave them."""
    return [fact for facts in zip(*lives, strict=True) for fact in facts]


def test_a_start_does_not_hold_the_logs_of_all_finished_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """224 MB of journal took 249 MB to open. The newest logs come along; what the others are is known all the same."""
    path = tmp_path / "j.db"
    one = sum(len(token(number)) for number in range(FRAMES_EACH))
    monkeypatch.setattr(book, "LOGS", 2 * one + 100)

    async def scenario() -> None:
        journal = SqliteJournal(path, archive)
        await journal.open()
        for first in range(1, MANY + 1, 2):
            facts = interleaved([a_life(first), a_life(first + 1)])
            await asyncio.gather(*[within(journal.append(fact)) for fact in facts])
        await journal.close()
        journal = SqliteJournal(path, archive)
        tracemalloc.start()
        tasks = await journal.open()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 12 * one, f"{peak / one:.1f} logs at once"
        assert [item.left is None for item in tasks] == [False] * (MANY - 2) + [True] * 2
        whole = recovery.rebuild(tasks[-1], sse.split, 0.0, 0)
        for item in (tasks[0], tasks[MANY // 2]):
            log = recovery.rebuild(item, sse.split, 0.0, 0).log
            assert log.evicted
            assert (log.size, log.last_id, log.finished) == (whole.log.size, FRAMES_EACH + 2, True)
            assert [log.offset_after(n) for n in (1, 2, 999, FRAMES_EACH, FRAMES_EACH + 2)] == [
                whole.log.offset_after(n) for n in (1, 2, 999, FRAMES_EACH, FRAMES_EACH + 2)
            ]
            stored = await journal.log(item.admitted.task_id)
            assert stored is not None
            log.restore(stored)
            assert log.read(0) == whole.log.read(0)
        await journal.close()

    asyncio.run(scenario())


def test_transcripts_are_made_of_logs_that_were_left_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "LOGS", 0)
    frames = b"".join(token(number) for number in range(FRAMES_EACH))
    fact = admitted(1)
    log = fact.started_frame + frames + finished("task-1").terminal_frame

    async def scenario() -> None:
        journal = SqliteJournal(tmp_path / "j.db", archive)
        await journal.open()
        *_, made = await asyncio.gather(*[within(journal.append(one)) for one in a_life(1, log)])
        await journal.close()
        again = SqliteJournal(tmp_path / "j.db", archive)
        (item,) = await again.open()
        assert (item.frames, len(item.left or ())) == (b"", FRAMES_EACH)
        assert again.transcripts() == [("task-1", made)]
        await again.close()

    asyncio.run(scenario())


def killed(folder: Path, copy: Path) -> Path:
    """What a kill -9 at this moment leaves for the next start."""
    shutil.copytree(folder, copy)
    return copy / "j.db"


def test_what_a_failed_commit_left_is_gone_if_the_daemon_is_killed_in_its_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At durability `power` a commit that reached the file and not the disk is refused; no probe has come by yet."""
    monkeypatch.setattr(sqlite, "RETRY_S", (60.0, 60.0))

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "a" / "j.db", archive, durability="power", fault=fault)
        await journal.open()
        await within(journal.append(admitted(1)))
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(2, prompt="REFUSED" * 200), started("task-2"), finished("task-1", b"frames"))
        path = killed(tmp_path / "a", tmp_path / "b")
        found = SqliteJournal(path, archive)
        tasks = await found.open()
        assert [(task.admitted.order, task.finished is not None) for task in tasks] == [(1, True)]
        await within(found.append(admitted(2)))  # under the numbers of what was refused
        again = killed(tmp_path / "b", tmp_path / "c")
        await found.close()
        assert b"REFUSED" not in files(path)
        for place in (path, again):
            assert [task.admitted.order for task in await load(place)] == [1, 2]
        fault.error = None
        await journal.close()

    asyncio.run(body())


def test_a_start_that_is_killed_itself_forgets_nothing_new(tmp_path: Path) -> None:
    """The mark goes before the first row that could be taken for a refused one, and stays until then."""

    async def body() -> None:
        fault = Fault()
        journal = SqliteJournal(tmp_path / "a" / "j.db", archive, fault=fault)
        await journal.open()
        await within(journal.append(admitted(1)))
        fault.point, fault.error = "after_commit", OSError(5, "Input/output error")
        await failed(journal, admitted(2))
        fault.error = None
        await eventually(lambda: journal.healthy)
        await within(journal.append(admitted(3)))
        path = killed(tmp_path / "a", tmp_path / "b")
        await journal.close()
        assert [task.admitted.order for task in await load(path)] == [1, 3]

    asyncio.run(body())
