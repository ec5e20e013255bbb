"""Where the content of tasks lies until they end, in such a way that nothing is left of it when it is erased.

`secure_delete` overwrites freed cells and pages, but not the copies that SQLite leaves in the free space of a page when
it moves rows between neighbours. So these rows are never moved: they all have one size, none is deleted while there is
content in the table, and new ones come at its end, in order. One that is no longer needed is overwritten where it is,
with zeros, and used again. Content takes as many rows as it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from struct import Struct

from orchestratord.infra.journal.seal import Damaged, seal, unseal

_HEAD = Struct(">QIIH")  # order of the task; which part of how many; bytes of content in it
SIZE = 1000  # of a row: four fill a page
_ROOM = SIZE - 4 - _HEAD.size
BLANK = bytes(SIZE)

SCHEMA = "CREATE TABLE contents (slot INTEGER PRIMARY KEY, data BLOB NOT NULL);"
# Gives back what a crowd once took, if nothing is there any more.
CLEAR = "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM contents WHERE data <> zeroblob(length(data)))"

Row = tuple[int, bytes]  # slot and data


class Slots:
    """Which rows there are and which of them are free."""

    def __init__(self, top: int = 0, free: Iterable[int] = ()) -> None:
        self._top = top
        self._free = list(free)
        heapify(self._free)

    def put(self, order: int, content: bytes) -> list[Row]:
        """The rows to write so that `content` is there."""
        parts = -(-len(content) // _ROOM) or 1
        rows = []
        for part in range(parts):
            piece = content[part * _ROOM : (part + 1) * _ROOM]
            head = _HEAD.pack(order, part, parts, len(piece))
            slot = self._take()
            rows.append((slot, seal(head + piece + bytes(_ROOM - len(piece)), slot)))
        return rows

    def _take(self) -> int:
        if self._free:
            return heappop(self._free)
        self._top += 1
        return self._top

    def erase(self, slots: Iterable[int]) -> list[Row]:
        """The rows to write so that nothing is left there."""
        rows = []
        for slot in slots:
            heappush(self._free, slot)
            rows.append((slot, BLANK))
        return rows


class Found:
    """What the table holds: `rows` as they lie there. Raises Damaged."""

    def __init__(self, rows: Iterable[tuple[int, object]]) -> None:
        self.top = 0
        self.blank: list[int] = []
        self._parts: dict[int, dict[int, tuple[int, int, bytes]]] = {}  # order: part: (slot, parts, piece)
        for slot, data in rows:
            self.top = slot
            if data == BLANK:
                self.blank.append(slot)
                continue
            sealed = unseal(data, slot)
            order, part, parts, length = _HEAD.unpack_from(sealed)
            piece = sealed[_HEAD.size : _HEAD.size + length]
            self._parts.setdefault(order, {})[part] = slot, parts, piece

    def take(self, order: int) -> tuple[bytes, list[int]]:
        """The content of this task and where it lies. Raises Damaged."""
        parts = self._parts.pop(order, {})
        if not parts or set(parts) != set(range(parts[min(parts)][1])):
            raise Damaged("it is damaged (a task without its content)")
        ordered = [parts[part] for part in sorted(parts)]
        return b"".join(piece for _, _, piece in ordered), [slot for slot, _, _ in ordered]

    def left(self) -> list[int]:
        """Where content lies that nobody took."""
        return [slot for parts in self._parts.values() for slot, _, _ in parts.values()]
