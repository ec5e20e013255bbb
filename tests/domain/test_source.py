"""Sources of models: one spelling for what means the same, and nothing that leads elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.source import key, normalise, registry


@pytest.mark.parametrize(
    ("source", "spelt"),
    [
        ("hf:acme/coder/q4.gguf", "hf:acme/coder/q4.gguf"),
        ("hf:acme//coder/", "hf:acme/coder"),
        ("file:a.gguf", "file:a.gguf"),
        ("file:./deep//a.gguf", "file:deep/a.gguf"),
        ("file:/srv//models/./a.gguf", "file:/srv/models/a.gguf"),
        ("file:///srv/a.gguf", "file:/srv/a.gguf"),
        ("file://localhost/srv/a.gguf", "file:/srv/a.gguf"),
        ("file:a..b/c...gguf", "file:a..b/c...gguf"),
        ("https://Models.Example:443/A/./b.gguf#part", "https://models.example/A/b.gguf"),
        ("https://models.example", "https://models.example/"),
        ("https://models.example:8443/a%2fb?x=1", "https://models.example:8443/a%2Fb?x=1"),
        ("https://[::1]:443/a", "https://[::1]/a"),
        ("s3://bucket/deep/a.gguf", "s3://bucket/deep/a.gguf"),
        ("oci://Registry.example/acme/coder", "oci://registry.example/acme/coder:latest"),
        ("oci://registry.example:5000/acme/coder:v1", "oci://registry.example:5000/acme/coder:v1"),
        ("oci://r.example/c@sha256:ab", "oci://r.example/c@sha256:ab"),
    ],
)
def test_every_source_has_one_spelling(source: str, spelt: str) -> None:
    """ORCH-3060: and that spelling is its own."""
    assert normalise(source) == spelt
    assert normalise(spelt) == spelt


@pytest.mark.parametrize(
    "source",
    [
        "",
        "home",
        "gopher://a/b",
        "http://a/b",
        "FILE:a",
        "file:",
        "file:.",
        "file:/",
        "file://",
        "file://elsewhere/a",
        "file:../a",
        "file:a/..",
        "file:a/../../b",
        "file:a\\..\\b",
        "file:a\0b",
        "hf:acme",
        "hf:/",
        "hf:acme/../other",
        "https://",
        "https:///a",
        "https://me@a/b",
        "https://me:pass@a/b",
        "https://a:99999/b",
        "https://a/b/../c",
        "https://a/b?../c",
        "https://[::1/a",
        "s3:///key",
        "oci://r/../x",
    ],
)
def test_what_is_no_source_is_refused(source: str) -> None:
    """With a reason, and never with the password in it."""
    with pytest.raises(ValueError) as error:
        normalise(source)
    assert str(error.value).endswith(".")
    assert "pass" not in str(error.value).replace("password", "")
    assert key(source) == source


@pytest.mark.parametrize(
    ("source", "who"),
    [
        ("file:a.gguf", None),
        ("hf:acme/coder", "hf:acme"),
        ("https://Models.example/a", "models.example"),
        ("oci://registry.example:5000/a/b", "registry.example:5000"),
        ("s3://bucket/a", "bucket"),
    ],
)
def test_a_registry_is_who_serves(source: str, who: str | None) -> None:
    assert registry(source) == who


@given(
    st.sampled_from(["hf:", "file:", "file:///", "https://", "s3://", "oci://", ""]),
    st.text(alphabet="aB.:/@?#%2f-_[]\\ü", max_size=24),
)
def test_spelling_twice_is_spelling_once(scheme: str, rest: str) -> None:
    """Whatever is written, nothing but a reason or a stable spelling comes of it."""
    try:
        spelt = normalise(scheme + rest)
    except ValueError:
        return
    assert normalise(spelt) == spelt
    assert ".." not in spelt.split("/")
