"""Where fetching may not lead. A canary listens on loopback: whatever is refused has not touched it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.modelref import parse
from orchestratord.domain.url import BadReference, host_pattern, parse_url
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.policy import FetchPolicy, S3Access, is_public
from orchestratord.ports import ModelUnavailable
from tests.fetch.site import MODEL, Reply, Site, digest, serving
from tests.fetch.support import ALL, Lab

# Addresses that are no machine of the public internet, however they are written.
INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "2001::7f00:1",
    "2001:db8::1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "5f00::1",
]
# Spellings that some parser or other takes for a host inside; here they are none at all.
SPELLINGS = [
    "https://2130706433/m.gguf",
    "https://0x7f000001/m.gguf",
    "https://0x7f.1/m.gguf",
    "https://0177.0.0.1/m.gguf",
    "https://127.1/m.gguf",
    "https://127.0.0.1./m.gguf",
    "https://127。0。0。1/m.gguf",
    "https://①②⑦.0.0.1/m.gguf",
    "https://[::ffff:127.0.0.1%25lo]/m.gguf",
    "https://[fe80::1%25eth0]/m.gguf",
    "https://allowed.test\\@127.0.0.1/m.gguf",
    "https://allowed.test@127.0.0.1/m.gguf",
    "https://allowed.test:443@127.0.0.1/m.gguf",
    "https://127.0.0.1#@allowed.test/m.gguf",
    "https://127.0.0.1?@allowed.test/m.gguf",
    "https://allowed.test%2f@127.0.0.1/m.gguf",
    "https:\\\\127.0.0.1\\m.gguf",
    "https://127.0.0.1\t/m.gguf",
    "http://127.0.0.1/m.gguf",
    "gopher://127.0.0.1/m.gguf",
    "file:///etc/passwd",
    "file:/proc/self/environ",
    "file://127.0.0.1/etc/passwd",
    "oci://user:x@127.0.0.1/m",
    "oci://127.1/m",
    "s3://127.0.0.1@models/m",
]


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files["/m.gguf"] = MODEL
        yield site


def written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def untouched(lab: Lab, canary: Site, ref: str) -> None:
    assert lab.refusal(ref).code == "UNTRUSTED_ARTIFACT"
    assert (canary.connections, lab.kept) == (0, [])


@pytest.mark.parametrize("address", INSIDE)
def test_no_name_leads_inside(tmp_path: Path, site: Site, address: str) -> None:
    """ORCH-3091: a host that is allowed by name and turns out to be at home."""
    lab = Lab(tmp_path, hosts=(f"allowed.test:{site.port}",))
    lab.names.names["allowed.test"] = [[address]]
    untouched(lab, site, f"https://allowed.test:{site.port}/m.gguf")
    lab.names.names["allowed.test"] = [["93.184.215.14", address]]
    untouched(lab, site, f"https://allowed.test:{site.port}/m.gguf")


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_inside_is_fetched_from_even_if_it_is_a_host(tmp_path: Path, site: Site, address: str) -> None:
    """ORCH-3091: a host that is allowed is not allowed to be private by that."""
    host = f"{written(str(ipaddress.ip_address(address)))}:{site.port}"
    lab = Lab(tmp_path, hosts=(host,))
    untouched(lab, site, f"https://{host}/m.gguf")
    with pytest.raises(ModelUnavailable, match="allow_private"):
        lab.models().check(f"https://{host}/m.gguf")


@pytest.mark.parametrize("ref", SPELLINGS)
def test_no_spelling_leads_inside(tmp_path: Path, site: Site, ref: str) -> None:
    """ORCH-3091"""
    lab = Lab(tmp_path, hosts=("allowed.test", "127.0.0.1", f"127.0.0.1:{site.port}"))
    lab.names.names["allowed.test"] = [["127.0.0.1"]]
    untouched(lab, site, ref.replace("127.0.0.1/", f"127.0.0.1:{site.port}/"))


@pytest.mark.parametrize(
    "location",
    [f"https://{written(address)}:PORT/m.gguf" for address in INSIDE]
    + [spelling for spelling in SPELLINGS if spelling.startswith("http")]
    + ["http://b.test/m.gguf", "//elsewhere.test:PORT/m.gguf", "https://elsewhere.test:PORT/m.gguf", "/../m.gguf", ""],
)
def test_no_redirect_leads_inside(tmp_path: Path, site: Site, location: str) -> None:
    """ORCH-3091: each hop is judged like the first."""
    with serving() as door:
        door.routes["/m.gguf"] = lambda _: Reply(302, headers={"Location": location.replace("PORT", str(site.port))})
        lab = Lab(tmp_path, door, hosts=("allowed.test",))
        untouched(lab, site, door.at("/m.gguf"))
        assert len(door.asked) == 1


def test_a_name_is_asked_once_and_the_connection_goes_where_it_led(tmp_path: Path, site: Site) -> None:
    """ORCH-3091: what it says to the next who asks, a moment later, is not asked for."""
    lab = Lab(tmp_path, site)
    lab.names.names["a.test"] = [["127.0.0.1"], ["192.0.2.1"]]
    assert lab.fetch(site.at("/m.gguf", "a.test")).read_bytes() == MODEL
    assert lab.names.asked == ["a.test"]
    assert site.asked[0].headers["host"] == f"a.test:{site.port}", "the server is told the name"


def test_the_certificate_is_that_of_the_name_and_not_of_the_address(tmp_path: Path) -> None:
    """ORCH-3091: connecting by number changes nothing of whom we talk to."""
    with serving(hosts=("a.test",)) as site:
        site.files["/m.gguf"] = MODEL
        lab = Lab(tmp_path, site)
        assert lab.fetch(site.at("/m.gguf", "a.test")).read_bytes() == MODEL
        assert lab.refusal(site.at("/m.gguf", "b.test")).code == "UNTRUSTED_ARTIFACT"
        assert lab.refusal(site.at("/m.gguf")).code == "UNTRUSTED_ARTIFACT"


def test_a_name_that_changes_between_redirects_is_judged_again(tmp_path: Path, site: Site) -> None:
    """ORCH-3091: DNS rebinding within one fetch."""
    site.routes["/first"] = lambda _: Reply(307, headers={"Location": "/m.gguf"})
    lab = Lab(tmp_path, hosts=(f"allowed.test:{site.port}",))
    public = iter([None, None])

    def check(url: Any, address: str) -> None:
        if next(public, "over") == "over":
            FetchPolicy.check_address(lab.policy, url, address)

    lab.names.names["allowed.test"] = [["127.0.0.1"]]
    policy = _Lenient(lab.policy, check)
    lab.policy = policy  # type: ignore[assignment]
    assert lab.fetch(f"https://allowed.test:{site.port}/first").read_bytes() == MODEL
    lab.policy = _Lenient(policy.whole, check)  # type: ignore[assignment]
    assert lab.refusal(f"https://allowed.test:{site.port}/first").code == "UNTRUSTED_ARTIFACT"
    assert [asked.target for asked in site.asked] == ["/first", "/m.gguf"]


class _Lenient:
    """A policy that takes loopback for public as long as `check` says so."""

    def __init__(self, whole: FetchPolicy, check: Any) -> None:
        self.whole, self.check_address = whole, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def test_an_address_that_does_not_answer_gives_way_to_the_next(tmp_path: Path, site: Site) -> None:
    lab = Lab(tmp_path, site)
    lab.names.names["a.test"] = [["127.0.0.2", "127.0.0.1"]]
    assert lab.fetch(site.at("/m.gguf", "a.test")).read_bytes() == MODEL


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"])
def test_no_proxy_of_the_environment_is_used(tmp_path: Path, site: Site, monkeypatch: Any, variable: str) -> None:
    """ORCH-3091"""
    with serving() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert Lab(tmp_path, site).fetch(site.at("/m.gguf")).read_bytes() == MODEL
        assert proxy.connections == 0


# -- credentials -----------------------------------------------------------------------------------------------
def test_a_token_goes_to_its_host_and_nowhere_else(tmp_path: Path, site: Site) -> None:
    """ORCH-3091"""
    with serving() as cdn:
        cdn.files["/blob"] = MODEL
        site.routes["/m.gguf"] = lambda _: Reply(302, headers={"Location": cdn.at("/blob?sig=1", "b.test")})
        tokens = {f"a.test:{site.port}": "HUB", f"elsewhere.test:{cdn.port}": "OTHER", "a.test": "OTHER"}
        lab = Lab(tmp_path, site, cdn, tokens=tokens, environ={"HUB": "s3cret", "OTHER": "no"})
        assert lab.fetch(site.at("/m.gguf", "a.test")).read_bytes() == MODEL
        assert site.asked[0].headers["authorization"] == "Bearer s3cret"
        assert "authorization" not in cdn.asked[0].headers


def test_a_user_and_password_go_as_such(tmp_path: Path, site: Site) -> None:
    lab = Lab(tmp_path, site, tokens={f"127.0.0.1:{site.port}": "HUB"}, environ={"HUB": "user:pass\n"})
    lab.fetch(site.at("/m.gguf"))
    assert site.asked[0].headers["authorization"] == "Basic dXNlcjpwYXNz"


def test_no_message_shows_a_secret(tmp_path: Path, site: Site) -> None:
    site.routes["/m.gguf"] = lambda _: Reply(302, headers={"Location": "/next?X-Amz-Signature=s3cret"})
    lab = Lab(tmp_path, site, tokens={f"127.0.0.1:{site.port}": "HUB"}, environ={"HUB": "s3cret"})
    for status in (404, 403, 500, 302):
        site.routes["/next"] = lambda _, status=status: Reply(status)  # type: ignore[misc]
        assert "s3cret" not in str(lab.refusal(site.at("/m.gguf?token=s3cret")))


# -- what is off and on ----------------------------------------------------------------------------------------
REFS = {
    "hf": "hf:acme/coder/m.gguf",
    "https": "https://127.0.0.1:PORT/m.gguf",
    "s3": "s3://models/m.gguf",
    "oci": "oci://127.0.0.1:PORT/acme/coder",
}


@pytest.mark.parametrize("scheme", REFS)
def test_nothing_is_fetched_unless_its_scheme_is_allowed(tmp_path: Path, site: Site, scheme: str) -> None:
    """ORCH-3090"""
    ref = REFS[scheme].replace("PORT", str(site.port))
    untouched(Lab(tmp_path, site, schemes=ALL - {scheme}), site, ref)
    untouched(Lab(tmp_path, site, schemes=frozenset()), site, ref)
    Lab(tmp_path, site, schemes=frozenset({scheme})).models().check(ref)


@pytest.mark.parametrize(
    ("hosts", "ref", "allowed"),
    [
        ((), "https://example.com/a", False),
        (("example.com",), "https://example.com/a", True),
        (("example.com",), "https://EXAMPLE.com:443/a", True),
        (("example.com",), "https://example.com:8443/a", False),
        (("example.com:8443",), "https://example.com:8443/a", True),
        (("example.com:8443",), "https://example.com/a", False),
        (("example.com",), "https://cdn.example.com/a", False),
        (("example.com",), "https://example.com.evil.test/a", False),
        (("example.com",), "https://notexample.com/a", False),
        (("*.example.com",), "https://cdn.example.com/a", True),
        (("*.example.com",), "https://a.b.example.com/a", True),
        (("*.example.com",), "https://example.com/a", False),
        (("*.example.com",), "https://evilexample.com/a", False),
        (("*.example.com",), "https://cdn.example.com:8443/a", False),
        (("*.example.com:8443",), "https://cdn.example.com:8443/a", True),
        (("*.example.com:8443",), "https://cdn.example.com/a", False),
        (("hub.example",), "hf:acme/coder", True),
        ((), "hf:acme/coder", True),
        ((), "s3://models/a", True),
        ((), "oci://registry.example/a", False),
        (("registry.example",), "oci://registry.example/a", True),
    ],
)
def test_which_hosts_are_meant(hosts: tuple[str, ...], ref: str, allowed: bool) -> None:
    """ORCH-3090: the hub and the store of buckets are named by their own settings."""
    hub = parse_url("https://hub.example")
    policy = FetchPolicy(ALL, tuple(host_pattern(h, wildcard=True) for h in hosts), hub=hub, s3=S3Access(hub))
    if allowed:
        policy.check(parse(ref))
    else:
        with pytest.raises(ModelUnavailable, match=r"models\.fetch"):
            policy.check(parse(ref))


def test_the_hub_is_allowed_only_with_its_scheme() -> None:
    """ORCH-3090"""
    hub = parse_url("https://hub.example")
    policy = FetchPolicy(ALL, hub=hub, s3=S3Access(hub))
    policy.check_url(hub)
    with pytest.raises(ModelUnavailable):
        replace(policy, schemes=frozenset({"https", "oci"})).check_url(hub)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.*",
        "a.test/x",
        "a.test/",
        "https://a.test",
        "u@a.test",
        "*.127.0.0.1",
        "a b",
        "127.1",
        "*.[::1]",
        "a.test:0",
    ],
)
def test_what_is_no_host_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(BadReference):
        host_pattern(text, wildcard=True)


@given(st.ip_addresses(v=6))
def test_no_address_with_another_one_in_it_is_public(address: Any) -> None:
    """ORCH-3091: whatever IPv4 an IPv6 address carries, it is not followed."""
    if address.ipv4_mapped or address.sixtofour or address.teredo:
        assert not is_public(str(address))


@given(st.ip_addresses(v=4))
def test_an_address_is_public_in_one_spelling_only(address: Any) -> None:
    assert not is_public(f"::ffff:{address}")
    assert not is_public(f"64:ff9b::{address}")
    assert not is_public(f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::1")
    assert is_public(str(address)) == (address.is_global and not address.is_multicast)


# -- names and paths -------------------------------------------------------------------------------------------
ESCAPES = [
    "../evil",
    "..",
    ".",
    "a/b",
    "/etc/passwd",
    "a\0b",
    "",
    ".hidden",
    "-rf",
    "a b",
    "..\\evil",
    "C:evil",
    "a" * 300,
    "\u202egguf",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_from_outside_becomes_a_path(tmp_path: Path, name: str) -> None:
    """ORCH-3091"""
    cache = Cache(tmp_path / "cache")
    partial = cache.partial(name)
    partial.write(MODEL)
    kept = cache.keep(partial)
    with pytest.raises(ModelUnavailable):
        cache.tree({"config.json": kept, name: kept})
    inside = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert inside == {"cache"}
    assert not list((tmp_path / "cache").rglob("*evil*"))


@pytest.mark.parametrize(
    "wrong",
    [
        "sha256-" + "a" * 62,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:../../" + "a" * 58,
        "md5:" + "a" * 32,
    ],
)
def test_what_is_no_digest_is_no_path(tmp_path: Path, wrong: str) -> None:
    """ORCH-3091"""
    with pytest.raises(ValueError, match="digest"):
        Cache(tmp_path).path(wrong)
    assert Cache(tmp_path).digest_of(str(tmp_path / "sha256" / wrong[7:9] / wrong[7:])) is None


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    """ORCH-3091"""
    cache, target = Cache(tmp_path / "cache"), tmp_path / "target"
    target.write_bytes(b"mine")
    partial = cache.partial("ref")
    partial.discard()
    partial.path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        cache.partial("ref")
    assert target.read_bytes() == b"mine"


def test_damaged_notes_are_as_good_as_none(tmp_path: Path, site: Site) -> None:
    lab = Lab(tmp_path, site)
    path = lab.fetch(site.at("/m.gguf"))
    for note in (tmp_path / "cache" / "refs").iterdir():
        note.write_text('{"ref": "another", "digest": "sha256:../../x"}')
    assert lab.fetch(site.at("/m.gguf")) == path
    path.unlink()
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL, "a note about a file that is gone is none either"


def test_a_server_is_told_nothing_of_this_machine(site: Site, tmp_path: Path) -> None:
    Lab(tmp_path, site).fetch(site.at("/m.gguf"), digest(MODEL))
    (asked,) = site.asked
    assert set(asked.headers) <= {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert asked.headers["user-agent"] == "orchestratord"
