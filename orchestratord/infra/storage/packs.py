"""Artifacts that come by the dozen and go together: many in one file, written at once and never added to.

`folder/<number>.pack` is a run of entries: a line with id, length and checksum, then as many bytes. A pack comes to be
by a rename, so it is there whole or not at all. What is erased is overwritten where it is, its id first; a pack goes
when nothing is left in it. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from mmap import PROT_READ, mmap
from threading import Lock
from typing import NamedTuple
from zlib import crc32

_LINE = re.compile(rb"([0-9a-f]{64}|-{64}) (\d{10}) [0-9a-f]{8}\n")
_ERASED = "-" * 64
SUFFIX = ".pack"

Folder = Callable[[], AbstractContextManager[int]]  # the folder, opened; made if it is not there


class Place(NamedTuple):
    """Where an entry's bytes are."""

    pack: int
    offset: int
    size: int


class Packs:
    """`flush`: what is written survives the machine. Its methods may be called in any thread."""

    def __init__(self, folder: Folder, *, flush: bool) -> None:
        self._folder = folder
        self._flush = flush
        self._lock = Lock()
        self._places: dict[str, Place] = {}
        self._left: dict[int, int] = {}  # entries of each pack
        self._next = 1

    def write(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Store all of them, or none. What was there under their names is erased. Raises OSError."""
        for name, _ in entries:
            self.erase(name)
        with self._lock:
            number, self._next = self._next, self._next + 1
        pieces, places, offset = [], {}, 0
        for name, data in entries:
            line = _line(name, len(data))
            pieces += [line, data]
            places[name] = Place(number, offset + len(line), len(data))
            offset += len(line) + len(data)
        with self._folder() as folder:
            try:
                write_whole(f"{number}{SUFFIX}", b"".join(pieces), folder, flush=self._flush)
            except OSError:  # perhaps it is there but not safe: a second one must not have the same entries
                with contextlib.suppress(OSError):
                    os.unlink(f"{number}{SUFFIX}", dir_fd=folder)
                raise
        with self._lock:
            self._places.update(places)
            self._left[number] = len(places)

    def read(self, name: str) -> bytes | None:
        with self._lock, contextlib.suppress(FileNotFoundError):
            place = self._places.get(name)
            if place is not None:
                with self._folder() as folder, _opened(f"{place.pack}{SUFFIX}", os.O_RDONLY, folder) as file:
                    return os.pread(file, place.size, place.offset)
        return None

    def erase(self, name: str) -> None:
        """Raises OSError, and then it is there."""
        with self._lock:
            place = self._places.get(name)
            if place is None:
                return
            with contextlib.suppress(FileNotFoundError), self._folder() as folder:
                if self._left[place.pack] > 1:
                    with _opened(f"{place.pack}{SUFFIX}", os.O_WRONLY, folder) as file:
                        line = _line(_ERASED, place.size)
                        os.pwrite(file, line + bytes(place.size), place.offset - len(line))  # a kill does not cut it
                else:
                    os.unlink(f"{place.pack}{SUFFIX}", dir_fd=folder)
            del self._places[name]
            self._left[place.pack] -= 1
            if not self._left[place.pack]:
                del self._left[place.pack]

    def scan(self) -> Iterator[tuple[str, int, bytes]]:
        """Every entry there is, and from here on known: name, bytes of it, and its first line."""
        with self._folder() as folder:
            for file_name in os.listdir(folder):
                stem, suffix = os.path.splitext(file_name.removeprefix("."))
                if suffix != SUFFIX or not stem.isdecimal():
                    continue
                if file_name.startswith("."):
                    os.unlink(file_name, dir_fd=folder)  # a write that a crash cut short
                    continue
                with contextlib.suppress(OSError, ValueError):
                    yield from self._scan(int(stem), folder)

    def _scan(self, number: int, folder: int) -> Iterator[tuple[str, int, bytes]]:
        self._next = max(self._next, number + 1)
        offset = left = 0
        with _opened(f"{number}{SUFFIX}", os.O_RDONLY, folder) as file, mmap(file, 0, prot=PROT_READ) as data:
            # Searched for: a damaged line costs its own entry only. No document has one in it.
            while (line := _LINE.search(data, offset)) is not None:
                offset, size, name = line.end(), int(line[2]), line[1].decode()
                if line[0] != _line(name, size):
                    continue
                if name != _ERASED:
                    self._places[name] = Place(number, offset, size)
                    left += 1
                    yield name, size, data[offset : data.find(b"\n", offset, offset + size) + 1]
                offset += size
        if left:
            self._left[number] = left
        else:
            os.unlink(f"{number}{SUFFIX}", dir_fd=folder)


def _line(name: str, size: int) -> bytes:
    line = b"%b %010d" % (name.encode(), size)
    return b"%b %08x\n" % (line, crc32(line))


def write_whole(name: str, data: bytes, folder: int, *, flush: bool) -> None:
    """A file that is there whole or not at all. Raises OSError."""
    temporary = f".{name}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with _opened(temporary, flags, folder) as file:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            if flush:
                os.fsync(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    if flush:
        os.fsync(folder)


@contextlib.contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    descriptor = os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
