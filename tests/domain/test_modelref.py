"""Model references: what is one, what it normalises to, and what no parser may be talked into."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.modelref import SCHEMES, key, normalise, parse, registry
from orchestratord.domain.url import BadReference, Url, join, parse_url

HEX = "ab" * 32

SAME = [
    ("hf:acme/coder-7b", "hf:acme/coder-7b"),
    ("hf://acme/coder-7b", "hf:acme/coder-7b"),
    ("hf:acme/coder-7b@main", "hf:acme/coder-7b"),
    ("hf:acme/coder-7b@v1.0/q4.gguf", "hf:acme/coder-7b@v1.0/q4.gguf"),
    ("hf:acme/coder-7b/q4/a-00001-of-00002.gguf", "hf:acme/coder-7b/q4/a-00001-of-00002.gguf"),
    ("file:/srv/models/a.gguf", "file:/srv/models/a.gguf"),
    ("file:///srv//models/./a.gguf", "file:/srv/models/a.gguf"),
    ("file:deep/a.gguf", "file:deep/a.gguf"),
    ("file:./deep//a.gguf", "file:deep/a.gguf"),
    ("file:/srv/models/hf-folder/", "file:/srv/models/hf-folder"),
    ("https://Example.COM:443/a.gguf", "https://example.com/a.gguf"),
    ("https://example.com:8443/%7euser/a%2fb.gguf", "https://example.com:8443/~user/a%2Fb.gguf"),
    ("https://example.com/get?id=7&sig=%2b", "https://example.com/get?id=7&sig=%2B"),
    ("https://127.0.0.1/a", "https://127.0.0.1/a"),
    ("https://[2001:DB8:0:0::1]:444/a", "https://[2001:db8::1]:444/a"),
    ("s3://models/coder/q4.gguf", "s3://models/coder/q4.gguf"),
    ("oci://Registry.example/acme/coder", "oci://registry.example/acme/coder:latest"),
    ("oci://registry.example:443/acme/coder:q4", "oci://registry.example/acme/coder:q4"),
    (f"oci://registry.example:5000/c:q4@sha256:{HEX}", f"oci://registry.example:5000/c@sha256:{HEX}"),
]

NONE = [
    "",
    "coder-latest",
    "a.gguf",
    "http://example.com/a",
    "gopher://example.com/a",
    "ftp://example.com/a",
    "HTTPS://example.com/a",
    "data:,x",
    "hf:",
    "hf:acme",
    "hf:acme/",
    "hf:/acme/coder",
    "hf:../coder",
    "hf:acme/..",
    "hf:acme/a..b",
    "hf:acme/coder/../x",
    "hf:acme/coder/./x",
    "hf:acme/coder//x",
    "hf:acme/coder/%2e%2e/x",
    "hf:acme/coder/a\\b",
    "hf:acme/coder@/x",
    "hf:acme/coder@a/../b",
    "hf:acme/coder?x",
    "file:",
    "file:/",
    "file:.",
    "file:../a",
    "file:a/../../b",
    "file://host/a",
    "file:a\0b",
    "https:example.com/a",
    "https:///a",
    "https://example.com",
    "https://example.com/",
    "https://example.com/folder/",
    "https://user@example.com/a",
    "https://user:secret@example.com/a",
    "https://example.com\\@127.0.0.1/a",
    "https://example.com\\.evil.test/a",
    "https://example.com#@evil.test/a",
    "https://example.com/a#b",
    "https://example.com /a",
    "https://example.com/a b",
    "https://example.com/a\r\nHost: evil.test",
    "https://example.com/../a",
    "https://example.com/%2e%2E/a",
    "https://example.com/a%00",
    "https://example.com/a%0d%0aX:y",
    "https://example.com/a%5cb",
    "https://example.com/a%",
    "https://example.com/a%zz",
    "https://example.com:0/a",
    "https://example.com:65536/a",
    "https://example.com:/a",
    "https://example.com:443:443/a",
    "https://example.com./a",
    "https://.example.com/a",
    "https://-example.com/a",
    "https://exa_mple.com/a",
    "https://ex\u00e4mple.com/a",
    "https://127\u30020\u30020\u30021/a",
    "https://\uff11\uff12\uff17.0.0.1/a",
    "https://2130706433/a",
    "https://0x7f000001/a",
    "https://0x7f.0.0.1/a",
    "https://0177.0.0.1/a",
    "https://127.1/a",
    "https://127.0.0.1.1/a",
    "https://127.0.0.0x1/a",
    "https://256.0.0.1/a",
    "https://[::1/a",
    "https://[::1]x/a",
    "https://[fe80::1%25eth0]/a",
    "https://[::ffff:127.0.0.1.2]/a",
    "https://" + "a" * 64 + ".com/a",
    "https://" + "a." * 127 + "com/a",
    "https://example.com/" + "a" * 500,
    "s3:models/a",
    "s3://models",
    "s3://models/",
    "s3://Models/a",
    "s3://m/a",
    "s3://models/../a",
    "s3://models/a//b",
    "s3://models/a?versionId=1",
    "s3://user@models/a",
    "oci:registry.example/a",
    "oci://registry.example",
    "oci://registry.example/",
    "oci://registry.example/Acme/coder",
    "oci://registry.example/acme/../coder",
    "oci://user@registry.example/coder",
    "oci://registry.example/coder:",
    "oci://registry.example/coder@sha256:abcd",
    f"oci://registry.example/coder@sha256:{HEX.upper()}",
    f"oci://registry.example/coder@sha512:{HEX}",
    "oci://127.1/coder",
]


@pytest.mark.parametrize(("text", "normal"), SAME)
def test_a_reference_has_one_form(text: str, normal: str) -> None:
    """ORCH-3072: and that form means itself."""
    assert normalise(text) == normal
    assert parse(normal) == parse(text)
    assert normalise(normal) == normal


@pytest.mark.parametrize("text", NONE)
def test_what_could_be_read_in_two_ways_is_none(text: str) -> None:
    """ORCH-3091"""
    with pytest.raises(BadReference):
        parse(text)


ANY_TEXT = st.text(st.sampled_from("aZ09.:/@%2e\\?#[]-_~ \0\u3002"), max_size=30)


@given(
    st.sampled_from(["hf:", "file:", "https://", "https://h/", "s3://", "s3://bkt/", "oci://", "oci://h/", ""]),
    ANY_TEXT,
)
def test_whatever_is_a_reference_is_stable_and_plain(prefix: str, rest: str) -> None:
    """ORCH-3091: its form is a fixed point, ASCII but for files, and has no way up and no second host in it."""
    try:
        ref = parse(prefix + rest)
    except BadReference:
        return
    normal = str(ref)
    assert parse(normal) == ref
    assert normalise(normal) == normal
    assert ref.scheme in SCHEMES
    assert normal.startswith(f"{ref.scheme}:")
    assert ".." not in normal.split("?")[0].split("/")
    if ref.scheme in ("https", "oci"):
        authority = normal.split("/")[2]
        assert authority.isascii()
        assert not set(authority) & set("@\\%#?")
    if ref.scheme != "file":
        assert "\\" not in normal


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    for prefix in ("", "hf:", "file:", "https://", "s3://", "oci://"):
        try:
            parse(prefix + text)
        except BadReference as refused:
            assert str(refused)  # noqa: PT017


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_is_a_host_in_its_canonical_form(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    written = f"[{address.exploded}]" if address.version == 6 else str(address)
    url = parse_url(f"https://{written}:{port}/x")
    assert (ipaddress.ip_address(url.host), url.port) == (address, port)
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://cdn.example/b?x=1", Url("cdn.example", 443, "/b?x=1")),
        ("HTTPS://cdn.example:444/b", Url("cdn.example", 444, "/b")),
        ("//cdn.example/b", Url("cdn.example", 443, "/b")),
        ("/b", Url("example.com", 8443, "/b")),
        ("/b%7e?x=%2f", Url("example.com", 8443, "/b%7e?x=%2f")),
        ("b?c", Url("example.com", 8443, "/a/b?c")),
    ],
)
def test_where_a_redirect_leads(location: str, url: Url) -> None:
    assert join(Url("example.com", 8443, "/a/file?q=/x"), location) == url


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/b",
        "file:/etc/passwd",
        "javascript:x",
        "//user@cdn.example/b",
        "/../b",
        "\\\\cdn.example/b",
        "",
        "/a b",
        "?x",
    ],
)
def test_where_no_redirect_leads(location: str) -> None:
    """ORCH-3091"""
    base = Url("example.com", 443, "/a")
    try:
        assert join(base, location).netloc == base.netloc
        assert location in ("", "?x")
    except BadReference:
        assert location not in ("", "?x")


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("hf:acme/coder/q4.gguf", "hf:acme"),
        ("https://models.example:8443/a.gguf", "models.example:8443"),
        ("https://models.example/a.gguf", "models.example"),
        ("s3://bucket/deep/a.gguf", "bucket"),
        ("oci://registry.example:5000/acme/coder:v1", "registry.example:5000"),
        ("file:a.gguf", None),
    ],
)
def test_every_reference_has_a_registry_but_files(ref: str, expected: str | None) -> None:
    """What `trust.allowed_registries` names (ORCH-3080)."""
    assert registry(ref) == expected


def test_names_of_pools_are_compared_as_they_are() -> None:
    """ORCH-3060"""
    assert key("home") == "home"
    assert key("https://Models.Example:443/a") == key("https://models.example/a")
