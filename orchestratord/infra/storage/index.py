"""Which artifacts a store holds, newest first: everything about them but their content."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from dataclasses import replace

from orchestratord.ports import Artifact, Stored

Key = tuple[int, str]  # (created_ms, id)
is_id = re.compile(r"[0-9a-f]{64}").fullmatch


class Index:
    """Artifacts by id and in the order of (created_ms, id); which of them are automatic, and whose parents they are."""

    def __init__(self) -> None:
        self.automatic_bytes = self.kept_bytes = 0
        self._by_id: dict[str, Stored] = {}
        self._keys: list[Key] = []  # ascending
        self._automatic: list[Key] = []  # of these, likewise
        self._children: Counter[str] = Counter()

    def get(self, artifact_id: str) -> Stored | None:
        return self._by_id.get(artifact_id)

    def add(self, stored: Stored) -> Stored:
        """Returns what is listed: the first one wins, and stays automatic only if both are."""
        known = self._by_id.get(stored.artifact.id)
        if known is not None and (stored.automatic or not known.automatic):
            return known
        if known is not None:
            self.remove(known.artifact.id)
            stored = replace(known, automatic=False)
        a = stored.artifact  # not `replace`, which takes ten times as long: every transcript comes by
        artifact = Artifact(a.id, a.kind, None, a.tags, a.parent, a.metadata, a.created_ms)
        stored = Stored(artifact, stored.size, stored.automatic)
        self._by_id[artifact.id] = stored
        insort(self._keys, _key(artifact))
        if stored.automatic:
            insort(self._automatic, _key(artifact))
        if artifact.parent is not None:
            self._children[artifact.parent] += 1
        self._weigh(stored, 1)
        return stored

    def remove(self, artifact_id: str) -> Stored | None:
        stored = self._by_id.pop(artifact_id, None)
        if stored is None:
            return None
        key = _key(stored.artifact)
        for keys in (self._keys, self._automatic) if stored.automatic else (self._keys,):
            del keys[bisect_left(keys, key)]
        if stored.artifact.parent is not None:
            self.disown(stored.artifact.parent)
        self._weigh(stored, -1)
        return stored

    def _weigh(self, stored: Stored, sign: int) -> None:
        if stored.automatic:
            self.automatic_bytes += sign * stored.size
        else:
            self.kept_bytes += sign * stored.size

    # -- what may be dropped -----------------------------------------------------------------------------
    def expect(self, parent: str) -> None:
        """An artifact that names this parent is on its way."""
        self._children[parent] += 1

    def disown(self, parent: str) -> None:
        """It is here now and counted, or will not come."""
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]

    def droppable(self, artifact_id: str) -> bool:
        stored = self._by_id.get(artifact_id)
        return stored is not None and stored.automatic and artifact_id not in self._children

    def oldest(self, limit: int, after: Key | None) -> list[Stored]:
        start = 0 if after is None else bisect_right(self._automatic, after)
        return [self._by_id[artifact_id] for _, artifact_id in self._automatic[start : start + limit]]

    # -- pages -------------------------------------------------------------------------------------------
    def page(self, limit: int, after: Key | None, tag: str | None) -> list[Artifact]:
        position = len(self._keys) if after is None else bisect_left(self._keys, after)
        found: list[Artifact] = []
        while position and len(found) < limit:
            position -= 1
            artifact = self._by_id[self._keys[position][1]].artifact
            if tag is None or tag in artifact.tags:
                found.append(artifact)
        return found


def _key(artifact: Artifact) -> Key:
    return artifact.created_ms, artifact.id
