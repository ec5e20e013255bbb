"""The cache within its bound: what was used least recently goes first. Blocking, and for a time when nobody fetches.

A file is used when a reference that leads to it is resolved, and so is a tree; no file of a tree goes before the tree.
Models themselves are never touched: who has hashed one knows it again by its times.
"""

from __future__ import annotations

import heapq
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestratord.infra.fetch.cache import Cache


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Bytes that went, and bytes that are there."""

    gone: int
    left: int


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    used: float  # Unix epoch
    size: int  # of a tree none: its files have theirs
    inode: int


def trim(cache: Cache, limit: int, keep: Collection[Path]) -> Trimmed:
    """Bring the cache to `limit` bytes as far as that goes without what is in `keep`: files and trees, by their paths.

    Raises OSError.
    """
    used = _last_uses(cache)
    files = {item.inode: item for item in _items(cache.root / "sha256", "??/*", used)}
    trees = list(_items(cache.root / "trees", "*", used))
    parts = {tree.path: [inode for inode in _inodes(tree.path) if inode in files] for tree in trees}
    links = Counter(inode for inodes in parts.values() for inode in inodes)
    broken = list(_items(cache.root / "incoming", "*", used))
    total = before = sum(item.size for item in (*files.values(), *broken))

    loose = [item for item in files.values() if not links[item.inode]]
    oldest = [(item.used, str(item.path), item) for item in (*loose, *trees, *broken) if item.path not in keep]
    heapq.heapify(oldest)
    while total > limit and oldest:
        _, _, item = heapq.heappop(oldest)
        _remove(item.path)
        total -= item.size
        for inode in parts.get(item.path, ()):
            links[inode] -= 1
            file = files[inode]
            if not links[inode] and file.path not in keep:
                heapq.heappush(oldest, (file.used, str(file.path), file))
    cache.forget()
    return Trimmed(before - total, total)


def _last_uses(cache: Cache) -> dict[Path, float]:
    """When a reference that leads to it was last resolved, of each file and tree that has one."""
    found: dict[Path, float] = {}
    for known, at in cache.references():
        path = cache.path_of(known)
        found[path] = max(found.get(path, 0.0), at)
    return found


def _items(folder: Path, pattern: str, used: dict[Path, float]) -> Iterator[_Item]:
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found = path.lstat()
            size = 0 if path.is_dir() else found.st_size
            yield _Item(path, max(used.get(path, 0.0), found.st_mtime), size, found.st_ino)


def _inodes(tree: Path) -> list[int]:
    return [path.lstat().st_ino for path in tree.iterdir()]


def _remove(path: Path) -> None:
    """A tree goes by its name first: what is there under it is whole."""
    if path.is_dir():
        doomed = path.with_name(f".{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink()
