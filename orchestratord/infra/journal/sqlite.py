"""The journal in SQLite: group commit on one writer thread.

`append` puts a fact in a list and returns. What has gathered goes to the writer as one batch as soon as a turn of the
loop brought nothing more, and is committed as one transaction; then the loop is told once. So a lone fact waits for
one turn of an idle loop, and a crowd shares one commit. Each commit makes two threads take the interpreter lock from
each other several times, which costs more than to write; facts that nobody waits for therefore go along with the next
batch, or after `PATIENCE_S`. One batch is on its way at a time, so the two threads share nothing but a queue.

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
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import (
    Archived,
    Fact,
    Finished,
    Forgotten,
    JournaledTask,
    SessionDeleted,
    TranscriptSource,
)
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import codec
from orchestratord.infra.journal.database import Database, Durability, Loaded
from orchestratord.infra.journal.intake import BACKLOG_LIMIT, Intake
from orchestratord.infra.journal.remedy import named, remedy
from orchestratord.infra.journal.seal import Damaged
from orchestratord.infra.journal.tickets import Ticket, transcripts_by
from orchestratord.ports import Artifact, JournalUnavailable

WAL_LIMIT = 4 << 20
ERASE_IDLE_S = 1.0  # the WAL still holds erased content: truncate it when nothing came for this long,
ERASE_BUSY_S = 30.0  # or between two commits when this long has passed
TURNS = 3  # of the loop, that a batch waits for more at most
PATIENT = frozenset({Archived, Forgotten})  # lost in a crash, these only make a start do again what it forgot
PATIENCE_S = 0.25
RETRY_S = (0.1, 5.0)  # after an outage: first and longest pause between probes


class _Entry(NamedTuple):
    fact: Fact
    body: bytes
    content: bytes
    ticket: Ticket
    size: int


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
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()  # what the writer is to do; None: stop
        # The writer's: since when the WAL has held content that is erased, and why it cannot write.
        self._erased: float | None = None
        self._down: JournalUnavailable | None = None
        # All of the rest is the loop's.
        self._intake = Intake(backlog_limit)
        self._queue: list[_Entry] = []
        self._writing: Ticket | None = None  # a batch is with the writer
        self._gathering = False
        self._pressing = False  # the queue has something that is not patient, or no longer
        self._patience: asyncio.TimerHandle | None = None
        self._refusal: JournalUnavailable | None = JournalUnavailable("the journal is not open")
        self._changed: Callable[[JournalUnavailable | None], object] = lambda _: None

    # -- on the event loop -------------------------------------------------------------------------------
    async def open(self) -> list[JournaledTask]:
        self._loop = asyncio.get_running_loop()
        self._database = Database(self._path, self._durability, transcripts_by(self._archive, self._loop), self._fault)
        self._gone = Ticket(self._loop)
        opened = Ticket(self._loop)
        self._thread = threading.Thread(target=self._work, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        outcome = await opened
        if isinstance(outcome, BaseException):
            raise outcome
        self._loaded = replace(outcome, tasks=[])  # what may be large is handed over, not kept
        self._refusal = None
        tasks: list[JournaledTask] = outcome.tasks
        return tasks

    def append(self, fact: Fact) -> Ticket:
        ticket = Ticket(self._loop)
        if self._refusal is not None:
            return self._lose(fact, ticket, str(self._refusal))
        verdict = self._intake.judge(fact)
        if verdict == "skip":
            return ticket.resolve()
        if verdict == "refuse":
            return ticket.fail(JournalUnavailable(f"the journal {self._path} cannot keep up"))
        try:
            body, content = codec.encode(fact)
        except (TypeError, ValueError) as error:
            return ticket.fail(JournalUnavailable(f"this cannot be journaled: {error}"))
        size = codec.size(body, content)
        self._intake.backlog += size
        self._queue.append(_Entry(fact, body, content, ticket, size))
        if type(fact) not in PATIENT:
            if not self._pressing:
                self._press()
        elif self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._out_of_patience)
        return ticket

    def _press(self) -> None:
        self._pressing = True
        if not self._gathering and self._writing is None:
            self._gathering = True
            self._loop.call_soon(self._gather, 0, TURNS)

    def _out_of_patience(self) -> None:
        self._patience = None  # what came since the last batch went may have waited for less: no harm
        if self._queue:
            self._press()

    def _gather(self, seen: int, turns: int) -> None:
        """Hand over what is there as soon as a turn of the loop brought nothing more, and after some in any case."""
        if turns and len(self._queue) > seen:
            self._loop.call_soon(self._gather, len(self._queue), turns - 1)
        else:
            self._gathering = False
            self._hand_over()

    def _hand_over(self) -> None:
        if self._queue and self._writing is None:
            batch, self._queue = self._queue, []
            self._pressing = False
            self._writing = Ticket(self._loop)
            self._inbox.put(partial(self._write, batch))

    def _lose(self, fact: Fact, ticket: Ticket, reason: str) -> Ticket:
        self._intake.lost(fact)
        return ticket.fail(JournalUnavailable(reason))

    async def log(self, task_id: str) -> bytes | None:
        found: bytes | None = await self._asked(lambda: self._database.log(task_id))
        return found

    async def transcript(self, task_id: str) -> Artifact | None:
        found: Artifact | None = await self._asked(lambda: self._database.transcript(task_id))
        return found

    async def _asked(self, read: Callable[[], Any]) -> Any:
        if self._refusal is not None:
            raise self._refusal
        answer = Ticket(self._loop)
        self._inbox.put(partial(self._read, read, answer))
        return await answer

    def transcripts(self) -> list[tuple[str, Artifact]]:
        found = self._loaded.outbox
        self._loaded = replace(self._loaded, outbox=[])
        return found

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
        self._refusal = JournalUnavailable("the journal is closed")
        self._hand_over()
        while self._writing is not None:
            await self._writing
            self._hand_over()
        self._inbox.put(None)
        await self._gone
        self._thread.join()

    def _written(self, batch: list[_Entry], results: list[Artifact | None]) -> None:
        self._landed(batch)
        for entry, result in zip(batch, results, strict=True):
            entry.ticket.resolve(result)
        if self._pressing and not self._gathering:
            self._gathering = True
            self._gather(0, TURNS)

    def _failed(self, batch: list[_Entry], refusal: JournalUnavailable) -> None:
        self._landed(batch)
        self._refuse(batch, refusal)

    def _refuse(self, batch: list[_Entry], refusal: JournalUnavailable) -> None:
        """Refuse these, everything that waits behind them, and whatever comes."""
        down = self._refusal is None
        if down:
            self._refusal = refusal
        waiting, self._queue = self._queue, []
        self._pressing = False
        self._intake.backlog -= sum([entry.size for entry in waiting])
        for entry in batch + waiting:
            self._lose(entry.fact, entry.ticket, str(refusal))
        if down:
            self._changed(refusal)

    def _landed(self, batch: list[_Entry]) -> None:
        self._intake.backlog -= sum([entry.size for entry in batch])
        assert self._writing is not None
        written, self._writing = self._writing, None
        written.resolve()

    def _restore(self, refusal: JournalUnavailable) -> None:
        if self._refusal is refusal:
            self._refusal = None
            self._changed(None)

    # -- on the writer thread ----------------------------------------------------------------------------
    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _work(self, opened: Ticket) -> None:
        try:
            try:
                loaded = self._database.open()
            except Exception as error:
                self._tell(opened.resolve, error)
                return
            self._tell(opened.resolve, loaded)
            self._serve()
        finally:
            self._database.close()
            self._tell(self._gone.resolve)

    def _serve(self) -> None:
        while True:
            try:
                work = self._inbox.get(timeout=None if self._erased is None else ERASE_IDLE_S)
                if work is None:
                    return
                work()
                due = self._due()
            except Empty:
                due = True
            if due and self._down is None:
                self._checkpoint()
            if self._down is not None and not self._recovered(self._down):
                return

    def _write(self, batch: list[_Entry]) -> None:
        if self._down is not None:
            self._tell(self._failed, batch, self._down)
            return
        try:
            results = self._database.write([entry[:3] for entry in batch])
        except Exception as error:  # whatever it is, a journal that stops without a word is worse
            self._down = self._unavailable(error)
            self._tell(self._failed, batch, self._down)
            return
        self._tell(self._written, batch, results)
        if self._erased is None and any(isinstance(entry.fact, Finished) for entry in batch):
            self._erased = time.monotonic()

    def _due(self) -> bool:
        """Whether the WAL has to be truncated now, however much there is to do."""
        if self._erased is not None and time.monotonic() - self._erased > ERASE_BUSY_S:
            return True
        return self._database.wal_passed(WAL_LIMIT)

    def _checkpoint(self) -> None:
        try:
            self._database.checkpoint()
        except Exception as error:
            self._down = self._unavailable(error)
            self._tell(self._refuse, [], self._down)
        else:
            self._erased = None

    def _read(self, read: Callable[[], Any], answer: Ticket) -> None:
        if self._down is not None:
            self._tell(answer.fail, JournalUnavailable(str(self._down)))
            return
        try:
            self._tell(answer.resolve, read())
        except Damaged as error:  # this alone cannot be had
            self._tell(answer.fail, JournalUnavailable(f"the journal {self._path}: {error}"))
        except Exception as error:
            self._down = self._unavailable(error)
            self._tell(answer.fail, JournalUnavailable(str(self._down)))
            self._tell(self._refuse, [], self._down)

    def _unavailable(self, error: Exception) -> JournalUnavailable:
        message = f"the journal {self._path} cannot be written: {error}"
        return JournalUnavailable(message, reason=named(error), remedy=remedy(error, self._path.parent))

    def _recovered(self, refusal: JournalUnavailable) -> bool:
        """Try until the store takes a write again; False if the journal is closed before that."""
        pause, longest = RETRY_S
        while True:
            until = time.monotonic() + pause
            while (left := until - time.monotonic()) > 0:
                with contextlib.suppress(Empty):
                    work = self._inbox.get(timeout=left)
                    if work is None:
                        self._last_try()
                        return False
                    work()
            try:
                self._database.probe()
            except Exception:
                pause = min(2 * pause, longest)
            else:
                self._down = self._erased = None
                # Behind the refusals of this outage, and what is called back for them.
                self._tell(self._loop.call_soon, self._restore, refusal)
                return True

    def _last_try(self) -> None:
        """Nothing may be left of what was refused: the next start would take it for accepted."""
        with contextlib.suppress(Exception):
            self._database.probe()
