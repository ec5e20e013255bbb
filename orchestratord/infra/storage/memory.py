"""Artifacts in memory."""

from __future__ import annotations

import builtins

from orchestratord.infra.storage.index import Index, Key, is_id
from orchestratord.ports import Artifact


class MemoryArtifacts:
    """Lasts as long as the process."""

    def __init__(self) -> None:
        self._index = Index()
        self._whole: dict[str, Artifact] = {}

    async def put(self, artifact: Artifact) -> Artifact:
        if not is_id(artifact.id):
            raise ValueError("not an artifact id")
        stored = self._whole.setdefault(artifact.id, artifact)
        self._index.add(stored)
        return stored

    async def get(self, artifact_id: str) -> Artifact | None:
        return self._whole.get(artifact_id)

    async def list(self, *, limit: int, after: Key | None, tag: str | None) -> builtins.list[Artifact]:
        return self._index.page(limit, after, tag)
