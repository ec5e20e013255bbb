"""Models from this machine: only where the policy says, by words and by what links really point to."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestratord.domain.modelref import is_reference, normalise
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.models import Models
from orchestratord.infra.fetch.policy import FetchPolicy
from orchestratord.ports import ModelUnavailable

GGUF = b"GGUF\x03\x00\x00\x00 and more"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    (root / "deep").mkdir(parents=True)
    (root / "a.gguf").write_bytes(GGUF)
    (root / "deep" / "b.gguf").write_bytes(GGUF)
    (tmp_path / "secret.gguf").write_bytes(GGUF)
    (root / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    (root / "inner.gguf").symlink_to(root / "a.gguf")
    (root / "out").symlink_to(tmp_path)
    (root / "empty.gguf").touch()
    (root / "page.gguf").write_bytes(b"<!doctype html>")
    return root


def resolve(root: Path, ref: str) -> str:
    return asyncio.run(LocalFiles([str(root)], ["/elsewhere/known.gguf"]).resolve(ref))


def test_what_is_under_a_root_is_found(root: Path) -> None:
    assert resolve(root, "file:a.gguf") == str(root / "a.gguf")
    assert resolve(root, "file:deep/b.gguf") == str(root / "deep" / "b.gguf")
    assert resolve(root, f"file:{root}/a.gguf") == str(root / "a.gguf")
    assert resolve(root, "file:inner.gguf") == str(root / "a.gguf"), "a link that stays inside is a file like any other"
    assert resolve(root, "file:/elsewhere/known.gguf") == "/elsewhere/known.gguf", "the configuration names it"


@pytest.mark.parametrize(
    "ref",
    [
        "a.gguf",
        "file:",
        "file:../secret.gguf",
        "file:deep/../../secret.gguf",
        "file:/etc/passwd",
        "file:///etc/passwd",
        "file://host/a.gguf",
        "file:a.gguf\0.txt",
        "FILE:/etc/passwd",
        "https://example.com/a.gguf",
        "hf:org/repo/a.gguf",
        "s3://bucket/a.gguf",
        "oci://host/a",
    ],
)
def test_what_the_policy_does_not_allow_is_refused_without_a_look(root: Path, ref: str) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        LocalFiles([str(root)]).check(ref)
    assert refused.value.code == "UNTRUSTED_ARTIFACT"


@pytest.mark.parametrize("ref", ["file:link.gguf", "file:out/secret.gguf"])
def test_a_link_does_not_lead_out(root: Path, ref: str) -> None:
    with pytest.raises(ModelUnavailable, match="leads out"):
        resolve(root, ref)


PIECES = ["..", ".", "/", "//", "a.gguf", "deep", "b.gguf", "out", "link.gguf", "inner.gguf", "secret.gguf", "%2e%2e"]
PIECES += [
    "models",
    "~",
    "\\",
    "..\\",
    "\0",
    "ROOT",
    "ROOT/..",
    "proc",
    "self",
    "environ",
    "a.gguf/..",
    "\u2025",
    "etc/passwd",
]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7), st.booleans())
def test_whatever_is_written_nothing_outside_is_found(root: Path, pieces: list[str], slashes: bool) -> None:
    """ORCH-3091: raw, and in its normal form."""
    text = "file:" + ("/" if slashes else "").join(pieces).replace("ROOT", str(root))
    for ref in {text, normalise(text) if is_reference(text) else text}:
        try:
            found = Path(resolve(root, ref))
        except ModelUnavailable:
            continue
        assert found.resolve() == found
        assert found.is_relative_to(root.resolve())


def test_what_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(ModelUnavailable) as missing:
        resolve(root, "file:nothing.gguf")
    assert missing.value.code == "NOT_FOUND"


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    """Whoever waited would keep a thread for good, and a few reloads all there are."""
    os.mkfifo(root / "pipe.gguf")
    models = Models(LocalFiles([str(root)]), FetchPolicy(), Cache(root / "cache"), None)
    codes: list[str] = []

    def ask() -> None:
        hashed = models.resolve("file:pipe.gguf", f"sha256:{'0' * 64}")
        for question in (hashed, models.verify(str(root / "pipe.gguf"))):
            try:
                asyncio.run(question)
            except ModelUnavailable as error:
                codes.append(error.code)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10)
    assert codes == ["UNTRUSTED_ARTIFACT"] * 2


@pytest.mark.parametrize("name", ["empty.gguf", "page.gguf", "deep", "nothing.gguf"])
def test_what_no_engine_could_load_is_not_verified(root: Path, name: str) -> None:
    with pytest.raises(ModelUnavailable):
        asyncio.run(LocalFiles([str(root)]).verify(str(root / name)))
    asyncio.run(LocalFiles([str(root)]).verify(str(root / "a.gguf")))
