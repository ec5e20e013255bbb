"""Which artifacts a store holds, newest first: everything about them but their content."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from dataclasses import replace

from orchestratord.ports import Artifact

Key = tuple[int, str]  # (created_ms, id)
is_id = re.compile(r"[0-9a-f]{64}").fullmatch


class Index:
    """Artifacts without content, by id and in the order of (created_ms, id)."""

    def __init__(self) -> None:
        self._by_id: dict[str, Artifact] = {}
        self._keys: list[Key] = []  # ascending

    def get(self, artifact_id: str) -> Artifact | None:
        return self._by_id.get(artifact_id)

    def add(self, artifact: Artifact) -> Artifact:
        """Returns what is listed: the first one wins."""
        known = self._by_id.get(artifact.id)
        if known is None:
            known = self._by_id[artifact.id] = replace(artifact, content=None)
            insort(self._keys, (known.created_ms, known.id))
        return known

    def remove(self, artifact_id: str) -> None:
        artifact = self._by_id.pop(artifact_id, None)
        if artifact is not None:
            del self._keys[bisect_left(self._keys, (artifact.created_ms, artifact.id))]

    def page(self, limit: int, after: Key | None, tag: str | None) -> list[Artifact]:
        position = len(self._keys) if after is None else bisect_left(self._keys, after)
        found: list[Artifact] = []
        while position and len(found) < limit:
            position -= 1
            artifact = self._by_id[self._keys[position][1]]
            if tag is None or tag in artifact.tags:
                found.append(artifact)
        return found
