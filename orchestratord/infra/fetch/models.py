"""Models by reference: files of this machine, and what is fetched into the cache. Implements `ports.ModelFiles`
and `ports.ModelCache`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestratord.domain.modelref import FileRef, ModelRef, parse
from orchestratord.domain.url import BadReference
from orchestratord.infra.fetch.cache import DIGEST, Cache, file_digest
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.gate import Gate
from orchestratord.infra.fetch.policy import FetchPolicy, refused
from orchestratord.infra.fetch.threads import off_loop
from orchestratord.infra.fetch.trim import Trimmed, trim
from orchestratord.ports import ModelUnavailable, Used


class Fetches(Protocol):
    """See `remote.Remote`, which costs a quarter of a second to import: whoever fetches nothing does without."""

    async def fetch(self, ref: ModelRef, digest: str | None) -> str: ...

    def progress(self, ref: ModelRef) -> tuple[int, int] | None: ...

    async def close(self) -> None: ...


class Models:
    """See `ports.ModelFiles`. `remote` may be None if the policy allows no scheme."""

    def __init__(self, local: LocalFiles, policy: FetchPolicy, cache: Cache, remote: Fetches | None) -> None:
        assert remote is not None or not policy.schemes
        self._local = local
        self._policy = policy
        self._cache = cache
        self._remote = remote
        self._gate = Gate()

    def check(self, ref: str) -> None:
        parsed = _parse(ref)
        if isinstance(parsed, FileRef):
            self._local.check(str(parsed))
        else:
            self._policy.check(parsed)

    async def resolve(self, ref: str, digest: str | None = None) -> str:
        self.check(ref)
        parsed = _parse(ref)
        if digest is not None and not DIGEST.fullmatch(digest):
            raise refused(f"{digest!r} is no digest; expected sha256: and 64 hexadecimal digits in lower case.")
        if isinstance(parsed, FileRef):
            return await self._at_home(parsed, digest)
        assert self._remote is not None
        async with self._gate.together():
            return await self._remote.fetch(parsed, digest)

    async def verify(self, path: str) -> str | None:
        await self._local.verify(path)
        return self._cache.digest_of(path)

    def progress(self, ref: str) -> tuple[int, int] | None:
        try:
            return self._remote.progress(parse(ref)) if self._remote is not None else None
        except BadReference:
            return None

    async def trim(self, used: Callable[[], Used]) -> tuple[int, int]:
        """See `ports.ModelCache`."""
        if self._policy.cache_bytes is None:
            return 0, 0
        async with self._gate.alone():
            wanted = used()
            done = await off_loop(self._trim, self._policy.cache_bytes, wanted)
        return done.gone, done.left

    def _trim(self, limit: int, used: Used) -> Trimmed:
        cache = self._cache
        keep = [cache.path(digest) for digest in used.digests if DIGEST.fullmatch(digest)]
        keep += [unit for path in used.paths if (unit := cache.unit(path)) is not None]
        keep += [cache.path_of(known) for ref in used.refs if (known := cache.known(ref)) is not None]
        return trim(cache, limit, set(keep))

    async def close(self) -> None:
        """End what is being fetched; it is gone on with when it is asked for again. Idempotent."""
        if self._remote is not None:
            await self._remote.close()

    async def _at_home(self, ref: FileRef, digest: str | None) -> str:
        path = await self._local.resolve(str(ref))
        if digest is not None:
            try:
                found = await off_loop(file_digest, path)
            except OSError as error:
                raise ModelUnavailable("NOT_FOUND", f"{path} cannot be read: {error.strerror}.") from error
            if found != digest:
                raise refused(f"{path} has digest {found}, and {digest} was asked for.")
        return path


def _parse(ref: str) -> ModelRef:
    try:
        return parse(ref)
    except BadReference as error:
        raise refused(str(error)) from None
