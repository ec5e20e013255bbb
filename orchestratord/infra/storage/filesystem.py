"""Artifacts as content-addressed files: `root/ab/cdef….json` for the id `abcdef…`, `….auto` for an automatic one.

A file (`storage.document`) comes to be by a rename of a complete and flushed file, loses its mark by another, and goes
by an unlink: at any moment it is there whole or not at all. What is done to one id is done one after the other.
Directories are opened first and files relative to them, neither through symbolic links: no id leads out of the root.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestratord.infra.storage import document
from orchestratord.infra.storage.index import Index, Key, is_id
from orchestratord.ports import Artifact, ArtifactCorrupt, ArtifactTooLarge, Stored

SIZE_LIMIT = 64 << 20
QUARANTINE = "quarantine"
KEPT, AUTOMATIC = ".json", ".auto"


class FileArtifacts:
    """`id_of` recomputes an artifact's id from its fields: the checksum of every read."""

    def __init__(self, root: Path, id_of: Callable[[Artifact], str], *, size_limit: int = SIZE_LIMIT) -> None:
        self._root = root
        self._id_of = id_of
        self._size_limit = size_limit
        self._index = Index()
        self._busy: dict[str, asyncio.Task[OSError | None]] = {}  # what is being written, or removed

    async def open(self) -> None:
        """Make the root if need be and list what is in it. Raises OSError."""
        for stored in await asyncio.to_thread(lambda: [*self._scan()]):
            self._index.add(stored)

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        if not is_id(artifact.id):
            raise ValueError("not an artifact id")
        while True:
            known = self._index.get(artifact.id)
            if known is not None and (automatic or not known.automatic):
                return replace(artifact, created_ms=known.artifact.created_ms)
            busy = self._busy.get(artifact.id)
            if busy is None:
                busy = self._begin(artifact.id, self._store(artifact, known, automatic=automatic), artifact.parent)
            await asyncio.shield(busy)  # one write per id however many ask; it outlives a caller that is cancelled

    def _begin(
        self, artifact_id: str, work: Coroutine[Any, Any, OSError | None], parent: str | None = None
    ) -> asyncio.Task[OSError | None]:
        """Do something to an id. Until it is done nothing else is, and its parent stays."""
        if parent is not None:
            self._index.expect(parent)
        task = self._busy[artifact_id] = asyncio.create_task(self._alone(artifact_id, work, parent))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _alone(
        self, artifact_id: str, work: Coroutine[Any, Any, OSError | None], parent: str | None
    ) -> OSError | None:
        try:
            return await work
        finally:  # here and not in a callback: who finds it done must not find it busy
            del self._busy[artifact_id]
            if parent is not None:
                self._index.disown(parent)

    async def _store(self, artifact: Artifact, known: Stored | None, *, automatic: bool) -> None:
        """Write it; or, if it is there, take away its mark."""
        if known is not None:
            artifact = replace(artifact, created_ms=known.artifact.created_ms)
        if known is None or not await asyncio.to_thread(self._unmark, artifact.id):
            size = await asyncio.to_thread(self._write, artifact, AUTOMATIC if automatic else KEPT)
        else:
            size = known.size
        self._index.add(Stored(artifact, size, automatic))

    async def get(self, artifact_id: str) -> Artifact | None:
        if not is_id(artifact_id):
            return None
        known = self._index.get(artifact_id)
        marked = known is None or known.automatic
        try:
            return await asyncio.to_thread(self._read, artifact_id, AUTOMATIC if marked else KEPT)
        except FileNotFoundError:
            return None
        except ArtifactCorrupt:
            self._index.remove(artifact_id)
            raise

    async def list(self, *, limit: int, after: Key | None, tag: str | None) -> builtins.list[Artifact]:
        return self._index.page(limit, after, tag)

    def oldest(self, *, limit: int, after: Key | None) -> builtins.list[Stored]:
        return self._index.oldest(limit, after)

    async def drop(self, artifact_id: str) -> bool:
        if artifact_id in self._busy or not self._index.droppable(artifact_id):
            return False
        stored = self._index.remove(artifact_id)
        assert stored is not None
        error = await asyncio.shield(self._begin(artifact_id, self._remove(stored)))
        if error is not None:
            raise error
        return True

    async def _remove(self, stored: Stored) -> OSError | None:
        """The error is for who drops it, not for who waits to put it."""
        try:
            await asyncio.to_thread(self._unlink, stored.artifact.id)
        except OSError as error:
            self._index.add(stored)
            return error
        return None

    @property
    def automatic_bytes(self) -> int:
        return self._index.automatic_bytes

    @property
    def kept_bytes(self) -> int:
        return self._index.kept_bytes

    # -- in a worker thread ------------------------------------------------------------------------------
    def _scan(self) -> Iterator[Stored]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefixes = [
            entry.name
            for entry in os.scandir(self._root)
            if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False)
        ]
        for prefix in prefixes:
            with self._directory(prefix) as folder:
                for name in os.listdir(folder):
                    stem, suffix = os.path.splitext(name.removeprefix("."))
                    if suffix not in (KEPT, AUTOMATIC) or not is_id(prefix + stem):
                        continue
                    if name.startswith("."):
                        os.unlink(name, dir_fd=folder)  # a write that a crash cut short
                        continue
                    # What cannot be read here is left for `get` to find damaged.
                    with contextlib.suppress(OSError, ValueError), _reading(name, folder) as file:
                        artifact = document.decode_head(prefix + stem, file.readline(document.HEAD_LIMIT))
                        yield Stored(artifact, os.fstat(file.fileno()).st_size, suffix == AUTOMATIC)

    def _write(self, artifact: Artifact, suffix: str) -> int:
        data = document.encode(artifact)
        if len(data) > self._size_limit:
            raise ArtifactTooLarge(f"An artifact may have at most {self._size_limit} bytes; this one has {len(data)}.")
        name = artifact.id[2:] + suffix
        temporary = f".{name}"
        with self._directory(artifact.id[:2], create=True) as folder:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                with open(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)
        return len(data)

    def _unmark(self, artifact_id: str) -> bool:
        """The automatic artifact is one like others. False if somebody has taken its file away."""
        stem = artifact_id[2:]
        try:
            with self._directory(artifact_id[:2]) as folder:
                os.rename(stem + AUTOMATIC, stem + KEPT, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        except FileNotFoundError:
            return False
        return True

    def _unlink(self, artifact_id: str) -> None:
        """Should a crash of the machine bring it back, it is dropped again."""
        with contextlib.suppress(FileNotFoundError), self._directory(artifact_id[:2]) as folder:
            os.unlink(artifact_id[2:] + AUTOMATIC, dir_fd=folder)

    def _read(self, artifact_id: str, suffix: str) -> Artifact:
        name = artifact_id[2:] + suffix
        with self._directory(artifact_id[:2]) as folder:
            try:
                with _reading(name, folder) as file:
                    artifact = document.decode(artifact_id, file.read())
                if self._id_of(artifact) == artifact_id:
                    return artifact
                reason = "its content hashes to another id"
            except FileNotFoundError:
                if suffix == KEPT:
                    raise
                return self._read(artifact_id, KEPT)  # a mark may go at any time, and never comes
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                reason = "it is a symbolic link"
            except ValueError:
                reason = "it cannot be parsed"
            with self._directory(QUARANTINE, create=True) as quarantine:
                os.rename(name, f"{artifact_id}.json", src_dir_fd=folder, dst_dir_fd=quarantine)
        raise ArtifactCorrupt(f"artifact {artifact_id} was damaged ({reason}) and moved to {QUARANTINE}")

    @contextlib.contextmanager
    def _directory(self, name: str, *, create: bool = False) -> Iterator[int]:
        path = self._root / name
        if create and not path.exists():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(self._root, os.O_DIRECTORY) as root:
                os.fsync(root)
        with _opened(path, os.O_DIRECTORY | os.O_NOFOLLOW) as folder:
            yield folder


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reading(name: str, folder: int) -> Any:
    return open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb")
