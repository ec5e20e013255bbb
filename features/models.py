"""Models as files of a folder, with everything that can be said of them: digests, signatures, bills of materials."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

WRONG = "sha256:" + "0" * 64


class Models:
    """A folder under `models.roots`, and a key for each name that ever signed something here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}

    def write(self, name: str, text: str) -> str:
        """Put a file there; gives its digest."""
        (self.folder / name).write_text(text, "utf-8")
        return self.digest(name)

    def digest(self, name: str) -> str:
        return f"sha256:{hashlib.sha256((self.folder / name).read_bytes()).hexdigest()}"

    def root(self, name: str) -> str:
        """The file with the public key of a name."""
        pem = (
            self._key(name)
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        path = self.folder / f"{name}.pem"
        path.write_bytes(pem)
        return str(path)

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        return self._keys.setdefault(name, ec.generate_private_key(ec.SECP256R1()))

    def claim(self, model: str, words: str) -> dict[str, Any]:
        """Fields of an entry for this model file. Raises KeyError for words nobody knows."""
        if words.startswith("signed by "):
            return self._signed(model, words.removeprefix("signed by ").strip('"'))
        size = (self.folder / model).stat().st_size if (self.folder / model).exists() else 0
        known: dict[str, Any] = {
            "with its digest": lambda: {"digest": self.digest(model)},
            "with another digest": lambda: {"digest": WRONG},
            "with its manifest": lambda: {"manifests": [{"digest": self.digest(model), "size_bytes": size}]},
            "with a manifest of another size": lambda: {
                "manifests": [{"digest": self.digest(model), "size_bytes": size + 1}]
            },
            "with its bill": lambda: self._bill(model, self.digest(model)),
            "with a bill of something else": lambda: self._bill(model, WRONG),
            "with a bill nobody can find": lambda: {"sbom": {"uri": "file:nowhere.json", "digest": WRONG}},
            "under strict trust": lambda: {"trust_policy": {"mode": "strict"}},
            "that needs a signature": lambda: {"trust_policy": {"require_signature": True}},
        }
        found: dict[str, Any] = known[words]()
        return found

    def _signed(self, model: str, signer: str) -> dict[str, Any]:
        made = self._key(signer).sign((self.folder / model).read_bytes(), ec.ECDSA(hashes.SHA256()))
        (self.folder / f"{model}.sig").write_bytes(made)
        return {"signature_refs": [{"uri": f"file:{model}.sig"}]}

    def _bill(self, model: str, listed: str) -> dict[str, Any]:
        hashed = {"alg": "SHA-256", "content": listed.removeprefix("sha256:")}
        component = {"type": "machine-learning-model", "name": model, "hashes": [hashed]}
        bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [component]}
        return {"sbom": {"uri": f"file:{model}.json", "digest": self.write(f"{model}.json", json.dumps(bill))}}
