"""Incremental decoder of an engine's event stream, by the rules of the WHATWG HTML standard, section 9.2.

Engines use one field of the format, `data`; the others are read over. Bytes stay bytes: a character split between two
reads cannot break anything here.
"""

from __future__ import annotations

from orchestratord.ports import EngineError

LIMIT = 1 << 20  # bytes of a line, and of an event
_BOM = b"\xef\xbb\xbf"


class SSEDecoder:
    """One stream's decoder: feed it every read, in order."""

    __slots__ = ("_data", "_fresh", "_limit", "_parts", "_pending", "_size", "_skip_newline", "_tidy")

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._tidy = True  # nothing is left over from the reads so far
        self._fresh = True  # nothing but perhaps part of a byte order mark has come
        self._skip_newline = False  # the last read ended in \r: a \n that follows belongs to it
        self._parts: list[bytes] = []  # the line that has begun: joined once, so that a slow drip stays linear
        self._pending = 0  # bytes in `_parts`
        self._data: list[bytes] = []  # the data lines of the event that has begun
        self._size = 0  # bytes in `_data`

    @property
    def within(self) -> bool:
        """An event has begun and is not complete."""
        return bool(self._pending or self._data)

    @property
    def between(self) -> bool:
        """It stands between two events: what follows can be told without what came before."""
        return self._tidy and not self._fresh

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that this read completes; an event without data is none.

        Raises EngineError(protocol) for a line or an event of more than `limit` bytes.
        """
        # What engines send nearly always: whole frames of one `data: ` line each, and nothing left over.
        size = len(data)
        if (
            self._tidy
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and size <= self._limit
            and 13 not in data  # no \r; in bytes a number is found quicker than bytes are
        ):
            if data.find(b"\n") == size - 2:
                self._fresh = False
                return [data[6:-2]]
            payloads = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(payloads):
                self._fresh = False
                return payloads
        payloads = self._feed_lines(data)
        self._tidy = not (self._parts or self._data or self._skip_newline)
        return payloads

    def _feed_lines(self, data: bytes) -> list[bytes]:
        if self._fresh:
            data = b"".join((*self._parts, data))
            self._parts.clear()
            self._pending = 0
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._keep(data)
                return []
            data = data.removeprefix(_BOM)
            self._fresh = False
        if self._skip_newline and data:
            data = data.removeprefix(b"\n")
            self._skip_newline = False
        lines = data.splitlines(keepends=True)  # of bytes: splits at \n, \r and \r\n only
        if not lines:
            return []
        rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        self._skip_newline = not rest and lines[-1].endswith(b"\r")
        payloads: list[bytes] = []
        for line in lines:
            if self._parts:
                line = b"".join((*self._parts, line))
                self._parts.clear()
                self._pending = 0
            self._take(line.rstrip(b"\r\n"), payloads)
        if rest:
            self._keep(rest)
        return payloads

    def _keep(self, part: bytes) -> None:
        """Part of a line whose end has not come yet."""
        self._parts.append(part)
        self._pending += len(part)
        self._check(self._pending)

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        """One whole line, without its end."""
        self._check(len(line))
        if not line:
            if self._data:
                payloads.append(b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        elif line.startswith(b"data:"):
            self._add(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            self._add(b"")

    def _add(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value) + 1
        self._check(self._size)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EngineError("protocol", f"the engine sent an event of more than {self._limit} bytes")
