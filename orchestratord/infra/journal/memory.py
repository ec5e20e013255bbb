"""A journal that lasts as long as its `MemoryStore`: for tests, and for a daemon that need not survive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
    TranscriptSource,
)
from orchestratord.domain.operation import PoolChanged
from orchestratord.infra.journal import codec
from orchestratord.infra.journal.intake import BACKLOG_LIMIT, Intake
from orchestratord.infra.journal.tickets import Ticket, transcripts_by
from orchestratord.ports import Artifact, JournalUnavailable


@dataclass(slots=True)
class MemoryStore:
    """What is durable: hand it to a second journal and that is a restart."""

    tasks: dict[str, JournaledTask] = field(default_factory=dict)
    outbox: dict[str, Artifact] = field(default_factory=dict)
    deleted: dict[str, SessionDeleted] = field(default_factory=dict)
    pools: dict[str, PoolChanged] = field(default_factory=dict)
    catalog: dict[str, CatalogEntry] = field(default_factory=dict)

    def apply(self, fact: Fact, transcript: Artifact | None) -> None:
        """Take one fact in. One about a task that is not here changes nothing."""
        match fact:
            case Admitted():
                self.outbox.pop(fact.task_id, None)
                self.tasks[fact.task_id] = JournaledTask(fact, None, b"", None, None)
            case SessionDeleted():
                self.deleted[fact.session_id] = fact
            case PoolChanged():
                self.pools[fact.pool_id] = fact
            case CatalogChanged():
                self.catalog[fact.entry.id] = fact.entry
            case CatalogRemoved():
                self.catalog.pop(fact.model_id, None)
            case Archived():
                for task_id in fact.task_ids:
                    self.outbox.pop(task_id, None)
            case _ if (task := self.tasks.get(fact.task_id)) is not None:
                self._change(task, fact, transcript)

    def _change(self, task: JournaledTask, fact: Fact, transcript: Artifact | None) -> None:
        task_id = task.admitted.task_id
        match fact:
            case Started():
                self.tasks[task_id] = replace(task, started=fact)
            case Frames():
                self.tasks[task_id] = replace(task, frames=task.frames + fact.data)
            case Finished():
                self.tasks[task_id] = replace(
                    task,
                    admitted=task.admitted.without_content(),
                    finished=replace(fact, transcript=None),
                    transcript_id=transcript.id if transcript else None,
                )
                self.outbox.pop(task_id, None)
                if transcript is not None:
                    self.outbox[task_id] = transcript
            case Forgotten():
                self.outbox.pop(task_id, None)
                del self.tasks[task_id]


class MemoryJournal:
    """Facts become durable on the loop's next turn. Set `broken` to a reason and it fails like a full disk."""

    def __init__(
        self,
        archive: Callable[[TranscriptSource], Artifact],
        *,
        store: MemoryStore | None = None,
        backlog_limit: int = BACKLOG_LIMIT,
    ) -> None:
        self.store = store or MemoryStore()
        self._broken: str | None = "it is not open"
        self._changed: Callable[[JournalUnavailable | None], object] = lambda _: None
        self._archive = archive
        self._intake = Intake(backlog_limit)
        self._pending: list[tuple[Fact, int, Ticket]] = []
        self._transcripts: list[tuple[str, Artifact]] = []
        self._deleted: list[SessionDeleted] = []
        self._changed_pools: list[PoolChanged] = []
        self._catalog: list[CatalogEntry] = []

    async def open(self) -> list[JournaledTask]:
        self._loop = asyncio.get_running_loop()
        self._transcript = transcripts_by(self._archive, self._loop)
        self._broken = None
        tasks = sorted(self.store.tasks.values(), key=lambda task: task.admitted.order)
        oldest = tasks[0].admitted.order if tasks else None
        for deleted in list(self.store.deleted.values()):
            if oldest is None or deleted.after_order < oldest:  # no task is left that it could speak of
                del self.store.deleted[deleted.session_id]
        ids = [task.admitted.task_id for task in tasks]
        self._transcripts = [(one, self.store.outbox[one]) for one in ids if one in self.store.outbox]
        self._changed_pools = sorted(self.store.pools.values(), key=lambda fact: fact.pool_id)
        self._catalog = sorted(self.store.catalog.values(), key=lambda entry: entry.id)
        self._deleted = sorted(self.store.deleted.values(), key=lambda fact: (fact.after_order, fact.session_id))
        return tasks

    async def log(self, task_id: str) -> bytes | None:
        task = self.store.tasks.get(task_id)
        if task is None or task.finished is None:
            return None
        return b"".join((task.admitted.started_frame, task.frames, task.finished.terminal_frame))

    def append(self, fact: Fact) -> Ticket:
        ticket = Ticket(self._loop)
        if self._broken is not None:
            self._intake.lost(fact)
            return ticket.fail(JournalUnavailable(f"the journal cannot be written: {self._broken}"))
        verdict = self._intake.judge(fact)
        if verdict == "skip":
            return ticket.resolve()
        if verdict == "refuse":
            return ticket.fail(JournalUnavailable("the journal cannot keep up"))
        try:
            size = codec.size(*codec.encode(fact))
        except (TypeError, ValueError) as error:
            return ticket.fail(JournalUnavailable(f"this cannot be journaled: {error}"))
        self._intake.backlog += size
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append((fact, size, ticket))
        return ticket

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        for fact, size, ticket in pending:
            self._intake.backlog -= size
            if self._broken is not None:
                self._intake.lost(fact)
                ticket.fail(JournalUnavailable(f"the journal cannot be written: {self._broken}"))
                continue
            transcript = self._transcript(fact)
            self.store.apply(fact, transcript)
            ticket.resolve(transcript)

    def transcripts(self) -> list[tuple[str, Artifact]]:
        found, self._transcripts = self._transcripts, []
        return found

    async def transcript(self, task_id: str) -> Artifact | None:
        return self.store.outbox.get(task_id)

    def deleted_sessions(self) -> list[SessionDeleted]:
        return self._deleted

    def changed_pools(self) -> list[PoolChanged]:
        return self._changed_pools

    def catalog(self) -> list[CatalogEntry]:
        return self._catalog

    @property
    def broken(self) -> str | None:
        return self._broken

    @broken.setter
    def broken(self, reason: str | None) -> None:
        before, self._broken = self._broken, reason
        if (before is None) is not (reason is None):
            self._changed(None if reason is None else JournalUnavailable(reason, reason=reason))

    @property
    def healthy(self) -> bool:
        return self._broken is None

    def watch(self, changed: Callable[[JournalUnavailable | None], object]) -> None:
        self._changed = changed

    @property
    def backlog(self) -> int:
        return self._intake.backlog

    async def close(self) -> None:
        self._flush()
        self._broken = "it is closed"
