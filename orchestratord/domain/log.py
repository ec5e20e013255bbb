"""The event log of one task, and the cursor arithmetic over it.

A log is one bytearray of encoded SSE frames plus an array of frame ends. Event ids are 1, 2, 3 ... in append
order; only the terminal event of a task that a crash interrupted may skip ahead (`close(event_id=...)`).

Two marks govern it. The *seal* is synchronous: after it only the terminal event can be appended. The *visible*
mark is where readers stop: it follows appends once the log is opened, stands still from the seal on, and is
moved to the end when the terminal event may be seen (its `Finished` fact is durable).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

Watcher = Callable[[], object]


class EventLog:
    """Append-only frames with a seal, a visible mark and watchers that are told when it moves."""

    __slots__ = (
        "_data",
        "_ends",
        "_following",
        "_visible",
        "_watchers",
        "evicted",
        "next_id",
        "sealed",
        "size",
        "terminal_id",
        "visible_end",
    )

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q")
        self._visible = 0  # events readers may see
        self.next_id = 1  # the id the next appended frame must carry
        self.visible_end = 0  # the byte offset readers stop at
        self.size = 0  # bytes of all frames, in memory or not
        self._following = False
        self._watchers: tuple[Watcher, ...] = ()
        self.evicted = False  # the frames are in the journal only
        self.sealed: int | None = None  # id of the last event below the seal
        self.terminal_id: int | None = None

    # -- writing -----------------------------------------------------------------------------------------
    @property
    def last_id(self) -> int:
        return self.terminal_id if self.terminal_id is not None else len(self._ends)

    def append(self, *frames: bytes) -> None:
        """Add frames; if the log is open, make them visible and tell every watcher once. The caller has checked that
        it is not sealed."""
        assert self.sealed is None, "append above the seal"
        data, ends, size = self._data, self._ends, self.size
        for frame in frames:
            data += frame
            size += len(frame)
            ends.append(size)
        self.size = size
        events = len(ends)
        self.next_id = events + 1
        if self._following:
            self._visible, self.visible_end = events, size
            for watcher in self._watchers:
                watcher()

    def open(self) -> None:
        """Let readers see everything appended so far and, until the seal, whatever follows."""
        if self.sealed is None:
            self._following = True
            self._show(len(self._ends))

    def show(self, events: int) -> None:
        """Let readers see the first `events` events and no more for now."""
        self._show(max(self._visible, min(events, len(self._ends))))

    def _show(self, events: int) -> None:
        self._visible = events
        self.visible_end = self._ends[events - 1] if events else 0
        for watcher in self._watchers:
            watcher()

    def seal(self) -> int:
        """Nothing but the terminal event can follow. Idempotent; returns the id of the last event below."""
        if self.sealed is None:
            self._following = False
            self.sealed = len(self._ends)
        return self.sealed

    def close(self, frame: bytes, event_id: int | None = None) -> None:
        """Append the one terminal frame; it stays hidden until `reveal`."""
        assert self.sealed is not None, "terminal event before the seal"
        assert self.terminal_id is None, "second terminal event"
        self.terminal_id = self.next_id if event_id is None else event_id
        assert self.terminal_id > self.sealed, "terminal id below the seal"
        self._data += frame
        self.size += len(frame)
        self._ends.append(self.size)
        self.next_id += 1

    def reveal(self) -> None:
        """Readers may see everything, the terminal event included."""
        self._show(len(self._ends))

    # -- reading -----------------------------------------------------------------------------------------
    @property
    def visible_id(self) -> int:
        """Id of the last event a reader may see; 0 when there is none."""
        return self.last_id if self._visible == len(self._ends) else self._visible

    @property
    def finished(self) -> bool:
        """The terminal event is visible: a cursor that has read it all is done."""
        return self.terminal_id is not None and self._visible == len(self._ends)

    def offset_after(self, event_id: int) -> int:
        """Byte offset of the event after `event_id`; 0 means from the start."""
        if event_id == 0:
            return 0
        if self.terminal_id is not None and event_id >= self.terminal_id:
            return self.size
        index = min(event_id, len(self._ends) - (self.terminal_id is not None))
        return self._ends[index - 1]

    def read(self, start: int, limit: int | None = None) -> bytes:
        """Visible bytes from `start`: whole frames, at most `limit` bytes unless one frame alone is longer."""
        end = self.visible_end
        if limit is not None and end - start > limit:
            end = self._frame_end_before(start, start + limit)
        return bytes(memoryview(self._data)[start:end])

    def raw(self, start: int = 0) -> bytes:
        """All bytes from `start`, visible or not: for the journal and the transcript."""
        return bytes(memoryview(self._data)[start:])

    def _frame_end_before(self, start: int, bound: int) -> int:
        lo, hi = 0, len(self._ends) - 1
        while lo < hi:  # first end beyond the bound
            mid = (lo + hi) // 2
            if self._ends[mid] > bound:
                hi = mid
            else:
                lo = mid + 1
        previous = self._ends[lo - 1] if lo else 0
        return previous if previous > start else self._ends[lo]

    def evict(self) -> None:
        """Let go of the frames of a finished log; `restore` brings them back. Ids and places stay."""
        assert self.finished, "only a finished log can be read back"
        self._data = bytearray()
        self.evicted = True

    def restore(self, data: bytes) -> None:
        """Give an evicted log its frames back."""
        assert len(data) == self.size, "these are not the frames that were let go"
        self._data = bytearray(data)
        self.evicted = False

    # -- watching ----------------------------------------------------------------------------------------
    def watch(self, watcher: Watcher) -> None:
        self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers = tuple(known for known in self._watchers if known != watcher)

    @property
    def watchers(self) -> int:
        return len(self._watchers)
