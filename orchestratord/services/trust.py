"""Trust, where a model is about to be loaded: what the catalog says of it, and whether it is what was said."""

from __future__ import annotations

from collections.abc import Mapping

from orchestratord.domain import modelref
from orchestratord.domain.catalog import Catalog
from orchestratord.domain.pool import Pool
from orchestratord.ports import ModelProofs, ModelUnavailable


class Trust:
    """`pinned`: digests of the configuration, by pool; they speak of the model that is configured there."""

    def __init__(self, catalog: Catalog, proofs: ModelProofs, pinned: Mapping[str, str]) -> None:
        self._catalog = catalog
        self._proofs = proofs
        self._pinned = dict(pinned)

    def check(self, ref: str) -> None:
        """Whether a pool may come to serve this model. Raises ModelDeprecated and UntrustedArtifact."""
        refusal = self._catalog.refusal(self._catalog.applying([ref]), f"Model {ref}", strict=False, new=True)
        if refusal is not None:
            raise refusal

    async def vet(self, pool: Pool, ref: str, path: str) -> str | None:
        """The digest of what lies at `path`, if one was given that it had to have; else None.

        Raises ModelUnavailable when it has another digest.
        """
        expected = self._expected(pool, ref)
        if not expected:
            return None
        found = (await self._proofs.measure(path)).digest
        wrong = sorted(where for where, digest in expected.items() if digest != found)
        if wrong:
            raise ModelUnavailable(
                "UNTRUSTED_ARTIFACT",
                f"{path} has the digest {found}, but {wrong[0]} says {expected[wrong[0]]}. Put the right file there, "
                "or correct the digest.",
            )
        return found

    def _expected(self, pool: Pool, ref: str) -> dict[str, str]:
        """Who says which digest. What a check has found counts where only what was checked may be used."""
        said = {}
        if pool.id in self._pinned and modelref.key(ref) == modelref.key(pool.configured):
            said[f"the configuration of pool {pool.id}"] = self._pinned[pool.id]
        for entry in self._catalog.applying([ref]):
            policy = self._catalog.policy.tightened(entry.trust_policy)
            checked = entry.findings.digest if entry.findings is not None else None
            if (digest := entry.digest or (checked if policy.strict else None)) is not None:
                said[f"catalog model {entry.id!r}"] = digest
        return said
