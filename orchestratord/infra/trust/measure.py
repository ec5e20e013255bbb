"""Hashing models: off the loop, in bounded pieces, and over at once when nobody waits any more."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Protocol, TypeVar

from orchestratord.infra.regular import open_regular
from orchestratord.ports import Measured, ModelUnavailable

T = TypeVar("T")

PIECE = 1 << 20
REMEMBERED = 1024
NUMBERED = re.compile(r"(?P<stem>.+)-00001-of-(?P<total>\d{5})\.gguf")
MAX_FILES = 4096  # of one model
SMALL = 16 << 20  # the largest signature or bill of materials that is read


class Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Both:
    """A hash, and the SHA-256 of the same."""

    def __init__(self, hashed: Hash) -> None:
        self._hashed = hashed
        self.sha256 = hashlib.sha256()

    def update(self, data: memoryview | bytes, /) -> None:
        self._hashed.update(data)
        self.sha256.update(data)

    def digest(self) -> bytes:
        return self._hashed.digest()


class Cancelled(Exception):
    """Nobody waits for the digest any more."""


async def off_loop(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work` in a thread. Cancelled, it is told to stop and waited for, so that it never outlives its caller."""
    stopped = threading.Event()
    thread = asyncio.ensure_future(asyncio.to_thread(work, stopped.is_set))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.gather(thread, return_exceptions=True)
        raise


class Measure:
    """Digests of files and folders; those of files that are the same since, from memory."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, path: str, stopped: Callable[[], bool], *, fresh: bool) -> Measured:
        """Raises ModelUnavailable and Cancelled."""
        try:
            if (parts := _parts(path)) is None:
                digest, size = self._file(path, stopped, fresh=fresh)
                return Measured(digest, ((digest, size),))
            listing, files = self._list(*parts, stopped, fresh=fresh)
            return Measured(f"sha256:{hashlib.sha256(listing).hexdigest()}", tuple(files))
        except OSError as error:
            raise ModelUnavailable("NOT_FOUND", f"{path} cannot be read: {error.strerror or error}.") from error

    def content(self, path: str, algo: Callable[[], Hash], digest: str, stopped: Callable[[], bool]) -> bytes:
        """Another hash of the bytes that were measured to have this digest.

        Raises ModelUnavailable when these are not there any more: the signature would be over others.
        """
        both = _Both(algo())
        try:
            if (parts := _parts(path)) is not None:
                both.update(self._list(*parts, stopped, fresh=False)[0])
            else:
                with open_regular(path) as file:
                    _read(file.readinto, lambda: both, stopped)
        except OSError as error:
            raise ModelUnavailable("NOT_FOUND", f"{path} cannot be read: {error.strerror or error}.") from error
        if f"sha256:{both.sha256.hexdigest()}" != digest:
            raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{path} was changed while it was checked.")
        return both.digest()

    def _list(
        self, folder: str, names: Iterable[str], stopped: Callable[[], bool], *, fresh: bool
    ) -> tuple[bytes, list[tuple[str, int]]]:
        lines: list[str] = []
        files: list[tuple[str, int]] = []
        for name in sorted(names):
            if len(files) >= MAX_FILES:
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{folder} has more than {MAX_FILES} files.")
            digest, size = self._file(os.path.join(folder, name), stopped, fresh=fresh)
            lines.append(f"{digest.removeprefix('sha256:')}  {name}\n")
            files.append((digest, size))
        if not files:
            raise ModelUnavailable("NOT_FOUND", f"{folder} is an empty folder.")
        return "".join(lines).encode("utf-8", "surrogateescape"), files

    def _file(self, path: str, stopped: Callable[[], bool], *, fresh: bool) -> tuple[str, int]:
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            same = (path, before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
            with self._lock:
                known = None if fresh else self._known.get(same)
            if known is not None:
                return known, before.st_size
            digest = f"sha256:{_read(file.readinto, hashlib.sha256, stopped).hex()}"
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{path} was changed while it was read.")
        with self._lock:
            self._known[same] = digest
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return digest, before.st_size


def _parts(path: str) -> tuple[str, Iterable[str]] | None:
    """The folder and the files of a model that is several files, None if it is one.

    An engine that is given the first of numbered files loads the others as well: they are one model.
    """
    if os.path.isdir(path):
        return path, _inside(Path(path))
    folder, name = os.path.split(path)
    found = NUMBERED.fullmatch(name)
    if found is None:
        return None
    total = found["total"]
    return folder, [f"{found['stem']}-{number:05}-of-{total}.gguf" for number in range(1, int(total) + 1)]


def _read(readinto: Callable[[memoryview], int | None], algo: Callable[[], Hash], stopped: Callable[[], bool]) -> bytes:
    hashed, piece = algo(), bytearray(PIECE)
    view = memoryview(piece)
    while size := readinto(view):
        if stopped():
            raise Cancelled
        hashed.update(view[:size])
    return hashed.digest()


def _inside(folder: Path) -> Iterator[str]:
    """Relative paths of all files. A link could lead anywhere: it is refused."""
    for at, folders, names in os.walk(folder, onerror=_raise):
        for name in [*names, *folders]:
            if os.path.islink(os.path.join(at, name)):
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{os.path.join(at, name)} is a link.")
        yield from (os.path.relpath(os.path.join(at, name), folder) for name in names)


def _raise(error: OSError) -> None:
    raise error


def small(path: str) -> bytes:
    """A file that is never large. Raises ModelUnavailable."""
    try:
        with BufferedReader(open_regular(path)) as file:
            found = file.read(SMALL + 1)
    except OSError as error:
        raise ModelUnavailable("NOT_FOUND", f"{path} cannot be read: {error.strerror or error}.") from error
    if len(found) > SMALL:
        raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{path} is larger than {SMALL} bytes.")
    return found
