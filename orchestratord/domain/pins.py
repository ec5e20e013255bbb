"""Pins: what a pool demands of its replicas, so that a seed means the same output wherever a task lands (ORCH-3050)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pins:
    """None: anything will do. knobs: what the pinned sampler profile sets."""

    engine_version: str | None = None
    model_digest: str | None = None
    profile: str | None = None
    knobs: frozenset[str] = frozenset()

    @property
    def any(self) -> bool:
        return (self.engine_version or self.model_digest or self.profile) is not None

    def mismatch(self, engine_version: str, model_digest: str | None, features: Collection[str]) -> str | None:
        """What of a replica differs and how, or None."""
        if self.engine_version not in (None, engine_version):
            return f"the pool is pinned to engine_version {self.engine_version}, this engine is {engine_version}"
        if self.model_digest not in (None, model_digest):
            found = model_digest or "not known (only a file we start an engine on can be read)"
            return f"the pool is pinned to model_digest {self.model_digest}, this one is {found}"
        if self.profile is not None and (ignored := sorted(self.knobs - set(features))):
            return (
                f"the pool is pinned to profile {self.profile}, which sets {', '.join(ignored)}: this engine ignores it"
            )
        return None
