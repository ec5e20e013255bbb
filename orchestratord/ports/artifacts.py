"""Artifacts: documents under the hash of their content."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol


class Encoded(bytes):
    """A content as the JSON text it will be stored as."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A content-addressed document: `id` is the SHA-256 of the RFC 8785 form of the five client fields.

    On its way to a store the content may be `Encoded`; whoever reads it gets objects.
    """

    id: str
    kind: str
    content: Any
    tags: tuple[str, ...]  # a sorted set
    parent: str | None
    metadata: dict[str, Any]
    created_ms: int

    def opened(self) -> Artifact:
        """The same with its content as objects."""
        return replace(self, content=json.loads(self.content)) if isinstance(self.content, Encoded) else self


class ArtifactCorrupt(Exception):
    """The stored bytes no longer hash to the artifact's id."""


class ArtifactTooLarge(Exception):
    """More bytes than the store takes for one artifact; the message says how many those are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store knows of an artifact without reading it. `artifact` has no content; `size` is in bytes."""

    artifact: Artifact
    size: int
    automatic: bool


class ArtifactStore(Protocol):
    """Content-addressed documents. Writes are atomic, reads are verified.

    What the daemon itself has put is `automatic` and may be dropped. What anybody else has put, be it once and before
    or after the daemon, is kept for good. The mark outlives a restart.
    """

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        """Store it unless its id is there already; return what is stored (the first `created_ms` wins).

        Until this returns neither the artifact nor the one it names as its parent is dropped. Raises ArtifactTooLarge,
        and OSError when the store cannot be written.
        """

    async def put_all(self, artifacts: Sequence[Artifact]) -> int:
        """`put` of one or more automatic ones, in order and at the price of few; returns how many of them are stored.

        Raises what `put` would if that is none.
        """

    async def get(self, artifact_id: str) -> Artifact | None:
        """The artifact, or None. Raises ArtifactCorrupt when its bytes were damaged."""

    async def list(self, *, limit: int, after: tuple[int, str] | None, tag: str | None) -> list[Artifact]:
        """Newest first by (created_ms, id), beginning below the key `after`; `content` may be left as None."""

    def oldest(self, *, limit: int, after: tuple[int, str] | None) -> builtins.list[Stored]:
        """Automatic artifacts, oldest first by (created_ms, id), beginning above the key `after`."""

    async def drop(self, artifact_id: str) -> bool:
        """Remove an automatic artifact that no other one names as its parent; False, and it stays, for all others.

        Decided before the first await. A later `put` stores it anew. Whatever happens, it is there whole or not at
        all. Raises OSError, and then it is there.
        """

    @property
    def automatic_bytes(self) -> int:
        """Bytes of all automatic artifacts."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of all others."""
