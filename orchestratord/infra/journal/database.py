"""The journal's SQLite file, as the one thread that may touch it sees it: synchronous, one connection.

One connection, and `locking_mode=EXCLUSIVE` so that no other program can add a second: SQLite up to 3.51.2 can
corrupt a WAL that two connections write and reset at the same time. All checkpoints are explicit, since the
automatic one swallows its errors, and all of them truncate the WAL, which also erases what it held.

A batch takes as few statements as can be, since the interpreter lock changes hands around each: all rows of a table go
in one, which is the whole transaction where there is no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import JournaledTask, SessionDeleted
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import book, codec, contents
from orchestratord.infra.journal.book import Book, FactRow, Record, Transcript, Work
from orchestratord.infra.journal.remedy import remedy
from orchestratord.infra.journal.seal import Damaged, unseal
from orchestratord.ports import Artifact, JournalUnavailable

SCHEMA_VERSION = 5
PROBE = """
CREATE TABLE probe (id INTEGER PRIMARY KEY, writes INTEGER NOT NULL);
INSERT INTO probe VALUES (1, 0);
"""
SCHEMA = book.SCHEMA + contents.SCHEMA + PROBE
PAGE = 4096
CACHE_KIB = 512  # of pages. SQLite's own 2,000 are not quicker for rows that are written once and found by id

WIDTH = 32  # of each number in the lock file: who holds it, and the first row in doubt
ROOM = 16 << 20  # bytes of transcripts that are handed over whole at the start

Durability = Literal["process", "power"]
Statement = tuple[str, Sequence[object]]

# Rows of one statement; what is missing to the next of these is filled up with rows of NULL, which are left out.
PORTIONS = (1, 2, 4, 8, 16, 32, 64)


def _inserts(into: str, columns: int) -> dict[int, str]:
    row = f"({', '.join('?' * columns)})"
    return {
        n: f"{into} SELECT * FROM (VALUES {', '.join([row] * n)}) WHERE column1 NOTNULL"  # noqa: S608 - fixed texts
        for n in PORTIONS
    }


FACTS = _inserts("INSERT INTO facts", 4)
CONTENTS = _inserts("INSERT OR REPLACE INTO contents", 2)
GONE = {n: f"DELETE FROM facts WHERE id IN ({', '.join('?' * n)})" for n in PORTIONS}  # noqa: S608 - fixed texts


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store held when it was opened."""

    tasks: list[JournaledTask]
    outbox: list[tuple[str, Artifact]]
    deleted: list[SessionDeleted]
    pools: list[PoolChanged]
    catalog: list[CatalogEntry]


class Database:
    """`transcript` makes the artifact a fact brings; `fault` is called at named points so that tests can break it."""

    def __init__(
        self, path: Path, durability: Durability, transcript: Transcript, fault: Callable[[str], None]
    ) -> None:
        self._path = path
        self._synchronous = {"process": "NORMAL", "power": "FULL"}[durability]
        self._fault = fault
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._book = Book(transcript)
        self._wal = 0  # bytes it had when it was looked at, and about what was written since
        self._doubt: int | None = None  # from this row on it is unknown what failed commits have left

    # -- opening and closing -----------------------------------------------------------------------------
    def open(self) -> Loaded:
        """Raises JournalUnavailable, and then holds nothing."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self._connect()
            self._check_schema()
            self._check_pages()
            self._forget_refused()
            loaded = self._load()
            self.probe()  # refuses a read-only disk now; also truncates what a crash left in the WAL
        except (Damaged, TypeError, sqlite3.DatabaseError) as error:
            self.close()
            broken = not isinstance(error, sqlite3.OperationalError)
            advice = "Put back a copy, or move the file away to start empty"
            raise self._unopened(error, advice if broken else remedy(error, self._path.parent)) from error
        except (OSError, ValueError, sqlite3.Error) as error:
            self.close()
            raise self._unopened(error, remedy(error, self._path.parent)) from error
        except BaseException:
            self.close()
            raise
        return loaded

    def _unopened(self, error: Exception, advice: str) -> JournalUnavailable:
        return JournalUnavailable(f"cannot open the journal {self._path}: {error}. {advice}")

    def _take_lock(self) -> None:
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, WIDTH).decode("ascii", "replace").strip() or "unknown"
            raise JournalUnavailable(
                f"the journal {self._path} is in use by another daemon (process {holder}): stop that one, or give "
                "this one a data directory of its own"
            ) from None
        marked = os.pread(self._lock, WIDTH, WIDTH).strip()
        self._doubt = int(marked) if marked.isdigit() else None
        os.pwrite(self._lock, (b"%d" % os.getpid()).ljust(WIDTH), 0)
        self._mark()

    def _mark(self) -> None:
        """Note from which row on refusals are in doubt, for a start that comes before the next probe.

        It is a write over bytes that are there: that works on many a disk that takes no commit.
        """
        assert self._lock is not None
        os.pwrite(self._lock, (b"" if self._doubt is None else b"%d" % self._doubt).ljust(WIDTH), WIDTH)

    def _connect(self) -> None:
        # Created here because SQLite gives its WAL the mode that the database file has.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.fchmod(file, 0o600)
        os.close(file)
        self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        for pragma in (
            f"page_size = {PAGE}",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            f"synchronous = {self._synchronous}",
            "secure_delete = ON",
            "temp_store = MEMORY",  # statement journals hold page images too: never in a temporary file
            "wal_autocheckpoint = 0",
            f"cache_size = {-CACHE_KIB}",
        ):
            self._run(f"PRAGMA {pragma}").fetchall()
        if self._run("PRAGMA journal_mode").fetchone() != ("wal",):
            raise JournalUnavailable(f"{self._path.parent} cannot hold a write-ahead log: use a local disk")

    def _check_schema(self) -> None:
        (version,) = self._run("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise JournalUnavailable(
                f"the journal {self._path} was written by a newer version (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): install that version again, or move the file away to start empty"
            )
        if version == 0:
            with self._transaction():
                for statement in SCHEMA.split(";"):
                    self._run(statement)
                self._run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version < SCHEMA_VERSION:
            raise JournalUnavailable(
                f"the journal {self._path} was written before the first release (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): move the file away to start empty"
            )

    def _check_pages(self) -> None:
        """That the file's structure is whole; what is in its rows, their seals tell."""
        (found,) = self._run("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise Damaged(f"it is damaged ({found})")

    def _load(self) -> Loaded:
        # Orders are not reused while a task of that age is left: a deletion older than all of them says nothing.
        self._run("DELETE FROM sessions WHERE after_order < ifnull((SELECT min(ord) FROM facts), after_order + 1)")
        self._run(contents.CLEAR)
        tasks = self._read(ROOM)
        deleted = self._run("SELECT session_id, after_order, sum FROM sessions ORDER BY after_order, session_id")
        return Loaded(
            [task for task, _ in tasks],
            [(task.admitted.task_id, made) for task, made in tasks if made is not None],
            [SessionDeleted(*row) for *row, sum_ in deleted if unseal(sum_, f"{row[0]}{row[1]}") == b""],
            [
                codec.decode_pool_changed(unseal(changed, pool_id))
                for pool_id, changed in self._run("SELECT pool_id, changed FROM pools ORDER BY pool_id")
            ],
            [
                codec.decode_entry(unseal(entry, model_id))
                for model_id, entry in self._run("SELECT model_id, entry FROM catalog ORDER BY model_id")
            ],
        )

    def _read(self, room: int | None) -> list[tuple[JournaledTask, Artifact | None]]:
        """Take the book from what is stored; `room` as in `Book.read`."""
        facts = self._run("SELECT id, ord, kind, body FROM facts ORDER BY id")
        rows = self._run("SELECT slot, data FROM contents ORDER BY slot")
        tasks, work = self._book.read(facts, rows, room, self._rows)
        self._commit(work)
        return tasks

    def close(self) -> None:
        """Checkpoint if possible, and let go of everything. Idempotent."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, task_id: str) -> bytes | None:
        """The event log of a finished task as far as it was written."""
        return book.log_of(self._rows(self._book.rows_of(task_id)))

    def transcript(self, task_id: str) -> Artifact | None:
        """What a finished task has waiting for the store."""
        return self._book.transcript(self._rows(self._book.rows_of(task_id)))

    def _rows(self, ids: Iterable[int]) -> Iterator[FactRow]:
        for row_id in ids:
            row = self._run("SELECT id, ord, kind, body FROM facts WHERE id = ?", (row_id,)).fetchone()
            if row is None:
                raise Damaged("it is damaged (a row is missing)")
            yield row

    # -- writing -----------------------------------------------------------------------------------------
    def write(self, batch: Sequence[Record]) -> list[Artifact | None]:
        """Make a batch durable in one transaction; returns what each fact's ticket resolves to.

        After an exception the store must be probed before anything else.
        """
        first = self._book.next_id
        try:
            work, results = self._book.enter(batch)
            self._commit(work)
        except BaseException:
            if self._doubt is None:
                self._doubt = first
                with contextlib.suppress(OSError):
                    self._mark()
            raise
        return results

    def _commit(self, work: Work) -> None:
        statements = [
            *_portions(FACTS, 4, work.facts),
            *_portions(CONTENTS, 2, work.contents),
            *_portions(GONE, 1, [(row,) for row in work.gone]),
            *work.others,
        ]
        self._wal += _pages(work) * PAGE
        if len(statements) == 1:  # a transaction by itself
            self._fault("before_commit")
            self._run(*statements[0])
            self._fault("after_commit")
        elif statements:
            with self._transaction():
                for statement in statements:
                    self._run(*statement)

    def probe(self) -> None:
        """Find out whether the store accepts writes, by writing.

        What failed commits have left all the same goes: they were refused. But ends stay, since the content of their
        tasks went with them.
        """
        with self._transaction():
            self._run("UPDATE probe SET writes = writes + 1")
            self._forget_refused()
        if self._doubt is not None:
            self._read(None)
            self._doubt = None
            self._mark()  # before anything new is written under the same numbers
        self.checkpoint()

    def _forget_refused(self) -> None:
        if self._doubt is not None:
            refused = "DELETE FROM facts WHERE ord IN (SELECT ord FROM facts WHERE kind = ? AND id >= ?)"
            self._run(refused, (book.ADMITTED, self._doubt))

    def checkpoint(self) -> None:
        """Move the WAL into the database and truncate it."""
        (busy, _, _) = self._run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("another program reads the journal")
        self._wal = 0
        self._fault("after_checkpoint")

    def wal_passed(self, limit: int) -> bool:
        """Whether the WAL has more bytes than this. It is looked at only once what was written may come to as much: a
        look lets go of the interpreter lock, which costs a third of a small commit.

        False if it cannot be known: who cares for it is not the one to find the disk broken.
        """
        if self._wal > limit:
            try:
                self._wal = os.stat(f"{self._path}-wal").st_size
            except OSError:
                self._wal = 0
        return self._wal > limit

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._run("BEGIN IMMEDIATE")
            yield
            self._fault("before_commit")
            self._run("COMMIT")
            self._fault("after_commit")
        except BaseException:
            assert self._connection is not None
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._run("ROLLBACK")
            raise

    def _run(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        assert self._connection is not None
        return self._connection.execute(statement, values)


def _pages(work: Work) -> int:
    """How many pages of the database a commit writes at most, about: of what is deleted only the rows are known."""
    rows = len(work.facts) + len(work.contents) + len(work.gone) + len(work.others)
    return 3 + 2 * rows + sum([len(row[3]) for row in work.facts]) // PAGE


def _portions(statements: dict[int, str], columns: int, rows: Sequence[tuple[object, ...]]) -> Iterator[Statement]:
    most = PORTIONS[-1]
    for start in range(0, len(rows), most):
        some = rows[start : start + most]
        size = next(size for size in PORTIONS if size >= len(some))
        yield statements[size], [*chain.from_iterable(some), *[None] * (columns * (size - len(some)))]
