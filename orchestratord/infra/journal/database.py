"""The journal's SQLite file, as the one thread that may touch it sees it: synchronous, one connection.

One connection, and `locking_mode=EXCLUSIVE` so that no other program can add a second: SQLite up to 3.51.2 can
corrupt a WAL that two connections write and reset at the same time. All checkpoints are explicit, since the
automatic one swallows its errors, and all of them truncate the WAL, which also erases what it held.

The content of a task must leave no trace once it is erased. `secure_delete` overwrites freed cells and pages,
but not the copies that SQLite leaves in the free space of a page when it moves rows between neighbours. Content
therefore begins with a page of zeros: only the beginning of a long value sits in a shared page, the rest gets
overflow pages of its own, which never move and are overwritten as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

from orchestratord.domain.entry import CatalogChanged, CatalogEntry, CatalogRemoved
from orchestratord.domain.facts import (
    Admitted,
    Archived,
    Fact,
    Finished,
    Forgotten,
    Frames,
    JournaledTask,
    SessionDeleted,
    Started,
)
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import codec
from orchestratord.infra.journal.remedy import remedy
from orchestratord.infra.journal.seal import Damaged, seal, unseal
from orchestratord.ports import Artifact, JournalUnavailable

SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE tasks (ord INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, admitted BLOB NOT NULL,
                    started BLOB, finished BLOB, transcript_id TEXT);
CREATE TABLE contents (ord INTEGER PRIMARY KEY REFERENCES tasks ON DELETE CASCADE, content BLOB NOT NULL);
CREATE TABLE frames (id INTEGER PRIMARY KEY, ord INTEGER NOT NULL REFERENCES tasks ON DELETE CASCADE,
                     data BLOB NOT NULL);
CREATE INDEX frames_of_task ON frames (ord);
CREATE TABLE outbox (ord INTEGER PRIMARY KEY REFERENCES tasks ON DELETE CASCADE, artifact BLOB NOT NULL);
CREATE TABLE sessions (session_id TEXT PRIMARY KEY, after_order INTEGER NOT NULL, sum BLOB NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY, writes INTEGER NOT NULL);
INSERT INTO probe VALUES (1, 0);
"""
POOLS = "CREATE TABLE IF NOT EXISTS pools (pool_id TEXT PRIMARY KEY, changed BLOB NOT NULL)"  # since schema 2
CATALOG = "CREATE TABLE IF NOT EXISTS catalog (model_id TEXT PRIMARY KEY, entry BLOB NOT NULL)"  # since schema 3
SEALS = """
UPDATE tasks SET admitted = seal(admitted, ''), started = seal(started, task_id),
                 finished = seal(finished, task_id || coalesce(transcript_id, ''));
UPDATE contents SET content = CAST(substr(content, 1, 4096) || seal(substr(content, 4097), ord) AS BLOB);
UPDATE frames SET data = seal(data, '');
UPDATE outbox SET artifact = seal(artifact, '');
UPDATE pools SET changed = seal(changed, pool_id);
UPDATE catalog SET entry = seal(entry, model_id);
ALTER TABLE sessions ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
UPDATE sessions SET sum = seal(x'', session_id || after_order);
"""  # since schema 4: every row knows what it held
PAGE = 4096
SHARED = bytes(PAGE)  # what of a content may sit in a shared page: nothing but zeros

Durability = Literal["process", "power"]
Record = tuple[Fact, bytes, bytes]  # a fact with its body and content, as the codec made them
Admission = tuple[Admitted, bytes, bytes]

# Rows that one statement inserts: few statements, and few kinds of them to keep prepared.
PORTIONS = (32, 16, 8, 4, 2, 1)
# REPLACE: a task whose ticket failed may be here all the same; its rows in the other tables go with it.
INTO_TASKS = "INSERT OR REPLACE INTO tasks (ord, task_id, admitted) VALUES "
INTO_CONTENTS = "INSERT INTO contents VALUES "
TASK_ROWS = {n: INTO_TASKS + ", ".join(["(?, ?, ?)"] * n) for n in PORTIONS}
CONTENT_ROWS = {n: INTO_CONTENTS + ", ".join(["(?, ?)"] * n) for n in PORTIONS}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store held when it was opened."""

    tasks: list[JournaledTask]
    outbox: list[tuple[str, Artifact]]
    deleted: list[SessionDeleted]
    pools: list[PoolChanged]
    catalog: list[CatalogEntry]


def _seal(data: bytes | None, place: str | int) -> bytes | None:
    """`seal` for SQL."""
    return None if data is None else seal(data, place)


class Database:
    """`transcript` makes the artifact a fact brings; `fault` is called at named points so that tests can break it."""

    def __init__(
        self,
        path: Path,
        durability: Durability,
        transcript: Callable[[Fact], Artifact | None],
        fault: Callable[[str], None],
    ) -> None:
        self._path = path
        self._synchronous = {"process": "NORMAL", "power": "FULL"}[durability]
        self._transcript = transcript
        self._fault = fault
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._apply: dict[type, Callable[[Any, bytes, bytes], Artifact | None]] = {
            Started: self._started,
            Frames: self._frames,
            Finished: self._finished,
            Archived: self._archived,
            SessionDeleted: self._session_deleted,
            PoolChanged: self._pool_changed,
            CatalogChanged: self._catalog_changed,
            CatalogRemoved: self._catalog_removed,
            Forgotten: self._forgotten,
        }

    # -- opening and closing -----------------------------------------------------------------------------
    def open(self) -> Loaded:
        """Raises JournalUnavailable, and then holds nothing."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self._connect()
            self._check_schema()
            self._check_pages()
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
            holder = os.read(self._lock, 20).decode("ascii", "replace").strip() or "unknown"
            raise JournalUnavailable(
                f"the journal {self._path} is in use by another daemon (process {holder}): stop that one, or give "
                "this one a data directory of its own"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _connect(self) -> None:
        # Created here because SQLite gives its WAL the mode that the database file has.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.fchmod(file, 0o600)
        os.close(file)
        self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        self._connection.create_function("seal", 2, _seal, deterministic=True)
        for pragma in (
            f"page_size = {PAGE}",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            f"synchronous = {self._synchronous}",
            "secure_delete = ON",
            "temp_store = MEMORY",  # statement journals hold page images too: never in a temporary file
            "wal_autocheckpoint = 0",
            "foreign_keys = ON",
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
        if version < SCHEMA_VERSION:
            with self._transaction():
                for statement in SCHEMA.split(";") if version == 0 else ():
                    self._run(statement)
                self._run(POOLS)
                self._run(CATALOG)
                for statement in SEALS.split(";") if version else ():
                    self._run(statement)
                self._run(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_pages(self) -> None:
        """That the file's structure is whole; what is in its rows, their seals tell."""
        (found,) = self._run("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise Damaged(f"it is damaged ({found})")

    def _load(self) -> Loaded:
        # Orders are not reused while a task of that age is left: a deletion older than all of them says nothing.
        self._run("DELETE FROM sessions WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE ord <= after_order)")
        frames: dict[int, bytearray] = {}
        for order, data in self._run("SELECT ord, data FROM frames ORDER BY id"):
            frames.setdefault(order, bytearray()).extend(unseal(data))
        tasks = [
            self._task(bytes(frames.pop(row[0], b"")), *row)
            for row in self._run(
                "SELECT ord, task_id, admitted, content, started, finished, transcript_id"
                " FROM tasks LEFT JOIN contents USING (ord) ORDER BY ord"
            )
        ]
        outbox = self._run("SELECT task_id, artifact FROM outbox JOIN tasks USING (ord) ORDER BY ord").fetchall()
        deleted = self._run("SELECT session_id, after_order, sum FROM sessions ORDER BY after_order, session_id")
        return Loaded(
            tasks,
            [(task_id, codec.decode_artifact(unseal(artifact))) for task_id, artifact in outbox],
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

    @staticmethod
    def _task(
        frames: bytes,
        order: int,
        task_id: str,
        admitted: bytes,
        content: bytes | None,
        started: bytes | None,
        finished: bytes | None,
        transcript_id: str | None,
    ) -> JournaledTask:
        fact = codec.decode_admitted(unseal(admitted), None if content is None else unseal(content[PAGE:], order))
        if (fact.order, fact.task_id) != (order, task_id):
            raise Damaged("it is damaged (a task under another's name)")
        return JournaledTask(
            fact,
            None if started is None else codec.decode_started(unseal(started, task_id)),
            frames,
            None if finished is None else codec.decode_finished(unseal(finished, task_id + (transcript_id or ""))),
            transcript_id,
        )

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
        columns = "SELECT ord, admitted, finished, transcript_id FROM tasks WHERE task_id = ?"
        row = self._run(columns, (task_id,)).fetchone()
        if row is None or row[2] is None:
            return None
        order, admitted, finished, transcript_id = row
        frames = self._run("SELECT data FROM frames WHERE ord = ? ORDER BY id", (order,))
        first = codec.decode_admitted(unseal(admitted), None).started_frame
        last = codec.decode_finished(unseal(finished, task_id + (transcript_id or ""))).terminal_frame
        return b"".join((first, *(unseal(data) for (data,) in frames), last))

    # -- writing -----------------------------------------------------------------------------------------
    def write(self, batch: Sequence[Record]) -> list[Artifact | None]:
        """Make a batch durable in one transaction; returns what each fact's ticket resolves to."""
        with self._transaction():
            results: list[Artifact | None] = []
            for kind, group in groupby(batch, lambda record: type(record[0])):
                if kind is Admitted:
                    results += self._admitted(list(group))  # type: ignore[arg-type]
                else:
                    results += [self._apply[kind](*record) for record in group]
            return results

    def probe(self) -> None:
        """Find out whether the store accepts writes, by writing."""
        with self._transaction():
            self._run("UPDATE probe SET writes = writes + 1")
        self.checkpoint()

    def checkpoint(self) -> None:
        """Move the WAL into the database and truncate it."""
        (busy, _, _) = self._run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("another program reads the journal")
        self._fault("after_checkpoint")

    def wal_bytes(self) -> int:
        return os.stat(f"{self._path}-wal").st_size

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

    # -- one method per fact; one about a task that is not here changes nothing ------------------------------
    def _admitted(self, records: list[Admission]) -> list[None]:
        # Many rows a statement: the interpreter lock changes hands once for each statement. Of two admissions of one
        # id the later one stands.
        for some in _portions(list({fact.task_id: (fact, body, content) for fact, body, content in records}.values())):
            self._run(
                TASK_ROWS[len(some)], [v for fact, body, _ in some for v in (fact.order, fact.task_id, seal(body))]
            )
            contents = [(fact.order, SHARED + seal(content, fact.order)) for fact, _, content in some]
            self._run(CONTENT_ROWS[len(some)], list(chain.from_iterable(contents)))
        return [None] * len(records)

    def _started(self, fact: Started, body: bytes, _: bytes) -> None:
        self._run("UPDATE tasks SET started = ? WHERE task_id = ?", (seal(body, fact.task_id), fact.task_id))

    def _frames(self, fact: Frames, body: bytes, _: bytes) -> None:
        into = "INSERT INTO frames (ord, data) SELECT ord, ? FROM tasks WHERE task_id = ?"
        self._run(into, (seal(body), fact.task_id))

    def _finished(self, fact: Finished, body: bytes, _: bytes) -> Artifact | None:
        transcript = self._transcript(fact)
        made = transcript.id if transcript else None
        self._run(
            "UPDATE tasks SET finished = ?, transcript_id = ? WHERE task_id = ?",
            (seal(body, fact.task_id + (made or "")), made, fact.task_id),
        )
        self._run("DELETE FROM contents WHERE ord = (SELECT ord FROM tasks WHERE task_id = ?)", (fact.task_id,))
        if transcript is not None:
            self._run(
                "INSERT OR REPLACE INTO outbox SELECT ord, ? FROM tasks WHERE task_id = ?",
                (seal(codec.encode_artifact(transcript)), fact.task_id),
            )
        return transcript

    def _archived(self, fact: Archived, *_: bytes) -> None:
        self._run("DELETE FROM outbox WHERE ord = (SELECT ord FROM tasks WHERE task_id = ?)", (fact.task_id,))

    def _session_deleted(self, fact: SessionDeleted, *_: bytes) -> None:
        sum_ = seal(b"", f"{fact.session_id}{fact.after_order}")
        self._run("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (fact.session_id, fact.after_order, sum_))

    def _pool_changed(self, fact: PoolChanged, body: bytes, _: bytes) -> None:
        self._run("INSERT OR REPLACE INTO pools VALUES (?, ?)", (fact.pool_id, seal(body, fact.pool_id)))

    def _catalog_changed(self, fact: CatalogChanged, *_: bytes) -> None:
        entry = seal(codec.encode_entry(fact.entry), fact.entry.id)
        self._run("INSERT OR REPLACE INTO catalog VALUES (?, ?)", (fact.entry.id, entry))

    def _catalog_removed(self, fact: CatalogRemoved, *_: bytes) -> None:
        self._run("DELETE FROM catalog WHERE model_id = ?", (fact.model_id,))

    def _forgotten(self, fact: Forgotten, *_: bytes) -> None:
        self._run("DELETE FROM tasks WHERE task_id = ?", (fact.task_id,))


def _portions(records: list[Admission]) -> Iterator[list[Admission]]:
    start = 0
    for size in PORTIONS:
        while len(records) - start >= size:
            yield records[start : start + size]
            start += size
