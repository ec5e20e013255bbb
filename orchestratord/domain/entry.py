"""An entry of the model catalog, and what the journal keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestratord.domain import modelref
from orchestratord.domain.trust import Findings, Signature, TrustPolicy

ModelState = Literal["Active", "Retired"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file of a model."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SignatureRef:
    """Where a signature is found; `signer` names the root that is expected to have made it."""

    uri: str
    digest: str | None = None
    signer: str | None = None


@dataclass(frozen=True, slots=True)
class Sbom:
    """Where the bill of materials is found."""

    uri: str
    digest: str


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model: what the client said of it, then what only the server knows. `*_ms` are Unix epoch."""

    id: str
    source_url: str
    created_ms: int
    digest: str | None = None
    tags: tuple[str, ...] = ()  # a sorted set
    manifests: tuple[Manifest, ...] | None = None
    signature_refs: tuple[SignatureRef, ...] | None = None
    sbom: Sbom | None = None
    trust_policy: TrustPolicy | None = None
    state: ModelState = "Active"
    state_ms: int = 0  # since when
    checking: bool = False  # a check runs
    interrupted: bool = False  # the last check did not come to its end
    findings: Findings | None = None
    signatures: tuple[Signature, ...] = ()

    @property
    def retired(self) -> bool:
        return self.state == "Retired"

    @property
    def key(self) -> str:
        """Its source in the one spelling."""
        return modelref.key(self.source_url)

    @property
    def digests(self) -> frozenset[str]:
        """What its bytes hash to: as given, and as found."""
        found = self.findings.digest if self.findings is not None else None
        return frozenset(digest for digest in (self.digest, found) if digest is not None)

    def untrusted(self, policy: TrustPolicy) -> str | None:
        """Why a daemon with this policy does not use the model, None if it does."""
        policy = policy.tightened(self.trust_policy)
        if not policy.allows(modelref.registry(self.source_url)):
            return f"{modelref.registry(self.source_url)} is none of the allowed registries"
        if self.findings is None:
            unproven = policy.needs_signature or policy.needs_sbom
            return "it has not been verified yet: POST /v1/catalog/models/{id}/verify" if unproven else None
        return self.findings.short_of(policy)

    def after_restart(self) -> CatalogEntry:
        """A check that was running is over, and what the one before it found still stands."""
        return replace(self, checking=False, interrupted=True) if self.checking else self


@dataclass(frozen=True, slots=True)
class CatalogChanged:
    """The fact of an entry that is new or has changed: all of it."""

    entry: CatalogEntry


@dataclass(frozen=True, slots=True)
class CatalogRemoved:
    """The fact of an entry that is gone."""

    model_id: str
