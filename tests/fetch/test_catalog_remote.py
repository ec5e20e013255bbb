"""Catalog entries whose models lie elsewhere: checked by the daemon over HTTP, fetched from servers of loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.fetch.hub import HubSite
from tests.fetch.registry import RegistrySite, layer
from tests.fetch.site import Reply, Site, digest, serving, write_root
from tests.ports import signed_samples as samples
from tests.services.support import wait_for

MODEL = samples.MODEL + bytes(2000)
PATH = "/v1/catalog/models"


@dataclass(frozen=True, slots=True)
class Daemon:
    """`site` serves plain files and buckets, `hub` repositories, `oci` images."""

    app: LiveApp
    session: VerifyingSession
    site: Site
    hub: Site
    oci: Site
    cache: Path

    def check(self, source: str, **fields: Any) -> dict[str, Any]:
        """The entry after its check."""
        assert self.session.post(PATH, json={"id": "m", "source_url": source, **fields}).status_code == 201
        return self.again()

    def again(self) -> dict[str, Any]:
        assert self.session.post(f"{PATH}/m/verify").status_code == 202
        wait_for(lambda: self.entry()["verification"]["status"] != "running", "the check is over")
        return self.entry()

    def entry(self) -> dict[str, Any]:
        found: dict[str, Any] = self.session.get(f"{PATH}/m").json()
        return found


@contextmanager
def daemon(folder: Path, *, fetch: dict[str, Any] | None = None, **trust: Any) -> Iterator[Daemon]:
    with serving() as site, serving() as hub, serving() as oci:
        HubSite(hub, site).repos.update(
            {
                "acme/coder": {"q4.gguf": MODEL},
                "acme/whole": {"model.safetensors": MODEL, "config.json": b"{}", "tokenizer.json": b"[]"},
            }
        )
        RegistrySite(oci).push("acme/coder", "v1", [layer(MODEL, "coder.gguf")], MODEL)
        site.files["/m.gguf"] = site.files["/models/m.gguf"] = MODEL
        (folder / "acme.pem").write_bytes(samples.ECDSA)
        allowed = {
            "schemes": ["hf", "https", "s3", "oci"],
            "allow_private": [f"127.0.0.1:{one.port}" for one in (site, hub, oci)],
            "ca_roots": {"own": write_root(folder)},
            "hub": hub.at("/")[:-1],
            "s3": {"endpoint": site.at("/")[:-1], "access_key_env": "NOBODY", "secret_key_env": "NOBODY"},
            "idle_ms": 2000,
        }
        roots = {"acme": str(folder / "acme.pem")}
        settings = mock_settings(
            folder / "data", models={"fetch": {**allowed, **(fetch or {})}}, trust={"roots": roots, **trust}
        )
        with LiveApp(settings, manual=False) as app, app.session() as session:
            yield Daemon(app, session, site, hub, oci, folder / "data" / "models")


def source(found: Daemon, scheme: str) -> str:
    return {
        "https": found.site.at("/m.gguf"),
        "hf": "hf:acme/coder/q4.gguf",
        "s3": "s3://models/m.gguf",
        "oci": f"oci://127.0.0.1:{found.oci.port}/acme/coder:v1",
    }[scheme]


@pytest.mark.parametrize("scheme", ["https", "hf", "s3", "oci"])
def test_a_model_from_anywhere_is_fetched_and_checked(tmp_path: Path, scheme: str) -> None:
    """ORCH-3061, ORCH-3072: digest and manifests are those of the bytes that came."""
    with daemon(tmp_path) as found:
        manifests = [{"digest": digest(MODEL), "size_bytes": len(MODEL)}]
        entry = found.check(source(found, scheme), digest=digest(MODEL), manifests=manifests)
        assert entry["verification"]["status"] == "passed", entry
        assert [path.read_bytes() for path in found.cache.glob("sha256/*/*")] == [MODEL]


def test_a_folder_from_a_hub_is_checked_file_by_file(tmp_path: Path) -> None:
    """ORCH-3061: its digest is that of the list of its files."""
    files = {"model.safetensors": MODEL, "config.json": b"{}", "tokenizer.json": b"[]"}
    manifests = [{"digest": digest(data), "size_bytes": len(data)} for data in files.values()]
    listed = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    with daemon(tmp_path) as found:
        entry = found.check("hf:acme/whole", digest=digest(listed.encode()), manifests=manifests)
        assert entry["verification"]["status"] == "passed", entry
    with daemon(tmp_path) as found:
        found.session.delete(f"{PATH}/m")
        entry = found.check("hf:acme/whole", manifests=manifests[:2])
        assert entry["verification"]["status"] == "failed"
        assert "manifest" in entry["verification"]["reason"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"digest": f"sha256:{'0' * 64}"}, f"its digest is {digest(MODEL)}"),
        ({"source_url": "/nothing.gguf"}, "There is nothing at"),
        ({"source_url": "hf:acme/nobody/q4.gguf"}, "does not exist, or wants a token"),
        ({"source_url": "https://127.0.0.1:1/m.gguf"}, "models.fetch"),
    ],
)
def test_what_is_wrong_or_cannot_be_had_is_said(tmp_path: Path, what: dict[str, str], said: str) -> None:
    """ORCH-3061, ORCH-3090"""
    with daemon(tmp_path) as found:
        url = what.get("source_url", "/m.gguf")
        url = found.site.at(url) if url.startswith("/") else url
        entry = found.check(url, **{key: value for key, value in what.items() if key != "source_url"})
        assert entry["verification"]["status"] == "failed"
        assert said in entry["verification"]["reason"]


def test_signature_and_bill_may_lie_elsewhere_too(tmp_path: Path) -> None:
    """ORCH-3080: under strict trust, with everything from servers."""
    with daemon(tmp_path, mode="strict") as found:
        bill = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "components": [
                {
                    "type": "machine-learning-model",
                    "name": "m",
                    "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(samples.MODEL).hexdigest()}],
                }
            ],
        }
        sbom = json.dumps(bill).encode()
        found.site.files |= {"/s.gguf": samples.MODEL, "/s.sig": samples.ECDSA_SIGNATURE, "/s.json": sbom}
        entry = found.check(
            found.site.at("/s.gguf"),
            signature_refs=[{"uri": found.site.at("/s.sig"), "signer": "acme"}],
            sbom={"uri": found.site.at("/s.json"), "digest": digest(sbom)},
        )
        assert entry["verification"]["status"] == "passed", entry
        assert [(one["signer"], one["verified"]) for one in entry["signatures"]] == [("acme", True)]
        found.site.files["/s.sig"] = samples.ECDSA_SIGNATURE[::-1]
        assert found.again()["verification"]["status"] == "failed"


def test_a_model_that_has_changed_there_is_noticed(tmp_path: Path) -> None:
    """ORCH-3061: a check asks the server again; while that is away, what was fetched is checked."""
    with daemon(tmp_path) as found:
        assert found.check(found.site.at("/m.gguf"), digest=digest(MODEL))["verification"]["status"] == "passed"
        found.site.files["/m.gguf"] = MODEL + b"!"
        assert "its digest is" in found.again()["verification"]["reason"]
        found.site.files["/m.gguf"] = MODEL
        assert found.again()["verification"]["status"] == "passed"
        found.site.routes["/m.gguf"] = lambda _: Reply(503)
        assert found.again()["verification"]["status"] == "passed"


def test_what_rots_in_the_cache_is_found(tmp_path: Path) -> None:
    """ORCH-3061: the bytes are read again, also where the server says that nothing has changed."""
    with daemon(tmp_path) as found:
        assert found.check(found.site.at("/m.gguf"), digest=digest(MODEL))["verification"]["status"] == "passed"
        (path,) = found.cache.glob("sha256/*/*")
        path.chmod(0o600)
        path.write_bytes(MODEL[:-1] + b"!")
        assert "its digest is" in found.again()["verification"]["reason"]
