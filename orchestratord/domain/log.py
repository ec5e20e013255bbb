"""The event log of one task, and the cursor arithmetic over it.

A log is one bytearray of encoded SSE frames plus an array of frame ends. Event ids are 1, 2, 3 ... in append
order; only the terminal event of a task that a crash interrupted may skip ahead (`close(event_id=...)`).

Two marks govern it. The *seal* is synchronous: after it only the terminal event can be appended. The *visible*
mark is where readers stop: it follows appends once the log is opened, stands still from the seal on, and is
moved to the end when the terminal event may be seen (its `Finished` fact is durable).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestratord.domain.task import Task

# Neither may raise: an append calls those of all readers, and would end the task for the others.
Watcher = Callable[[], object]
Write = Callable[[bytes], object]


def lengths(frames: bytes | bytearray) -> array[int]:
    """How many bytes each of these encoded frames has; an empty line is the end of one."""
    return array("I", [len(frame) + 2 for frame in frames.split(b"\n\n")[:-1]])


class EventLog:
    """Append-only frames with a seal, a visible mark and watchers that are told when it moves."""

    __slots__ = (
        "_data",
        "_ends",
        "_readers",
        "_told",
        "_visible",
        "_visible_end",
        "_writes",
        "brim",
        "evicted",
        "flowing",
        "sealed",
        "size",
        "terminal_id",
    )

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q")
        self._visible = self._visible_end = 0  # what readers may see while it does not flow: events, bytes
        self.size = 0  # bytes of all frames, in memory or not
        self.flowing = False  # what is appended is visible at once
        self.brim = 0  # while it flows: the size up to which an append is nothing but an append (`Inlet`)
        self._readers: tuple[tuple[Watcher, Write | None], ...] = ()
        self._told: tuple[Watcher, ...] = ()  # of the readers, who is told of an append
        self._writes: tuple[Write, ...] = ()  # and what the others are handed it by
        self.evicted = False  # the frames are in the journal only
        self.sealed: int | None = None  # id of the last event below the seal
        self.terminal_id: int | None = None

    # -- writing -----------------------------------------------------------------------------------------
    @property
    def next_id(self) -> int:
        """The id the next appended frame must carry."""
        return len(self._ends) + 1

    @property
    def last_id(self) -> int:
        return self.terminal_id if self.terminal_id is not None else len(self._ends)

    def append(self, *frames: bytes) -> None:
        """Add frames; if the log flows, hand them to every reader that follows and tell the others once. The caller has
        checked that it is not sealed."""
        assert self.sealed is None, "append above the seal"
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        ends = accumulate(map(len, frames), initial=self.size)
        next(ends)
        self._ends.extend(ends)
        self._data += data
        self.size += len(data)
        if self.flowing:
            for write in self._writes:
                write(data)
            for watcher in self._told:
                watcher()

    def leave_out(self, lengths: Iterable[int]) -> None:
        """As if frames of these lengths were in it: of a log that is sealed, closed, revealed and evicted at once."""
        ends = accumulate(lengths, initial=self.size)
        next(ends)
        self._ends.extend(ends)
        self.size = self._ends[-1]

    def open(self) -> None:
        """Let readers see everything appended so far and, until the seal, whatever follows."""
        if self.sealed is None:
            self.flowing = True
            self._show(len(self._ends))

    def show(self, events: int) -> None:
        """Let readers see the first `events` events and no more for now."""
        self._show(max(self.visible, min(events, len(self._ends))))

    def _show(self, events: int) -> None:
        self._visible = events
        self._visible_end = self._ends[events - 1] if events else 0
        for watcher, _ in self._readers:
            watcher()

    def seal(self) -> int:
        """Nothing but the terminal event can follow. Idempotent; returns the id of the last event below."""
        if self.sealed is None:
            self._visible, self._visible_end = self.visible, self.visible_end
            self.flowing = False
            self.brim = 0
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

    def reveal(self) -> None:
        """Readers may see everything, the terminal event included."""
        self._show(len(self._ends))

    # -- reading -----------------------------------------------------------------------------------------
    @property
    def visible(self) -> int:
        """How many events readers may see."""
        return len(self._ends) if self.flowing else self._visible

    @property
    def visible_end(self) -> int:
        """The byte offset readers stop at."""
        return self.size if self.flowing else self._visible_end

    @property
    def visible_id(self) -> int:
        """Id of the last event a reader may see; 0 when there is none."""
        return self.last_id if self.visible == len(self._ends) else self._visible

    @property
    def finished(self) -> bool:
        """The terminal event is visible: a cursor that has read it all is done."""
        return self.terminal_id is not None and self._visible == len(self._ends)

    @property
    def followed(self) -> int:
        """The byte offset up to which readers that follow were handed everything."""
        return self.visible_end if self.sealed is None else self.offset_after(self.sealed)

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
        """Tell `watcher` whenever there is more to see; it follows no more."""
        self._read_by((*(pair for pair in self._readers if pair[0] != watcher), (watcher, None)))

    def follow(self, watcher: Watcher, write: Write) -> None:
        """From now on hand what is appended to `write`, and tell `watcher` of nothing but the end. It has everything
        that is visible now."""
        self._read_by((*(pair for pair in self._readers if pair[0] != watcher), (watcher, write)))

    def unwatch(self, watcher: Watcher) -> None:
        self._read_by(tuple(pair for pair in self._readers if pair[0] != watcher))

    def _read_by(self, readers: tuple[tuple[Watcher, Write | None], ...]) -> None:
        self._readers = readers
        self._told = tuple(watcher for watcher, write in readers if write is None)
        self._writes = tuple(write for _, write in readers if write is not None)

    @property
    def watchers(self) -> int:
        return len(self._readers)


class Inlet:
    """The way of a running stream's texts into its log, one by one: all that is done for every one of them.

    What happens once in a while is left to `Lives.output`: the first text, a flush, an end.
    """

    __slots__ = ("_form", "_log", "_most", "_quote", "_task")

    def __init__(self, task: Task, form: bytes, quote: Callable[[str], bytes]) -> None:
        self._task = task
        self._log = task.log
        self._most = task.request.max_tokens
        self._form = form
        self._quote = quote

    def text(self, text: str, tokens_out: int) -> bool:
        """Append one text that came alone. False when that is not all there is to do: nothing has been done then."""
        log, task = self._log, self._task
        ends, index = log._ends, task.token_frames
        frame = self._form % (len(ends) + 1, self._quote(text), index)
        size = log.size + len(frame)
        if size > log.brim or index >= self._most:
            return False
        log._data += frame
        log.size = size
        ends.append(size)
        task.token_frames = index + 1
        task.tokens_out = tokens_out
        for write in log._writes:
            write(frame)
        for watcher in log._told:
            watcher()
        return True
