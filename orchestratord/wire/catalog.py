"""CatalogModelCreate to an entry, an entry to CatalogModel."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.entry import CatalogEntry, Manifest, Sbom, SignatureRef
from orchestratord.domain.trust import TrustPolicy

REASON_CHARS = 256
INTERRUPTED = "The daemon stopped during the check. Start it again."


def parse_entry(body: dict[str, Any]) -> CatalogEntry:
    """The entry a client asks for. When it was created is not known yet."""
    manifests, refs, sbom = body.get("manifests"), body.get("signature_refs"), body.get("sbom")
    policy = body.get("trust_policy")
    return CatalogEntry(
        id=body["id"],
        source_url=body["source_url"],
        created_ms=0,
        digest=body.get("digest"),
        tags=tuple(sorted(set(body.get("tags", ())))),
        manifests=None if manifests is None else tuple(Manifest(**each) for each in manifests),
        signature_refs=None if refs is None else tuple(SignatureRef(**each) for each in refs),
        sbom=None if sbom is None else Sbom(**sbom),
        trust_policy=None if policy is None else _policy(policy),
    )


def _policy(given: dict[str, Any]) -> TrustPolicy:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return TrustPolicy(**fields)


def entry_body(entry: CatalogEntry) -> dict[str, Any]:
    given = {
        "digest": entry.digest,
        "manifests": None if entry.manifests is None else [_given(each) for each in entry.manifests],
        "signature_refs": None if entry.signature_refs is None else [_given(each) for each in entry.signature_refs],
        "sbom": None if entry.sbom is None else _given(entry.sbom),
        "trust_policy": None if entry.trust_policy is None else _given(entry.trust_policy),
    }
    return {
        "id": entry.id,
        "source_url": entry.source_url,
        "tags": list(entry.tags),
        **{name: value for name, value in given.items() if value is not None},
        "state": entry.state,
        "signatures": [_given(signature) for signature in entry.signatures],
        "verification": _verification(entry),
    }


def _given(part: Any) -> dict[str, Any]:
    """The fields of a part that are set."""
    values = ((name, getattr(part, name)) for name in part.__slots__)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values if v is not None}


def _verification(entry: CatalogEntry) -> dict[str, Any]:
    """`running` while a check runs, else what the last one found that came to its end."""
    if entry.checking:
        return {"status": "running"}
    found = entry.findings
    if found is None:
        return {"status": "unverified", **({"reason": INTERRUPTED} if entry.interrupted else {})}
    reason = found.message if found.fault is None else f"{found.fault}: {found.message}"
    return {
        "status": "passed" if found.fault is None else "failed",
        **({"reason": reason[:REASON_CHARS]} if reason else {}),
        "at_ms": found.at_ms,
    }
