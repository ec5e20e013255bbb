"""Artifacts: content-addressed documents of clients, and the transcripts that the journal hands over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.errors import InvalidParams, NotFound, StorageUnavailable, TooLarge
from orchestratord.ports import (
    Artifact,
    ArtifactCorrupt,
    ArtifactStore,
    ArtifactTooLarge,
    Clock,
    Journal,
    JournalUnavailable,
    Telemetry,
)
from orchestratord.services.outbox import Outbox

RETRY_S = 5.0
TOGETHER = 64  # transcripts stored at once
GATHER_S = 0.1  # until then more of them come; whoever asks for one finds it all the same

Address = Callable[[str, Any, tuple[str, ...], str | None, dict[str, Any]], tuple[str, Any]]  # id, content to keep


class Artifacts:
    """The store, with the transcripts that have not reached it yet in front."""

    def __init__(
        self, store: ArtifactStore, journal: Journal, clock: Clock, telemetry: Telemetry, address: Address
    ) -> None:
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._address = address
        self.outbox = Outbox(journal)
        self._wanted = asyncio.Event()

    async def create(
        self, kind: str, content: Any, tags: list[str], parent: str | None, metadata: dict[str, Any]
    ) -> Artifact:
        """Store a client's artifact; the same content has the same id and is stored once.

        Content with many values is `Encoded`.
        Raises InvalidParams for numbers no JSON reader keeps exactly, TooLarge and StorageUnavailable.
        """
        unique = tuple(sorted(set(tags)))
        try:
            # Off the loop: the canonical form of a megabyte of numbers takes more than a second.
            artifact_id, content = await asyncio.to_thread(self._address, kind, content, unique, parent, metadata)
        except ValueError as error:
            raise InvalidParams(str(error), rule="body_syntax") from None
        artifact = Artifact(artifact_id, kind, content, unique, parent, metadata, self._clock.wall_ms())
        try:
            return await self._store.put(artifact)
        except ArtifactTooLarge as error:
            raise TooLarge(str(error)) from None
        except OSError as error:
            raise StorageUnavailable("The artifact store cannot be written now.", retry_after_ms=1000) from error

    async def get(self, artifact_id: str) -> Artifact:
        """Its content may be `Encoded`. Raises NotFound, StorageUnavailable; a damaged artifact is not served."""
        try:
            waiting = await self.outbox.get(artifact_id)
            if waiting is not None:
                return waiting
            found = await self._store.get(artifact_id)
        except JournalUnavailable as error:
            raise StorageUnavailable("This transcript cannot be read now.", retry_after_ms=1000) from error
        except ArtifactCorrupt:
            self._telemetry.event("artifact_corrupt", "a stored artifact is damaged", artifact_id=artifact_id)
            found = None
        except OSError as error:
            raise StorageUnavailable("The artifact store cannot be read now.", retry_after_ms=1000) from error
        if found is None:
            raise NotFound(f"There is no artifact {artifact_id}; transcripts of tasks are kept for a limited time.")
        return found

    async def list(self, limit: int, after: tuple[int, str] | None, tag: str | None) -> list[Artifact]:
        """Newest first. Transcripts still on their way to the store are listed too. Raises StorageUnavailable."""
        try:
            stored = await self._store.list(limit=limit, after=after, tag=tag)
        except OSError as error:
            raise StorageUnavailable("The artifact store cannot be read now.", retry_after_ms=1000) from error
        found = {a.id: a for a in stored}
        for artifact in self.outbox.shown():
            key = (artifact.created_ms, artifact.id)
            if (after is None or key < after) and (tag is None or tag in artifact.tags):
                found.setdefault(artifact.id, replace(artifact, content=None))
        return sorted(found.values(), key=lambda a: (a.created_ms, a.id), reverse=True)[:limit]

    # -- the way of a transcript into the store ------------------------------------------------------------
    def recover(self, waiting: Iterable[tuple[str, Artifact]], core: Core) -> None:
        """Take over what the journal kept for the store over a restart."""
        for task_id, artifact in waiting:
            core.owes(task_id)
            self.archive(task_id, artifact)

    def archive(self, task_id: str, artifact: Artifact) -> None:
        """Take over a transcript that is durable in the journal."""
        self.outbox.add(task_id, artifact)
        self._wanted.set()

    async def serve(self, core: Core) -> None:
        """Move transcripts to the store, in order, for as long as the daemon runs."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._clock.sleep(GATHER_S)
            while self.outbox:
                some = await self._oldest(core)
                try:
                    stored = await self._store.put_all([artifact for artifact, _ in some]) if some else 0
                except OSError as error:
                    self._telemetry.event("archive_failed", "the artifact store refuses transcripts", error=str(error))
                    await self._clock.sleep(RETRY_S)
                    continue
                except Exception as error:  # this one alone cannot be stored: the journal keeps it, the others go on
                    self._give_up(core, *some[0], error)
                    continue
                for artifact, _ in some[:stored]:
                    self.outbox.remove(artifact.id)
                core.archived(*(task_id for _, task_id in some[:stored]))

    async def _oldest(self, core: Core) -> Sequence[tuple[Artifact, str]]:
        """The next ones to store, with their tasks; what the journal has lost is given up."""
        while True:
            try:
                found = await self.outbox.oldest(TOGETHER)
            except JournalUnavailable:
                await self._clock.sleep(RETRY_S)
                continue
            for waiting, artifact in found:
                if artifact is None:
                    self._give_up(core, waiting.artifact, waiting.task_id, None)
            return [(artifact, waiting.task_id) for waiting, artifact in found if artifact is not None]

    def _give_up(self, core: Core, artifact: Artifact, task_id: str, error: Exception | None) -> None:
        self._telemetry.event("archive_failed", "a transcript cannot be stored", error=error)
        self.outbox.remove(artifact.id)
        core.owes(task_id, owed=False)
