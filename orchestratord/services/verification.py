"""One check of a catalog entry: digest, files, signatures and bill of materials against what the entry claims."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from orchestratord.domain import modelref
from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.trust import Findings, Reason, Signature, TrustPolicy
from orchestratord.ports import Clock, Measured, ModelFiles, ModelProofs, ModelUnavailable

T = TypeVar("T")


class _Fault(Exception):
    """The check is over: the model is not what it should be, or cannot be had."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(slots=True)
class _Notes:
    """What a check has found so far."""

    digest: str | None = None
    signed: bool = False
    bill: bool = False
    signatures: list[Signature] = field(default_factory=list)
    missing: dict[Reason, str] = field(default_factory=dict)  # what there is not, and why


class Verification:
    """Never raises what the model is to blame for: that is what it finds."""

    def __init__(self, files: ModelFiles, proofs: ModelProofs, clock: Clock, policy: TrustPolicy) -> None:
        self._files = files
        self._proofs = proofs
        self._clock = clock
        self._policy = policy
        self._turn = asyncio.Lock()  # one model is read at a time; whoever waits for a server keeps nobody

    async def check(self, entry: CatalogEntry) -> tuple[Findings, tuple[Signature, ...]]:
        notes = _Notes()
        fault: _Fault | None = None
        try:
            await self._examine(entry, self._policy.tightened(entry.trust_policy), notes)
        except _Fault as found:
            fault = found
        missing = next(iter(notes.missing), None)
        reason: Reason = fault.reason if fault is not None else missing or "ok"
        findings = Findings(
            self._clock.wall_ms(),
            reason,
            str(fault) if fault is not None else "; ".join(notes.missing.values()),
            notes.digest,
            notes.signed,
            notes.bill,
            fault.reason if fault is not None else None,
        )
        return findings, tuple(notes.signatures)

    async def _examine(self, entry: CatalogEntry, policy: TrustPolicy, notes: _Notes) -> None:
        registry = modelref.registry(entry.source_url)
        if not policy.allows(registry):
            raise _Fault("registry", f"{registry} is none of the allowed registries")
        path = await self._had(self._files.resolve(entry.source_url))
        async with self._turn:
            measured = await self._had(self._proofs.measure(path, fresh=True))
        notes.digest = measured.digest
        if entry.digest is not None and entry.digest != measured.digest:
            raise _Fault("digest", f"its digest is {measured.digest}")
        if entry.manifests is not None:
            self._compare(entry, measured)
        await self._signatures(entry, policy, path, measured, notes)
        await self._bill(entry, policy, measured, notes)

    @staticmethod
    def _compare(entry: CatalogEntry, measured: Measured) -> None:
        said = sorted((manifest.digest, manifest.size_bytes) for manifest in entry.manifests or ())
        found = sorted(measured.files)
        if said != found:
            wrong = next((f for f in found if f not in said), None)
            what = f"a file of {wrong[1]} bytes with {wrong[0]} is none of them" if wrong else "some are not there"
            raise _Fault("manifest", f"its files are not those of the manifests: {what}")

    async def _signatures(
        self, entry: CatalogEntry, policy: TrustPolicy, path: str, measured: Measured, notes: _Notes
    ) -> None:
        roots = self._proofs.roots if policy.ca_roots is None else self._proofs.roots & set(policy.ca_roots)
        why = "" if entry.signature_refs else "there is no signature"
        if entry.signature_refs and not roots:
            why = "no key that may have signed is configured in trust.roots"
        for ref in entry.signature_refs or () if not why else ():
            try:
                there = await self._files.resolve(ref.uri)
            except ModelUnavailable as error:
                why = f"a signature cannot be had: {error}"
                continue
            if ref.digest is not None and await self._sound("signature", self._proofs.digest(there)) != ref.digest:
                raise _Fault("signature", f"the signature at {ref.uri} has another digest")
            among: Collection[str] = roots if ref.signer is None else roots & {ref.signer}
            async with self._turn:  # some are over the bytes, not over their digest
                signed = await self._sound("signature", self._proofs.signature(there, path, measured, among))
            signer = signed.root or ref.signer or "unknown"
            at_ms = self._clock.wall_ms()
            notes.signatures.append(Signature(signer, signed.algo, signed.root is not None, at_ms))
            if signed.root is None:
                raise _Fault(
                    "signature", f"the signature at {ref.uri} is by none of {', '.join(sorted(among)) or 'us'}"
                )
        notes.signed = not why
        self._lacks("signature_missing", why, notes, needed=policy.needs_signature)

    async def _bill(self, entry: CatalogEntry, policy: TrustPolicy, measured: Measured, notes: _Notes) -> None:
        why = "" if entry.sbom is not None else "there is no bill of materials"
        if entry.sbom is not None:
            try:
                there = await self._files.resolve(entry.sbom.uri)
            except ModelUnavailable as error:
                why = f"the bill of materials cannot be had: {error}"
            else:
                await self._read_bill(there, entry.sbom.digest, measured)
        notes.bill = not why
        self._lacks("sbom_missing", why, notes, needed=policy.needs_sbom)

    async def _read_bill(self, path: str, digest: str, measured: Measured) -> None:
        listed = await self._sound("sbom", self._proofs.listed(path, digest))
        if listed and not listed & {measured.digest, *(file for file, _ in measured.files)}:
            raise _Fault("sbom", "the bill of materials lists other files than this model's")

    @staticmethod
    def _lacks(reason: Reason, why: str, notes: _Notes, *, needed: bool) -> None:
        """Something is missing: a warning, or the end of the check where it is needed."""
        if why and needed:
            raise _Fault(reason, why)
        if why:
            notes.missing[reason] = why

    @staticmethod
    async def _had(what: Awaitable[T]) -> T:
        try:
            return await what
        except ModelUnavailable as error:
            raise _Fault("not_allowed" if error.code == "UNTRUSTED_ARTIFACT" else "not_found", str(error)) from error

    @staticmethod
    async def _sound(reason: Reason, what: Awaitable[T]) -> T:
        """What lies there is there, so whatever is wrong with it counts."""
        try:
            return await what
        except ModelUnavailable as error:
            raise _Fault(reason, str(error)) from error
