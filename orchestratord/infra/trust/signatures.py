"""Signatures over models, checked with the keys of `trust.roots`.

Two kinds, both over a hash, since a model is too large to be held in memory: ECDSA or RSA over its SHA-256, as
`openssl dgst -sha256 -sign` and `cosign sign-blob --key` make them (bare, in base64, or in a bundle), and minisign's
Ed25519 over its BLAKE2b. A bundle's own certificate proves nothing here: only keys that the configuration names count.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestratord.infra.trust.root import BadKey, Root
from orchestratord.ports import ModelUnavailable, Signed

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
except ImportError as error:  # the extra `trust` is not installed
    MISSING: str | None = f"{error.name} is not installed: pip install 'orchestratord[trust]'"
else:
    MISSING = None

COMMENT = b"untrusted comment:"
TRUSTED = b"trusted comment: "


def load(name: str, data: bytes) -> Root:
    """A public key or certificate in PEM, or a minisign public key. Raises BadKey."""
    if MISSING is not None:
        raise BadKey(MISSING)
    if data.lstrip().startswith(b"-----BEGIN"):
        return _pem(name, data)
    blob = _base64(next(reversed([line for line in data.splitlines() if line.strip()]), b""))
    if blob is None or len(blob) != 42 or blob[:2] != b"Ed":
        raise BadKey("it is neither a PEM public key or certificate nor a minisign public key")
    return Root(name, "minisign", ed25519.Ed25519PublicKey.from_public_bytes(blob[10:]), blob[2:10])


def _pem(name: str, data: bytes) -> Root:
    try:
        if b"BEGIN CERTIFICATE" in data:
            key: Any = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except ValueError as error:
        raise BadKey(f"it cannot be read: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey):
        return Root(name, "ecdsa-sha256", key)
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            raise BadKey(f"an RSA key of {key.key_size} bits is too weak: at least 2048")
        return Root(name, "rsa-sha256", key)
    raise BadKey("it is neither an ECDSA nor an RSA key; for Ed25519 give a minisign public key")


def check(
    data: bytes, sha256: bytes, blake2b: Callable[[], bytes], roots: Mapping[str, Root], among: Iterable[str]
) -> Signed:
    """Whose signature `data` is, of the roots `among`. `blake2b` is only called where it is needed.

    Raises ModelUnavailable when it is none of the kinds above.
    """
    keys = [roots[name] for name in sorted(among) if name in roots]
    if data.startswith(COMMENT):
        parts = _minisign(data)
        keys = [root for root in keys if root.kind == "minisign" and root.key_id == parts.key_id]
        content = blake2b() if keys else b""
        return Signed(next((r.name for r in keys if _made_minisign(r, parts, content)), None), "minisign")
    signature = _detached(data)
    keys = [root for root in keys if root.kind != "minisign"]
    made_by = next((root for root in keys if _made(root, signature, sha256)), None)
    return Signed(made_by.name if made_by else None, made_by.kind if made_by else "sha256")


def _detached(data: bytes) -> bytes:
    """The signature itself out of a bundle, base64, or the bare bytes."""
    if not data.lstrip().startswith(b"{"):
        return _base64(data.strip()) or data
    try:
        bundle = json.loads(data)
        text = bundle["messageSignature"]["signature"] if "messageSignature" in bundle else bundle["base64Signature"]
        found = _base64(text.encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = None
    if found is None:
        raise ModelUnavailable("UNTRUSTED_ARTIFACT", "the bundle has no signature over a file")
    return found


def _made(root: Root, signature: bytes, sha256: bytes) -> bool:
    hashed = utils.Prehashed(SHA256())
    try:
        if root.kind == "ecdsa-sha256":
            root.key.verify(signature, sha256, ec.ECDSA(hashed))
        else:
            root.key.verify(signature, sha256, padding.PKCS1v15(), hashed)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Minisign:
    key_id: bytes
    signature: bytes
    comment: bytes
    whole: bytes  # signature over signature and comment


def _minisign(data: bytes) -> _Minisign:
    lines = data.splitlines()
    blob = _base64(lines[1]) if len(lines) > 3 else None
    whole = _base64(lines[3]) if len(lines) > 3 else None
    if blob is None or whole is None or len(blob) != 74 or not lines[2].startswith(TRUSTED):
        raise ModelUnavailable("UNTRUSTED_ARTIFACT", "the minisign signature is damaged")
    if blob[:2] != b"ED":
        raise ModelUnavailable("UNTRUSTED_ARTIFACT", "the minisign signature is of the legacy kind: sign it anew")
    return _Minisign(blob[2:10], blob[10:], lines[2].removeprefix(TRUSTED), whole)


def _made_minisign(root: Root, parts: _Minisign, blake2b: bytes) -> bool:
    try:
        root.key.verify(parts.signature, blake2b)
        root.key.verify(parts.whole, parts.signature + parts.comment)
    except InvalidSignature:
        return False
    return True


def _base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True) if text else None
    except (binascii.Error, ValueError):
        return None
