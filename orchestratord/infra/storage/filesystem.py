"""Artifacts by the hash of their content: `root/ab/cdef….json` for the id `abcdef…`; automatic ones in `storage.packs`.

A file (`storage.document`) comes to be by a rename of a complete and flushed file: at any moment it is there whole or
not at all. An automatic artifact that a client puts gets a file, and then leaves its pack. What is done to one id is
done one after the other. Directories are opened first and files relative to them, neither through symbolic links: no id
leads out of the root.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any

from orchestratord.infra.storage import document
from orchestratord.infra.storage.index import Index, Key, is_id
from orchestratord.infra.storage.packs import Packs, write_whole
from orchestratord.ports import Artifact, ArtifactCorrupt, ArtifactTooLarge, Stored

SIZE_LIMIT = 64 << 20
PACK_LIMIT = 4 << 20
QUARANTINE, PACKS = "quarantine", "packs"
SUFFIX = ".json"


class FileArtifacts:
    """`id_of` recomputes an artifact's id from its fields: the checksum of every read.

    What clients put is on the disk when they are told. Automatic artifacts only survive the end of the process; with
    `flush` that of the machine, too.
    """

    def __init__(
        self, root: Path, id_of: Callable[[Artifact], str], *, size_limit: int = SIZE_LIMIT, flush: bool = False
    ) -> None:
        self._root = root
        self._id_of = id_of
        self._size_limit = size_limit
        self._quarantining = Lock()  # two threads may find the same damage
        self._packs = Packs(partial(self._directory, PACKS, create=True), flush=flush)
        self._index = Index()
        self._busy: dict[str, asyncio.Task[OSError | None]] = {}  # what is being written, or removed
        self._dropping: set[str] = set()

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
                work = self._store(artifact, known, automatic=automatic)
                busy = self._begin([artifact.id], work, artifact.parent)
            await asyncio.shield(busy)  # one write per id however many ask; it outlives a caller that is cancelled

    async def put_all(self, artifacts: Sequence[Artifact]) -> int:
        new = list(takewhile(self._is_new, artifacts))
        if not new:
            await self.put(artifacts[0], automatic=True)
            return 1
        stored: builtins.list[Artifact] = []
        await asyncio.shield(self._begin([one.id for one in new], self._store_new(new, stored)))
        return len(stored)

    def _is_new(self, artifact: Artifact) -> bool:
        """Nobody has had to do with it yet."""
        if not is_id(artifact.id) or artifact.parent is not None or artifact.id in self._busy:
            return False
        return self._index.get(artifact.id) is None

    def _begin(
        self, ids: Sequence[str], work: Coroutine[Any, Any, OSError | None], parent: str | None = None
    ) -> asyncio.Task[OSError | None]:
        """Do something to ids. Until it is done nothing else is, and its parent stays."""
        if parent is not None:
            self._index.expect(parent)
        task = asyncio.create_task(self._alone(ids, work, parent))
        self._busy.update(dict.fromkeys(ids, task))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _alone(
        self, ids: Sequence[str], work: Coroutine[Any, Any, OSError | None], parent: str | None
    ) -> OSError | None:
        try:
            return await work
        finally:  # here and not in a callback: who finds it done must not find it busy
            for artifact_id in ids:
                del self._busy[artifact_id]
            if parent is not None:
                self._index.disown(parent)

    async def _store(self, artifact: Artifact, known: Stored | None, *, automatic: bool) -> None:
        """Write it; if it is there as an automatic one, it is that no more."""
        if automatic:
            await self._store_new([artifact], [])
            return
        if known is not None:
            artifact = replace(artifact, created_ms=known.artifact.created_ms)
        size = await asyncio.to_thread(self._write, artifact)
        self._index.add(Stored(artifact, size, automatic=False))

    async def _store_new(self, artifacts: builtins.list[Artifact], stored: builtins.list[Artifact]) -> None:
        """Write as many of these as go into one pack; `stored` gets them."""
        sizes = await asyncio.to_thread(self._pack, artifacts)
        for artifact, size in zip(artifacts, sizes, strict=False):
            self._index.add(Stored(artifact, size, automatic=True))
            stored.append(artifact)

    async def get(self, artifact_id: str) -> Artifact | None:
        if not is_id(artifact_id) or artifact_id in self._dropping:  # it will not come back, whatever the disk has yet
            return None
        try:
            return await asyncio.to_thread(self._read, artifact_id)
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
        self._dropping.add(artifact_id)
        error = await asyncio.shield(self._begin([artifact_id], self._remove(stored)))
        if error is not None:
            raise error
        return True

    async def _remove(self, stored: Stored) -> OSError | None:
        """The error is for who drops it, not for who waits to put it."""
        try:
            await asyncio.to_thread(self._packs.erase, stored.artifact.id)
        except OSError as error:
            self._index.add(stored)
            return error
        finally:
            self._dropping.remove(stored.artifact.id)
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
        kept: set[str] = set()
        for prefix in [
            entry.name
            for entry in os.scandir(self._root)
            if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False)
        ]:
            with self._directory(prefix) as folder:
                for name in os.listdir(folder):
                    stem, suffix = os.path.splitext(name.removeprefix("."))
                    if suffix != SUFFIX or not is_id(prefix + stem):
                        continue
                    if name.startswith("."):
                        os.unlink(name, dir_fd=folder)  # a write that a crash cut short
                        continue
                    kept.add(prefix + stem)
                    # What cannot be read here is left for `get` to find damaged.
                    with contextlib.suppress(OSError, ValueError), _reading(name, folder) as file:
                        artifact = document.decode_head(prefix + stem, file.readline(document.HEAD_LIMIT))
                        yield Stored(artifact, os.fstat(file.fileno()).st_size, automatic=False)
        twice = []
        for name, size, line in self._packs.scan():
            if name in kept:
                twice.append(name)
                continue
            with contextlib.suppress(ValueError):
                yield Stored(document.decode_head(name, line), size, automatic=True)
        for name in twice:  # a client has put it, and a crash came between
            self._packs.erase(name)

    def _encode(self, artifact: Artifact) -> bytes:
        data = document.encode(artifact)
        if len(data) > self._size_limit:
            raise ArtifactTooLarge(f"An artifact may have at most {self._size_limit} bytes; this one has {len(data)}.")
        return data

    def _pack(self, artifacts: builtins.list[Artifact]) -> builtins.list[int]:
        """The sizes of those that were written: the first ones, until the pack is full or one is too large. Raises if
        that is the first."""
        entries: builtins.list[tuple[str, bytes]] = []
        room = PACK_LIMIT
        for artifact in artifacts:
            try:
                data = self._encode(artifact)
            except ArtifactTooLarge:
                if not entries:
                    raise
                break
            entries.append((artifact.id, data))
            room -= len(data)
            if room < 0:
                break
        self._packs.write(entries)
        return [len(data) for _, data in entries]

    def _write(self, artifact: Artifact) -> int:
        data = self._encode(artifact)
        with self._directory(artifact.id[:2], create=True) as folder:
            write_whole(artifact.id[2:] + SUFFIX, data, folder, flush=True)
        with contextlib.suppress(OSError):  # then the next start does it
            self._packs.erase(artifact.id)
        return len(data)

    def _read(self, artifact_id: str) -> Artifact:
        packed = self._packs.read(artifact_id)
        if packed is not None:
            return self._read_packed(artifact_id, packed)
        name = artifact_id[2:] + SUFFIX
        with self._directory(artifact_id[:2]) as folder:
            try:
                with _reading(name, folder) as file:
                    return self._checked(artifact_id, file.read())
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                reason = "it is a symbolic link"
            except ValueError as error:
                reason = str(error)
            with self._directory(QUARANTINE, create=True) as quarantine, contextlib.suppress(FileNotFoundError):
                os.rename(name, f"{artifact_id}.json", src_dir_fd=folder, dst_dir_fd=quarantine)
        raise _corrupt(artifact_id, reason)

    def _read_packed(self, artifact_id: str, data: bytes) -> Artifact:
        try:
            return self._checked(artifact_id, data)
        except ValueError as error:
            reason = str(error)
        with self._directory(QUARANTINE, create=True) as quarantine, self._quarantining:
            write_whole(f"{artifact_id}.json", data, quarantine, flush=False)
        self._packs.erase(artifact_id)
        raise _corrupt(artifact_id, reason)

    def _checked(self, artifact_id: str, data: bytes) -> Artifact:
        """Raises ValueError."""
        try:
            artifact = document.decode(artifact_id, data)
            if self._id_of(artifact) == artifact_id:  # it is in canonical form
                return artifact
            artifact = artifact.opened()
            found = self._id_of(artifact)
        except ValueError:
            raise ValueError("it cannot be parsed") from None
        if found != artifact_id:
            raise ValueError("its content hashes to another id")
        return artifact

    @contextlib.contextmanager
    def _directory(self, name: str, *, create: bool = False) -> Iterator[int]:
        path = f"{self._root}/{name}"
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not create:
                raise
            Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(self._root, os.O_DIRECTORY) as root:
                os.fsync(root)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield folder
        finally:
            os.close(folder)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _corrupt(artifact_id: str, reason: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"artifact {artifact_id} was damaged ({reason}) and moved to {QUARANTINE}")


def _reading(name: str, folder: int) -> Any:
    return open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb")
