"""Artifacts in memory."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from orchestratord.infra.storage import document
from orchestratord.infra.storage.index import Index, Key, is_id
from orchestratord.ports import Artifact, Stored


class MemoryArtifacts:
    """Lasts as long as the process. Nothing here awaits, so nothing comes in between."""

    def __init__(self) -> None:
        self._index = Index()
        self._whole: dict[str, Artifact] = {}

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        if not is_id(artifact.id):
            raise ValueError("not an artifact id")
        stored = self._whole.setdefault(artifact.id, artifact)
        known = self._index.get(artifact.id)
        if known is None or (known.automatic and not automatic):
            size = known.size if known is not None else len(document.encode(stored))
            self._index.add(Stored(stored, size, automatic))
        return stored

    async def put_all(self, artifacts: Sequence[Artifact]) -> int:
        for stored, artifact in enumerate(artifacts):
            try:
                await self.put(artifact, automatic=True)
            except Exception:
                if not stored:
                    raise
                return stored
        return len(artifacts)

    async def get(self, artifact_id: str) -> Artifact | None:
        return self._whole.get(artifact_id)

    async def list(self, *, limit: int, after: Key | None, tag: str | None) -> builtins.list[Artifact]:
        return self._index.page(limit, after, tag)

    def oldest(self, *, limit: int, after: Key | None) -> builtins.list[Stored]:
        return self._index.oldest(limit, after)

    async def drop(self, artifact_id: str) -> bool:
        if not self._index.droppable(artifact_id):
            return False
        self._index.remove(artifact_id)
        del self._whole[artifact_id]
        return True

    @property
    def automatic_bytes(self) -> int:
        return self._index.automatic_bytes

    @property
    def kept_bytes(self) -> int:
        return self._index.kept_bytes
