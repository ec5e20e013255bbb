"""The journal in SQLite: group commit on one writer thread.

`append` puts a fact in a list and returns. The writer takes everything that has gathered, commits it as one
transaction, tells the loop once, and begins again at once: no timer, so a lone fact waits for nothing and a
crowd shares one commit.

The writer needs the interpreter lock for a moment between two statements. A loop that is busy without a pause and
polls more often than `sys.getswitchinterval()` (5 ms) can keep it out for seconds: a process that hosts this
journal should set the interval to 0.5 ms, which bounds that to some 20 ms.

When a commit fails, so does everything appended so far, and `append` refuses until a real write has succeeded
on the same connection. The same one on purpose: its next transaction overwrites what the failed one may have
left in the WAL, whereas a reopened database could find it there and bring it back.

Boundary: what the failed facts said is missing from the store, while the core in memory may have moved on. Whoever
appends keeps them and appends them again (`services/recorder`); token frames stay lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import Fact, Finished, JournaledTask, SessionDeleted, TranscriptSource
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import codec
from orchestratord.infra.journal.database import Database, Durability, Loaded
from orchestratord.infra.journal.intake import BACKLOG_LIMIT, Intake
from orchestratord.infra.journal.remedy import named, remedy
from orchestratord.infra.journal.seal import Damaged
from orchestratord.infra.journal.tickets import TicketFuture, fail, resolve, transcripts_by
from orchestratord.ports import Artifact, JournalUnavailable

WAL_LIMIT = 4 << 20
ERASE_IDLE_S = 1.0  # the WAL still holds erased content: truncate it when nothing came for this long,
ERASE_BUSY_S = 30.0  # or between two commits when this long has passed
RETRY_S = (0.1, 5.0)  # after an outage: first and longest pause between probes


class _Entry(NamedTuple):
    fact: Fact
    body: bytes
    content: bytes
    ticket: TicketFuture

    @property
    def size(self) -> int:
        return codec.size(self.body, self.content)


class SqliteJournal:
    """`archive` runs on the writer thread. `fault` is called with the name of a point, so that tests can break it."""

    def __init__(
        self,
        path: Path,
        archive: Callable[[TranscriptSource], Artifact],
        *,
        durability: Durability = "process",
        backlog_limit: int = BACKLOG_LIMIT,
        fault: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._path = path
        self._archive = archive
        self._durability: Durability = durability
        self._fault = fault
        self._loaded = Loaded([], [], [], [], [])
        self._thread: threading.Thread | None = None
        # Only the loop uses the intake and the tickets; the rest is shared with the writer, under `_wake`.
        self._intake = Intake(backlog_limit)
        self._wake = threading.Condition()
        self._queue: list[_Entry] = []
        self._asked: list[tuple[str, TicketFuture]] = []  # logs somebody wants to read
        self._closing = False
        self._nudging = False  # on the loop
        self._refusal: JournalUnavailable | None = JournalUnavailable("the journal is not open")
        self._changed: Callable[[JournalUnavailable | None], object] = lambda _: None

    # -- on the event loop -------------------------------------------------------------------------------
    async def open(self) -> list[JournaledTask]:
        self._loop = asyncio.get_running_loop()
        self._database = Database(self._path, self._durability, transcripts_by(self._archive, self._loop), self._fault)
        self._gone: TicketFuture = self._loop.create_future()
        opened: TicketFuture = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        outcome = await opened
        if isinstance(outcome, BaseException):
            raise outcome
        self._loaded = outcome
        self._refusal = None
        return self._loaded.tasks

    def append(self, fact: Fact) -> TicketFuture:
        ticket: TicketFuture = self._loop.create_future()
        with self._wake:
            if self._refusal is not None:
                return self._lose(fact, ticket, str(self._refusal))
            verdict = self._intake.judge(fact)
            if verdict == "skip":
                return resolve(ticket)
            if verdict == "refuse":
                return fail(ticket, f"the journal {self._path} cannot keep up")
            try:
                entry = _Entry(fact, *codec.encode(fact), ticket)
            except (TypeError, ValueError) as error:
                return fail(ticket, f"this cannot be journaled: {error}")
            self._intake.backlog += entry.size
            self._queue.append(entry)
        if not self._nudging:
            self._nudging = True
            self._loop.call_soon(self._nudge)
        return ticket

    def _nudge(self) -> None:
        """Once for all that one turn of the loop appended: each wake of the writer costs both threads the lock."""
        self._nudging = False
        with self._wake:
            self._wake.notify()

    def _lose(self, fact: Fact, ticket: TicketFuture, reason: str) -> TicketFuture:
        self._intake.lost(fact)
        return fail(ticket, reason)

    async def log(self, task_id: str) -> bytes | None:
        answer: TicketFuture = self._loop.create_future()
        with self._wake:
            if self._refusal is not None:
                raise self._refusal
            self._asked.append((task_id, answer))
            self._wake.notify()
        found: bytes | None = await answer
        return found

    def transcripts(self) -> list[tuple[str, Artifact]]:
        return self._loaded.outbox

    def deleted_sessions(self) -> list[SessionDeleted]:
        return self._loaded.deleted

    def changed_pools(self) -> list[PoolChanged]:
        return self._loaded.pools

    def catalog(self) -> list[CatalogEntry]:
        return self._loaded.catalog

    @property
    def healthy(self) -> bool:
        return self._refusal is None

    def watch(self, changed: Callable[[JournalUnavailable | None], object]) -> None:
        self._changed = changed

    @property
    def backlog(self) -> int:
        return self._intake.backlog

    async def close(self) -> None:
        if self._thread is None:
            return
        with self._wake:
            self._closing = True
            self._refusal = JournalUnavailable("the journal is closed")
            self._wake.notify()
        await asyncio.shield(self._gone)
        self._thread.join()

    def _acknowledge(self, batch: list[_Entry], results: list[Artifact | None]) -> None:
        self._intake.backlog -= sum(entry.size for entry in batch)
        for entry, result in zip(batch, results, strict=True):
            resolve(entry.ticket, result)

    def _refuse(self, batch: list[_Entry], reason: str) -> None:
        self._intake.backlog -= sum(entry.size for entry in batch)
        for entry in batch:
            self._lose(entry.fact, entry.ticket, reason)

    def _restore(self, refusal: JournalUnavailable) -> None:
        # On the loop, behind the `_refuse` of the same outage: before that, a task's gap would not be known.
        with self._wake:
            if self._refusal is not refusal:
                return
            self._refusal = None
        self._changed(None)

    # -- on the writer thread ----------------------------------------------------------------------------
    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _work(self, opened: TicketFuture) -> None:
        try:
            try:
                loaded = self._database.open()
            except Exception as error:
                self._tell(resolve, opened, error)
                return
            self._tell(resolve, opened, loaded)
            self._serve()
        finally:
            self._database.close()
            self._tell(resolve, self._gone)

    def _serve(self) -> None:
        erased: float | None = None  # since when the WAL has held content that is erased in the database
        while (batch := self._take(None if erased is None else ERASE_IDLE_S)) is not None:
            unsettled = batch
            try:
                self._answer()
                if batch:
                    results = self._database.write([entry[:3] for entry in batch])
                    self._tell(self._acknowledge, batch, results)
                    unsettled = []
                now = time.monotonic()
                if erased is None and any(isinstance(entry.fact, Finished) for entry in batch):
                    erased = now
                due = erased is not None and (not batch or now - erased > ERASE_BUSY_S)
                if due or self._database.wal_bytes() > WAL_LIMIT:
                    self._database.checkpoint()
                    erased = None
            except Exception as error:  # whatever it is, a journal that stops without a word is worse
                self._outage(unsettled, error)

    def _answer(self) -> None:
        with self._wake:
            asked, self._asked = self._asked, []
        for place, (task_id, answer) in enumerate(asked):
            try:
                self._tell(resolve, answer, self._database.log(task_id))
            except Damaged as error:  # this log alone cannot be had
                self._tell(fail, answer, f"the journal {self._path}: {error}")
            except Exception:
                with self._wake:
                    self._asked = asked[place:] + self._asked  # the outage that follows tells them
                raise

    def _take(self, patience: float | None) -> list[_Entry] | None:
        """Everything appended so far, waiting for the first; empty after `patience`, None when closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._asked or self._closing, patience)
            if self._closing and not self._queue:
                return None
            batch, self._queue = self._queue, []
            return batch

    def _outage(self, unsettled: list[_Entry], error: Exception) -> None:
        message = f"the journal {self._path} cannot be written: {error}"
        refusal = JournalUnavailable(message, reason=named(error), remedy=remedy(error, self._path.parent))
        with self._wake:
            if not self._closing:
                self._refusal = refusal
            lost, self._queue = unsettled + self._queue, []
            asked, self._asked = self._asked, []
        self._tell(self._refuse, lost, str(refusal))
        self._tell(self._changed, refusal)
        for _, answer in asked:
            self._tell(fail, answer, str(refusal))
        pause, longest = RETRY_S
        while not self._closed_within(pause):
            try:
                self._database.probe()
            except Exception:
                pause = min(2 * pause, longest)
            else:
                self._tell(self._restore, refusal)
                return

    def _closed_within(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: self._closing, seconds)
