"""Models: evidence about their files, and the way from a reference to one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol


class ModelUnavailable(Exception):
    """A model cannot be had; the message says what to do. `code` is one of

    UNTRUSTED_ARTIFACT: the policy forbids it, or it is not what was asked for;
    NOT_FOUND: there is nothing, or nothing definite, under the reference;
    FETCH_FAILED: it cannot be reached or read now; what came of it already is gone on with the next time;
    DISK_FULL: there is no room for it;
    NOT_INSTALLED: an optional part of the package is needed.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the bytes of a model are. `digest` is that of the file, or, for a folder and for numbered files, of the list
    `sha256sum` makes of them, sorted by path: `<64 hex>  <path>` and a line feed each.
    """

    digest: str
    files: tuple[tuple[str, int], ...]  # (digest, bytes) of each file


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature is: the root that made it, None if none of those asked about did."""

    root: str | None
    algo: str


class ModelProofs(Protocol):
    """Evidence about files of this machine. Nothing of this blocks the loop, and all of it can be cancelled.

    Every method raises ModelUnavailable: NOT_FOUND for what cannot be read, UNTRUSTED_ARTIFACT for what is not what it
    should be.
    """

    @property
    def roots(self) -> frozenset[str]:
        """Names of the keys that may have signed."""

    async def measure(self, path: str, *, fresh: bool = False) -> Measured:
        """Read all of a model. Unless `fresh`, files that have not changed since are not read again."""

    async def digest(self, path: str) -> str:
        """The digest of a small file beside the model."""

    async def signature(self, path: str, model: str, measured: Measured, roots: Collection[str]) -> Signed:
        """Whether the signature in `path` is one of these roots' over the model that was measured at `model`."""

    async def listed(self, path: str, digest: str) -> frozenset[str]:
        """The digests that the bill of materials with this digest lists."""


class ModelFiles(Protocol):
    """From a model reference (`domain.modelref`) to a file or folder on this machine.

    What is fetched lies in a cache addressed by content: no name from outside becomes a path. Fetching is off unless
    the configuration allows the scheme and the host; it reaches no private address that is not named as such.
    """

    def check(self, ref: str) -> None:
        """Whether the policy allows the reference at all, without looking anywhere. Raises ModelUnavailable."""

    async def resolve(self, ref: str, digest: str | None = None) -> str:
        """The path of the model, fetched if need be. `digest` (sha256:<64 hex>) is what it must have.

        A model of several files is a folder, or the first of its numbered files. Whoever asks for what is being
        fetched already joins; when nobody waits any more, fetching stops and can be gone on with. What an earlier
        fetch of the reference brought serves while its server cannot be asked. Raises ModelUnavailable; a file with
        another digest than was asked for is never left behind.
        """

    async def verify(self, path: str) -> str | None:
        """The file is whole and of a kind engines load; its digest (sha256:<64 hex>) where one had to be checked.

        Raises ModelUnavailable.
        """

    def progress(self, ref: str) -> tuple[int, int] | None:
        """Bytes there and bytes in all (0: not known) of a reference that is being fetched; None if it is not."""


@dataclass(frozen=True, slots=True)
class Used:
    """Models that somebody uses: by references in their one form, by paths, and by digests (sha256:<64 hex>)."""

    refs: frozenset[str]
    paths: frozenset[str]
    digests: frozenset[str]


class ModelCache(Protocol):
    """What was fetched, within a bound. The bound is in bytes; there may be none."""

    async def trim(self, used: Callable[[], Used]) -> tuple[int, int]:
        """Remove what was used least recently until the rest is within the bound: (bytes removed, bytes left).

        That waits for a moment when nothing is being fetched. `used` is asked at that moment; what it names stays, and
        whoever wants to fetch something then waits for the end. Raises OSError.
        """
