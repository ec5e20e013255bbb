"""Models on disk, addressed by content. Plain blocking files: whoever calls from the event loop does so in a thread.

    sha256/ab/<64 hex>      one whole file, read-only
    trees/<64 hex>/<name>   several of them under the names engines look for; the hex is that of digests and names
    refs/<64 hex>.json      which of these a reference led to; the hex is that of the reference
    incoming/<64 hex>.*     what is being fetched

No name from outside is a path here but those within a tree, and these are one plain word each.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from orchestratord.infra.fetch.policy import refused
from orchestratord.infra.regular import open_regular

CHUNK = 1 << 20
STALE_S = 7 * 86_400
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference led to: a digest, and what its server calls that version; or a tree, by its hex."""

    ref: str
    digest: str | None = None
    etag: str | None = None
    tree: str | None = None


class State(msgspec.Struct, kw_only=True):
    """What is known of a file that is being fetched."""

    etag: str | None = None
    total: int | None = None


class Partial:
    """A file that is being fetched. Every byte it has is hashed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes = path.with_suffix(".json")
        self.state = State()
        self.size = 0
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
        try:
            self.state = msgspec.json.decode(self._notes.read_bytes(), type=State)
        except (OSError, msgspec.DecodeError):
            self.restart()  # bytes nobody can say anything of
        while data := self._file.read(CHUNK):
            self._hash.update(data)
            self.size += len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def note(self, etag: str | None, total: int | None) -> None:
        self.state = State(etag=etag, total=total)
        self._notes.write_bytes(msgspec.json.encode(self.state))

    def write(self, data: bytes | bytearray) -> None:
        self._file.write(data)
        self._file.flush()
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size, self.state = 0, State()

    def close(self) -> None:
        """Let go of it; what is there can be gone on with. Idempotent."""
        self._file.close()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Whole, and safely on the disk."""
        os.fsync(self._file.fileno())
        os.fchmod(self._file.fileno(), 0o444)
        self.close()
        os.replace(self.path, target)
        _sync(target.parent)
        self._notes.unlink(missing_ok=True)


class Cache:
    """Files and what references led to. `root` is made when first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, *names: str) -> Path:
        folder = self.root.joinpath(*names)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def free(self) -> int:
        """Bytes the disk has left."""
        return shutil.disk_usage(self._folder()).free

    def clear_away(self, now: float) -> None:
        """Remove what has been incoming, untouched, for longer than anybody comes back for. `now`: Unix epoch."""
        for path in self._folder("incoming").iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < now - STALE_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- files -------------------------------------------------------------------------------------------
    def path(self, digest: str) -> Path:
        """Raises ValueError for what is no digest."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no sha256 digest")
        name = digest.removeprefix("sha256:")
        return self.root / "sha256" / name[:2] / name

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def digest_of(self, path: str) -> str | None:
        """The digest of a file that lies in the cache; None for any other."""
        digest = f"sha256:{Path(path).name}"
        return digest if DIGEST.fullmatch(digest) and Path(path) == self.path(digest) else None

    def partial(self, key: str) -> Partial:
        return Partial(self._folder("incoming") / f"{_hex(key)}.part")

    def keep(self, partial: Partial) -> str:
        """A whole file into its place; gives its digest. A twin that is there already stays."""
        digest = partial.digest
        target = self.path(digest)
        if target.is_file():
            partial.discard()
        else:
            self._folder("sha256", target.parent.name)
            partial.move_to(target)
        return digest

    # -- trees -------------------------------------------------------------------------------------------
    def tree(self, files: Mapping[str, str]) -> str:
        """A folder of files, name -> digest, all of them in the cache; gives its hex. Raises ModelUnavailable."""
        for name in files:
            if not NAME.fullmatch(name):
                raise refused(f"{name!r} is no name a file of a model may have here.")
        tree = _hex("".join(f"{digest} {name}\n" for name, digest in sorted(files.items())))
        target = self.tree_path(tree)
        if target.is_dir():
            return tree
        self._folder("trees")
        with tempfile.TemporaryDirectory(dir=self._folder("incoming")) as made:
            for name, digest in files.items():
                os.link(self.path(digest), Path(made) / name)
            try:
                os.rename(made, target)
            except OSError:
                if not target.is_dir():  # else somebody was quicker, with the same
                    raise
            else:
                os.mkdir(made)  # for its manager to remove
        _sync(target.parent)
        return tree

    def tree_path(self, tree: str) -> Path:
        return self.root / "trees" / tree

    def unit(self, path: str) -> Path | None:
        """The file or the tree that a path of the cache belongs to; None of any other path."""
        found = Path(path)
        if not found.is_relative_to(self.root):
            return None
        kind, *names = found.relative_to(self.root).parts
        return self.root.joinpath(kind, *names[: {"sha256": 2, "trees": 1}.get(kind, 0)]) if names else None

    # -- references --------------------------------------------------------------------------------------
    def known(self, ref: str) -> Known | None:
        """What the reference last led to, if that is still there."""
        known = self._read(self.root / "refs" / f"{_hex(ref)}.json")
        return known if known is not None and known.ref == ref else None

    def _read(self, path: Path) -> Known | None:
        try:
            known = msgspec.json.decode(path.read_bytes(), type=Known)
        except (OSError, msgspec.DecodeError):
            return None
        if known.digest is not None and DIGEST.fullmatch(known.digest) and self.has(known.digest):
            return known
        there = known.tree is not None and re.fullmatch(r"[0-9a-f]{64}", known.tree)
        return known if there and self.tree_path(str(known.tree)).is_dir() else None

    def path_of(self, known: Known) -> Path:
        """The file or tree it led to."""
        if known.digest is not None:
            return self.path(known.digest)
        assert known.tree is not None
        return self.tree_path(known.tree)

    def references(self) -> Iterator[tuple[Known, float]]:
        """Every reference that leads somewhere, and when it was last resolved (Unix epoch)."""
        for path in (self.root / "refs").glob("*.json"):
            if (known := self._read(path)) is not None:
                yield known, path.stat().st_mtime

    def forget(self) -> None:
        """Remove what is left of references that lead nowhere any more."""
        for path in (self.root / "refs").glob("*.json"):
            if self._read(path) is None:
                path.unlink(missing_ok=True)

    def remember(self, known: Known) -> None:
        """What a reference led to just now."""
        target = self._folder("refs") / f"{_hex(known.ref)}.json"
        fresh = target.with_suffix(f".{threading.get_ident()}")  # two fetches may end at once
        fresh.write_bytes(msgspec.json.encode(known))
        os.replace(fresh, target)


def file_digest(path: str) -> str:
    """Raises ModelUnavailable for what is no file, and OSError."""
    with open_regular(path) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
