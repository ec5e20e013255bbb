"""The cache of fetched models, kept within its bound: what no pool and no entry of the catalog uses may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestratord.domain import modelref
from orchestratord.domain.control import Control
from orchestratord.ports import Clock, ModelCache, Telemetry, Used
from orchestratord.services.members import ReplicaSpec


class CacheBound:
    """Looks at the start, and every so often. `specs` are those of every replica, also of those that come and go."""

    def __init__(
        self,
        cache: ModelCache,
        core: Control,
        specs: Callable[[], Iterable[ReplicaSpec]],
        clock: Clock,
        telemetry: Telemetry,
        every_s: float,
    ) -> None:
        self._cache = cache
        self._core = core
        self._specs = specs
        self._clock = clock
        self._telemetry = telemetry
        self._every_s = every_s

    async def serve(self) -> None:
        """Trim for as long as the daemon runs."""
        while True:
            await self.trim()
            await self._clock.sleep(self._every_s)

    async def trim(self) -> None:
        try:
            gone, left = await self._cache.trim(self.used)
        except OSError as error:
            self._telemetry.event("cache_trim_failed", "the cache of models cannot be trimmed", error=str(error))
            return
        if gone:
            self._telemetry.count("orchestratord_model_cache_dropped_bytes_total", gone)
            self._telemetry.event(
                "cache_trimmed", "models that nothing uses made room in the cache", gone_bytes=gone, left_bytes=left
            )

    def used(self) -> Used:
        """Whatever a pool serves or is being reloaded to, and all that the catalog speaks of."""
        refs: set[str] = set()
        paths: set[str] = set()
        digests: set[str] = set()
        for pool in self._core.pools.values():
            refs.add(pool.spec.model_ref)
            if pool.model is not None:
                paths.add(pool.model.path or "")
            if pool.spec.pins.model_digest is not None:
                digests.add(pool.spec.pins.model_digest)
            if pool.operation is not None and not pool.operation.over:
                refs.add(pool.operation.to_model_ref or "")
        for spec in self._specs():
            if spec.process is not None:
                refs.add(spec.process.model_path)
                paths.add(spec.process.model_path)
        for entry in self._core.catalog.oldest():
            refs.add(entry.source_url)
            refs |= {signature.uri for signature in entry.signature_refs or ()}
            digests |= entry.digests
            if entry.sbom is not None:
                refs.add(entry.sbom.uri)
                digests.add(entry.sbom.digest)
        return Used(frozenset(map(modelref.key, refs)), frozenset(paths - {""}), frozenset(digests))
