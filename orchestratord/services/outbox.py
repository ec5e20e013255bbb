"""Transcripts that have not reached the store yet. The journal has all of them; here are the contents of some.

While the store cannot be written their number has no bound, and one may have megabytes: beyond `bytes_max` only what a
list shows of them stays, and the journal makes the rest anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from orchestratord.ports import Artifact, Encoded, Journal, JournalUnavailable

BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """`artifact` has neither content nor metadata where these are in the journal only. `size`: bytes of the content, 0
    if it came without."""

    task_id: str
    artifact: Artifact
    size: int
    here: bool


class Outbox:
    """In the order in which they came."""

    def __init__(self, journal: Journal, bytes_max: int | None = None) -> None:
        self._journal = journal
        self._waiting: dict[str, Waiting] = {}
        self._bytes_max = BYTES_MAX if bytes_max is None else bytes_max
        self.bytes = 0  # of the contents that are here

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task_id: str, artifact: Artifact) -> None:
        self.remove(artifact.id)
        size = _size(artifact)
        here = artifact.content is not None and self.bytes + size <= self._bytes_max
        if here:
            self.bytes += size
        else:
            artifact = replace(artifact, content=None, metadata={})
        self._waiting[artifact.id] = Waiting(task_id, artifact, size, here)

    def remove(self, artifact_id: str) -> None:
        gone = self._waiting.pop(artifact_id, None)
        if gone is not None and gone.here:
            self.bytes -= gone.size

    def shown(self) -> Iterator[Artifact]:
        """What a list shows of each."""
        return (waiting.artifact for waiting in self._waiting.values())

    async def get(self, artifact_id: str) -> Artifact | None:
        """None if it does not wait, or no longer. Raises JournalUnavailable."""
        waiting = self._waiting.get(artifact_id)
        return None if waiting is None else await self._whole(waiting)

    async def oldest(self, most: int) -> list[tuple[Waiting, Artifact | None]]:
        """Some of them, with all they have; no more bytes than may be here, unless it is the first. None: it is lost.

        Raises JournalUnavailable while the journal cannot be read.
        """
        found: list[tuple[Waiting, Artifact | None]] = []
        left = self._bytes_max
        for waiting in list(islice(self._waiting.values(), most)):
            if found and (left < 0 or waiting.size > left):
                break
            whole = await self._whole(waiting)
            left -= _size(whole) if whole is not None else 0
            found.append((waiting, whole))
        return found

    async def _whole(self, waiting: Waiting) -> Artifact | None:
        if waiting.here:
            return waiting.artifact
        try:
            return await self._journal.transcript(waiting.task_id)
        except JournalUnavailable:
            if self._journal.healthy:  # this one alone is damaged
                return None
            raise


def _size(artifact: Artifact) -> int:
    return len(artifact.content) if isinstance(artifact.content, Encoded) else 0
