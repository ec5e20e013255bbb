"""Models that are files of this machine, and only where the configuration says that models are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from orchestratord.infra.regular import open_regular
from orchestratord.ports import ModelUnavailable

MAGIC = b"GGUF"


class LocalFiles:
    """The part of `ports.ModelFiles` that fetches nothing. `roots` are folders; `known` are single files allowed
    besides."""

    def __init__(self, roots: Iterable[str], known: Iterable[str] = ()) -> None:
        self._roots = [Path(root).expanduser() for root in roots]
        self._known = {str(Path(path).expanduser()) for path in known}

    def check(self, ref: str) -> None:
        scheme, _, path = ref.partition(":")
        if scheme != "file" or not path or "\0" in path:
            raise ModelUnavailable(
                "UNTRUSTED_ARTIFACT", f"{ref!r} cannot be loaded: only file: references and names of pools can be."
            )
        if ".." in Path(path).parts:
            raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{ref!r} must not contain '..'. Write the path out.")
        if path not in self._known and not self._candidates(path):
            raise ModelUnavailable(
                "UNTRUSTED_ARTIFACT", f"{ref!r} is not under any of models.roots. Add its folder there to allow it."
            )

    def _candidates(self, path: str) -> list[Path]:
        """Where the file may be, as far as words tell."""
        given = Path(path)
        if given.is_absolute():
            return [given] if any(given.is_relative_to(root) for root in self._roots) else []
        return [root / given for root in self._roots]

    async def resolve(self, ref: str) -> str:
        self.check(ref)
        return await asyncio.to_thread(self._resolve, ref.partition(":")[2])

    def _resolve(self, path: str) -> str:
        if path in self._known:
            return path
        roots = [Path(os.path.realpath(root)) for root in self._roots]
        for candidate in self._candidates(path):
            real = Path(os.path.realpath(candidate))
            if not any(real.is_relative_to(root) for root in roots):
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{candidate} leads out of models.roots.")
            if real.exists():
                return str(real)
        raise ModelUnavailable("NOT_FOUND", f"There is no file {path!r} under models.roots.")

    async def verify(self, path: str) -> str | None:
        return await asyncio.to_thread(self._verify, path)

    @staticmethod
    def _verify(path: str) -> str | None:
        folder = Path(path)
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return None
        try:
            with open_regular(path) as file:
                magic = file.read(len(MAGIC))
        except OSError as error:
            raise ModelUnavailable("NOT_FOUND", f"{path} cannot be read: {error.strerror}.") from error
        if magic != MAGIC:
            raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{path} is not a GGUF file: it begins with {magic!r}.")
        return None
