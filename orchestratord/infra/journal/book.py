"""The rows of the journal: what a batch of facts writes, and what the rows of a store say.

A fact about a task is one row, and rows are appended in the order of decisions: a commit touches the last pages of the
table, however many tasks it tells of. Which rows belong to a task is kept in memory, so no index has to follow.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from orchestratord.domain.entry import CatalogChanged, CatalogRemoved
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
from orchestratord.domain.log import lengths
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import codec, contents
from orchestratord.infra.journal.seal import Damaged, seal, unseal
from orchestratord.ports import Artifact, Encoded

SCHEMA = """
CREATE TABLE facts (id INTEGER PRIMARY KEY, ord INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE sessions (session_id TEXT PRIMARY KEY, after_order INTEGER NOT NULL, sum BLOB NOT NULL);
CREATE TABLE pools (pool_id TEXT PRIMARY KEY, changed BLOB NOT NULL);
CREATE TABLE catalog (model_id TEXT PRIMARY KEY, entry BLOB NOT NULL);
"""
ADMITTED, STARTED, FRAMES, FINISHED, ARCHIVED = range(5)
LOGS = 16 << 20  # bytes of frames of finished tasks that are read at the start: the newest, the rest when asked for
NAME = 64  # a `Finished` begins with the id of its transcript, or as many blanks

Record = tuple[Fact, bytes, bytes]  # a fact with its body and content, as the codec made them
FactRow = tuple[int, int, int, bytes]  # id, order of the task, kind, sealed body
Transcript = Callable[[Fact], Artifact | None]
Again = Callable[[Iterable[int]], Iterable[FactRow]]


def sealed(row_id: int, order: int, kind: int, body: bytes) -> FactRow:
    return row_id, order, kind, seal(body, b"%d %d %d" % (row_id, order, kind))


def unsealed(row_id: int, order: int, kind: int, body: object) -> bytes:
    """Raises Damaged."""
    return unseal(body, f"{row_id} {order} {kind}")  # what a damaged row brings need not be numbers


@dataclass(slots=True)
class Work:
    """What one commit has to write, in this order."""

    facts: list[FactRow] = field(default_factory=list)
    contents: list[contents.Row] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)  # rows of facts
    others: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)  # statements and their values


class Known:
    """The rows of one task: their ids, where its content lies, and a checksum of its log as far as it is stored."""

    __slots__ = ("ids", "log", "order", "slots")

    def __init__(self, order: int, log: int, slots: list[int]) -> None:
        self.order = order
        self.ids = array("q")
        self.log = log
        self.slots: list[int] | None = slots or None


class Book:
    """Every task that has rows. `transcript` makes the artifact a fact brings."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._known: dict[str, Known] = {}
        self._slots = contents.Slots()
        self.next_id = 1
        self._room: int | None = None  # this and the next while it reads
        self._again: Again = lambda ids: ()
        self._apply: dict[type, Callable[[Work, Any, bytes, bytes], Artifact | None]] = {
            Admitted: self._admitted,
            Started: self._started,
            Frames: self._frames,
            Finished: self._finished,
            Archived: self._archived,
            Forgotten: self._forgotten,
            SessionDeleted: self._session_deleted,
            PoolChanged: self._pool_changed,
            CatalogChanged: self._catalog_changed,
            CatalogRemoved: self._catalog_removed,
        }

    def rows_of(self, task_id: str) -> Iterable[int]:
        known = self._known.get(task_id)
        return () if known is None else known.ids

    def enter(self, batch: Iterable[Record]) -> tuple[Work, list[Artifact | None]]:
        """What to write, and what each fact's ticket resolves to. A fact about a task that is not here changes
        nothing."""
        work, apply = Work(), self._apply
        return work, [apply[type(fact)](work, fact, body, content) for fact, body, content in batch]

    def _add(self, work: Work, known: Known, kind: int, body: bytes) -> None:
        known.ids.append(self.next_id)
        work.facts.append(sealed(self.next_id, known.order, kind, body))
        self.next_id += 1

    def _erase(self, work: Work, known: Known) -> None:
        if known.slots is not None:
            work.contents += self._slots.erase(known.slots)
            known.slots = None

    # -- one method per fact -------------------------------------------------------------------------------
    def _admitted(self, work: Work, fact: Admitted, body: bytes, content: bytes) -> None:
        if fact.task_id in self._known:
            self._forgotten(work, fact)
        rows = self._slots.put(fact.order, content)
        work.contents += rows
        known = self._known[fact.task_id] = Known(fact.order, crc32(fact.started_frame), [slot for slot, _ in rows])
        self._add(work, known, ADMITTED, body)

    def _started(self, work: Work, fact: Started, body: bytes, _: bytes) -> None:
        if (known := self._known.get(fact.task_id)) is not None:
            self._add(work, known, STARTED, body)

    def _frames(self, work: Work, fact: Frames, body: bytes, _: bytes) -> None:
        if (known := self._known.get(fact.task_id)) is not None:
            known.log = crc32(body, known.log)
            self._add(work, known, FRAMES, body)

    def _finished(self, work: Work, fact: Finished, body: bytes, _: bytes) -> Artifact | None:
        made = self._transcript(fact)
        known = self._known.get(fact.task_id)
        if known is not None:
            source = fact.transcript
            # Frames may have been left out of the journal (`Intake`): the transcript has them all the same.
            if source is not None and crc32(source.frames) != crc32(fact.terminal_frame, known.log):
                body = codec.encode_whole(fact)
            name = made.id if made is not None else ""
            self._add(work, known, FINISHED, name.ljust(NAME).encode() + body)
            self._erase(work, known)
        return made

    def _archived(self, work: Work, fact: Archived, body: bytes, _: bytes) -> None:
        for task_id in fact.task_ids:
            if (known := self._known.get(task_id)) is not None:
                self._add(work, known, ARCHIVED, body)

    def _forgotten(self, work: Work, fact: Forgotten | Admitted, *_: bytes) -> None:
        if (known := self._known.pop(fact.task_id, None)) is not None:
            work.gone += known.ids
            self._erase(work, known)

    def _session_deleted(self, work: Work, fact: SessionDeleted, *_: bytes) -> None:
        sum_ = seal(b"", f"{fact.session_id}{fact.after_order}")
        row = fact.session_id, fact.after_order, sum_
        work.others.append(("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", row))

    def _pool_changed(self, work: Work, fact: PoolChanged, body: bytes, _: bytes) -> None:
        row = fact.pool_id, seal(body, fact.pool_id)
        work.others.append(("INSERT OR REPLACE INTO pools VALUES (?, ?)", row))

    def _catalog_changed(self, work: Work, fact: CatalogChanged, *_: bytes) -> None:
        row = fact.entry.id, seal(codec.encode_entry(fact.entry), fact.entry.id)
        work.others.append(("INSERT OR REPLACE INTO catalog VALUES (?, ?)", row))

    def _catalog_removed(self, work: Work, fact: CatalogRemoved, *_: bytes) -> None:
        work.others.append(("DELETE FROM catalog WHERE model_id = ?", (fact.model_id,)))

    # -- reading -------------------------------------------------------------------------------------------
    def read(
        self, facts: Iterable[FactRow], rows: Iterable[contents.Row], room: int | None, again: Again
    ) -> tuple[list[tuple[JournaledTask, Artifact | None]], Work]:
        """The tasks of a store in admission order, each with its transcript if that is not archived; and what is left
        to erase. From here on the book is about this store. Raises Damaged.

        `room`: bytes of contents of transcripts; those beyond have neither content nor metadata. None: none is made.
        `again` gives rows by their ids: the frames of most finished tasks are not kept while all rows are read.
        """
        self._room = room
        self._again = again
        self._known.clear()
        self.next_id = 1
        found: dict[int, _Task] = {}
        logs, left = deque[_Task](), LOGS
        for row_id, order, kind, body in facts:
            data = unsealed(row_id, order, kind, body)
            if kind == ADMITTED:
                found[order] = _Task(data)
            elif order not in found:
                raise Damaged("it is damaged (a fact about no task)")
            task = found[order]
            if kind == FINISHED and task.finished is None:
                logs.append(task)
                left -= len(task.frames)
                while left < 0:
                    left += len(logs[0].frames)
                    logs.popleft().leave()
            task.add(row_id, kind, data)
            self.next_id = row_id + 1
        held = contents.Found(rows)
        tasks = [self._task(order, found.pop(order), held) for order in sorted(found)]
        stale = held.left()
        self._slots = contents.Slots(held.top, held.blank)
        return tasks, Work(contents=self._slots.erase(stale))

    def _task(self, order: int, task: _Task, held: contents.Found) -> tuple[JournaledTask, Artifact | None]:
        content, slots = held.take(order) if task.finished is None else (None, [])
        admitted = codec.decode_admitted(task.admitted, content)
        if admitted.order != order or admitted.task_id in self._known:
            raise Damaged("it is damaged (a task under another's name)")
        frames = bytes(task.frames)
        known = self._known[admitted.task_id] = Known(order, crc32(frames, crc32(admitted.started_frame)), slots)
        known.ids.extend(task.ids)
        started = None if task.started is None else codec.decode_started(task.started)
        if task.finished is None:
            return JournaledTask(admitted, started, frames, None, None), None
        name, finished = _decode_finished(task.finished)
        made = None
        waits = name is not None and finished.transcript is not None and not task.archived
        if waits and self._room is not None:
            made = self.transcript(self._again(task.ids))
            name = made.id if made is not None else None
            if made is not None and isinstance(made.content, Encoded):
                self._room -= len(made.content)
                if self._room < 0:
                    made = replace(made, content=None, metadata={})
        return JournaledTask(admitted, started, frames, replace(finished, transcript=None), name, task.left), made

    def transcript(self, rows: Iterable[FactRow]) -> Artifact | None:
        """What a finished task has waiting, from all its rows. Raises Damaged."""
        task: _Task | None = None
        for row in rows:
            data = unsealed(*row)
            if row[2] == ADMITTED:
                task = _Task(data)
            assert task is not None, "a task begins with its admission"
            task.add(row[0], row[2], data)
        if task is None or task.finished is None or task.archived:
            return None
        _, finished = _decode_finished(task.finished)
        return self._made(task, codec.decode_admitted(task.admitted, None), finished)

    def _made(self, task: _Task, admitted: Admitted, finished: Finished) -> Artifact | None:
        source = finished.transcript
        if source is None:
            return None
        log = source.frames or b"".join((admitted.started_frame, bytes(task.frames), finished.terminal_frame))
        return self._transcript(replace(finished, transcript=replace(source, frames=log)))


class _Task:
    """The rows of one task as they are read."""

    def __init__(self, admitted: bytes) -> None:
        self.ids: list[int] = []
        self.admitted = admitted
        self.started: bytes | None = None
        self.frames = bytearray()
        self.left: array[int] | None = None
        self.finished: bytes | None = None
        self.archived = False

    def leave(self) -> None:
        """Its frames stay where they are."""
        self.left = lengths(self.frames)
        self.frames = bytearray()

    def add(self, row_id: int, kind: int, data: bytes) -> None:
        self.ids.append(row_id)
        if kind == STARTED:
            self.started = data
        elif kind == FRAMES:
            self.frames += data
        elif kind == FINISHED:
            self.finished, self.archived = data, False
        elif kind == ARCHIVED:
            self.archived = True


def _decode_finished(data: bytes) -> tuple[str | None, Finished]:
    return data[:NAME].decode().strip() or None, codec.decode_finished(data[NAME:])


def log_of(rows: Iterator[FactRow]) -> bytes | None:
    """The event log of a finished task as far as it was written. Raises Damaged."""
    pieces: list[bytes] = []
    for row in rows:
        data = unsealed(*row)
        if row[2] == ADMITTED:
            pieces = [codec.decode_admitted(data, None).started_frame]
        elif row[2] == FRAMES:
            pieces.append(data)
        elif row[2] == FINISHED:
            return b"".join((*pieces, _decode_finished(data)[1].terminal_frame))
    return None
