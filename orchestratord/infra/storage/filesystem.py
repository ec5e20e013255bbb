"""Artifacts as content-addressed files: `root/ab/cdef….json` for the id `abcdef…`.

A file is two lines of JSON: everything but the content, then the content; a start reads only first lines. It
comes to be by a rename of a complete and flushed file, so it is there whole or not at all. Directories are
opened first and files relative to them, neither through symbolic links: no id leads out of the root.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from orchestratord.infra.storage.index import Index, Key, is_id
from orchestratord.ports import Artifact, ArtifactCorrupt

SIZE_LIMIT = 64 << 20
QUARANTINE = "quarantine"
HEAD_LIMIT = 1 << 20  # a first line longer than this is not ours


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line of a file."""

    kind: str
    tags: tuple[str, ...]
    parent: str | None
    metadata: dict[str, Any]
    created_ms: int


_head = msgspec.json.Decoder(_Head)


class FileArtifacts:
    """`id_of` recomputes an artifact's id from its fields: the checksum of every read."""

    def __init__(self, root: Path, id_of: Callable[[Artifact], str], *, size_limit: int = SIZE_LIMIT) -> None:
        self._root = root
        self._id_of = id_of
        self._size_limit = size_limit
        self._index = Index()
        self._writing: dict[str, asyncio.Task[Artifact]] = {}

    async def open(self) -> None:
        """Make the root if need be and list what is in it. Raises OSError."""
        for artifact in await asyncio.to_thread(lambda: [*self._scan()]):
            self._index.add(artifact)

    async def put(self, artifact: Artifact) -> Artifact:
        if not is_id(artifact.id):
            raise ValueError("not an artifact id")
        known = self._index.get(artifact.id)
        if known is None:
            # One write per id however many ask, and it outlives a caller that is cancelled.
            writing = self._writing.get(artifact.id)
            if writing is None:
                writing = self._writing[artifact.id] = asyncio.create_task(self._store(artifact))
                writing.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = await asyncio.shield(writing)
        return replace(artifact, created_ms=known.created_ms)

    async def _store(self, artifact: Artifact) -> Artifact:
        try:
            await asyncio.to_thread(self._write, artifact)
            return self._index.add(artifact)
        finally:
            del self._writing[artifact.id]

    async def get(self, artifact_id: str) -> Artifact | None:
        if not is_id(artifact_id):
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

    # -- in a worker thread ------------------------------------------------------------------------------
    def _scan(self) -> Iterator[Artifact]:
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
                    if suffix != ".json" or not is_id(prefix + stem):
                        continue
                    if name.startswith("."):
                        os.unlink(name, dir_fd=folder)  # a write that a crash cut short
                        continue
                    # What cannot be read here is left for `get` to find damaged.
                    with contextlib.suppress(OSError, ValueError), _reading(name, folder) as file:
                        yield _artifact(prefix + stem, file.readline(HEAD_LIMIT), None)

    def _write(self, artifact: Artifact) -> None:
        head = _Head(artifact.kind, artifact.tags, artifact.parent, artifact.metadata, artifact.created_ms)
        data = msgspec.json.encode(head) + b"\n" + msgspec.json.encode(artifact.content) + b"\n"
        if len(data) > self._size_limit:
            raise OSError(errno.EFBIG, f"an artifact of {len(data)} bytes is over the limit of {self._size_limit}")
        name = artifact.id[2:] + ".json"
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

    def _read(self, artifact_id: str) -> Artifact:
        name = artifact_id[2:] + ".json"
        with self._directory(artifact_id[:2]) as folder:
            try:
                with _reading(name, folder) as file:
                    head, _, content = file.read().partition(b"\n")
                artifact = _artifact(artifact_id, head, msgspec.json.decode(content))
                if self._id_of(artifact) == artifact_id:
                    return artifact
                reason = "its content hashes to another id"
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


def _artifact(artifact_id: str, line: bytes, content: Any) -> Artifact:
    head = _head.decode(line)
    return Artifact(artifact_id, head.kind, content, head.tags, head.parent, head.metadata, head.created_ms)
