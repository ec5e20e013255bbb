"""Trust: what a policy asks of a model, what a check has found out about it, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["permissive", "strict"]
Reason = Literal[
    "ok",
    "signature_missing",
    "sbom_missing",
    "registry",
    "not_found",
    "not_allowed",
    "digest",
    "manifest",
    "signature",
    "sbom",
    "error",
]
# What was read says otherwise than what was claimed. Everything else may only be a matter of being out of reach.
CONTRADICTIONS: frozenset[Reason] = frozenset({"digest", "manifest", "signature", "sbom"})


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What is asked of a model; None asks for nothing. `ca_roots` are names of `trust.roots`, None: any of them."""

    mode: Mode | None = None
    allowed_registries: tuple[str, ...] | None = None
    require_signature: bool | None = None
    require_sbom: bool | None = None
    ca_roots: tuple[str, ...] | None = None

    @property
    def strict(self) -> bool:
        return self.mode == "strict"

    @property
    def needs_signature(self) -> bool:
        return self.strict or bool(self.require_signature)

    @property
    def needs_sbom(self) -> bool:
        return self.strict or bool(self.require_sbom)

    def allows(self, registry: str | None) -> bool:
        return registry is None or self.allowed_registries is None or registry in self.allowed_registries

    def tightened(self, other: TrustPolicy | None) -> TrustPolicy:
        """Both at once: nothing that one of them asks for is given up."""
        if other is None:
            return self
        return TrustPolicy(
            "strict" if self.strict or other.strict else "permissive",
            _both(self.allowed_registries, other.allowed_registries),
            self.require_signature or other.require_signature,
            self.require_sbom or other.require_sbom,
            _both(self.ca_roots, other.ca_roots),
        )


STRICT = TrustPolicy("strict")


def _both(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    return tuple(name for name in one if name in other)


@dataclass(frozen=True, slots=True)
class Signature:
    """What checking one signature gave. `signer` is the root it was checked against, or who was expected."""

    signer: str
    algo: str
    verified: bool
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What the last check that came to its end has found. `fault` is None for a check that was passed."""

    at_ms: int
    reason: Reason
    message: str
    digest: str | None = None  # what the model's bytes really hash to
    signed: bool = False
    bill: bool = False  # there is a bill of materials, and it is the right one
    fault: Reason | None = None

    def short_of(self, policy: TrustPolicy) -> str | None:
        """What is missing for this policy, None if nothing is."""
        if self.fault in CONTRADICTIONS:
            return f"its check failed: {self.message}"
        if policy.strict and self.fault is not None:
            return f"its check failed: {self.message}"
        if policy.needs_signature and not self.signed:
            return "it has no signature that could be verified"
        if policy.needs_sbom and not self.bill:
            return "it has no bill of materials"
        return None
