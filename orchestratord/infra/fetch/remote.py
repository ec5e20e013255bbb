"""Models from elsewhere: from a reference to a file or folder in the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from orchestratord.domain.modelref import BucketRef, FileRef, HubRef, ModelRef, RegistryRef, WebRef
from orchestratord.domain.url import BadReference
from orchestratord.infra.fetch.buckets import Buckets
from orchestratord.infra.fetch.cache import Cache, Known
from orchestratord.infra.fetch.download import ATTEMPTS, PAUSE_S, Downloads, Progress, Source, disk_trouble
from orchestratord.infra.fetch.https import Https, Interrupted, Resolve, system_resolve
from orchestratord.infra.fetch.hub import Hub, parts
from orchestratord.infra.fetch.joined import Joined
from orchestratord.infra.fetch.policy import FetchPolicy, refused
from orchestratord.infra.fetch.registry import Registry
from orchestratord.infra.fetch.threads import off_loop
from orchestratord.ports import Clock, ModelUnavailable


class Remote:
    """The part of `ports.ModelFiles` that fetches, for references the policy has allowed."""

    def __init__(
        self,
        policy: FetchPolicy,
        cache: Cache,
        clock: Clock,
        *,
        resolve: Resolve = system_resolve,
        environ: Mapping[str, str] = os.environ,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._cache = cache
        self._https = Https(policy, clock, resolve=resolve, environ=environ)
        self._downloads = Downloads(self._https, cache, policy, clock, pause_s=pause_s)
        self._buckets = Buckets(policy.s3, environ)
        self._hub = Hub(self._https, policy.hub)
        self._registry = Registry(self._https)
        self._fetches = Joined[str]()
        self._files = Joined[tuple[str, str | None]]()
        self._progress: dict[str, Progress] = {}

    async def fetch(self, ref: ModelRef, digest: str | None) -> str:
        """The reference's file or folder in the cache. What is there already serves when nobody can be asked.

        Raises ModelUnavailable.
        """
        return await self._fetches.run(f"{ref} {digest}", lambda: self._fetch(ref, digest))

    def progress(self, ref: ModelRef) -> tuple[int, int] | None:
        """See `ports.ModelFiles`."""
        running = self._progress.get(str(ref))
        return (running.done, running.total) if running is not None else None

    async def close(self) -> None:
        """End what is being fetched; it is gone on with when it is asked for again. Idempotent."""
        await self._fetches.close()
        await self._files.close()
        await self._https.close()

    async def _fetch(self, ref: ModelRef, digest: str | None) -> str:
        try:
            return await self._cached(ref, digest)
        except OSError as error:
            raise disk_trouble(error, str(ref)) from error

    async def _cached(self, ref: ModelRef, digest: str | None) -> str:
        name = str(ref)
        if digest is not None and await off_loop(self._cache.has, digest):
            return await self._arrive(Known(ref=name, digest=digest))
        progress = self._progress[name] = Progress()
        known = await off_loop(self._cache.known, name)
        try:
            found = await self._found(ref, digest, progress, known)
        except (Interrupted, ModelUnavailable) as error:
            passing = isinstance(error, Interrupted) or error.code == "FETCH_FAILED"
            if passing and known is not None and digest in (None, known.digest):
                return await self._arrive(known)
            if isinstance(error, Interrupted):
                raise ModelUnavailable("FETCH_FAILED", f"{error}.") from None
            raise
        except BadReference as error:
            raise refused(f"{name} leads to what is no address: {error}.") from None
        finally:
            self._progress.pop(name, None)
        if digest is not None and found.digest != digest:
            raise refused(f"{name} has digest {found.digest}, and {digest} was asked for.")
        return await self._arrive(found)

    async def _arrive(self, known: Known) -> str:
        """The path that a reference has led to. That counts as a use, also of what was there already."""
        await off_loop(self._cache.remember, known)
        return await off_loop(self._path, known)

    async def _found(self, ref: ModelRef, digest: str | None, progress: Progress, known: Known | None) -> Known:
        sources = await self._patiently(ref, 1 if known is not None else ATTEMPTS)
        progress.total = sum(source.size or 0 for source in sources.values())
        whole = isinstance(ref, HubRef) and ref.file is None and not any(name.endswith(".gguf") for name in sources)
        if len(sources) == 1 and not whole:
            (source,) = sources.values()
            if digest is not None and source.digest not in (None, digest):
                raise refused(f"{ref} has digest {source.digest}, and {digest} was asked for.")
            found, etag = await self._get(replace(source, digest=source.digest or digest), progress, known)
            return Known(ref=str(ref), digest=found, etag=etag)
        if digest is not None:
            raise refused(
                f"{ref} has {len(sources)} files, and a digest is that of one. Leave it out, or name the file."
            )
        digests = {name: (await self._get(source, progress, None))[0] for name, source in sources.items()}
        tree = await off_loop(self._cache.tree, digests)
        return Known(ref=str(ref), tree=tree)

    async def _patiently(self, ref: ModelRef, attempts: int) -> dict[str, Source]:
        for failures in range(1, attempts):
            try:
                return await self._sources(ref)
            except Interrupted:
                await self._downloads.pause(failures)
        return await self._sources(ref)

    async def _sources(self, ref: ModelRef) -> dict[str, Source]:
        match ref:
            case HubRef():
                return await self._hub.sources(ref)
            case BucketRef():
                return await self._buckets.sources(ref)
            case RegistryRef():
                return await self._registry.sources(ref)
            case WebRef():
                return {"model": Source(str(ref), ref.url)}
            case FileRef():
                raise AssertionError("a file is not fetched")

    async def _get(self, source: Source, progress: Progress, known: Known | None) -> tuple[str, str | None]:
        """Several references may mean one file: it is fetched once."""
        key = source.digest or source.name
        return await self._files.run(key, lambda: self._downloads.get(source, progress, known))

    def _path(self, known: Known) -> str:
        folder = self._cache.path_of(known)
        if known.tree is None:
            return str(folder)
        first = next((path for path in sorted(folder.glob("*.gguf")) if parts(path.name)), None)
        return str(first or folder)
