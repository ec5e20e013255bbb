"""hf: references against a stand-in for a hub, with its large files elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestratord.domain.url import parse_url
from tests.fetch.hub import COMMIT, HubSite
from tests.fetch.site import MODEL, Asked, Reply, Site, digest, serving
from tests.fetch.support import Lab

PARTS = {f"big-{n:05}-of-00003.gguf": MODEL + bytes([n]) for n in (1, 2, 3)}
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}" + b" " * 2000,
    "model.safetensors": bytes(5000),
    "pytorch_model.bin": b"a pickle" * 500,
    "modeling.py": b"import os",
    ".gitattributes": b"x",
    "onnx/model.onnx": bytes(3000),
}


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    with serving() as site, serving() as cdn:
        yield site, cdn


@pytest.fixture
def hub(sites: tuple[Site, Site]) -> HubSite:
    hub = HubSite(*sites)
    hub.repos = {
        "acme/coder": {"q4.gguf": MODEL, "README.md": b"hello"},
        "acme/two": {"q4.gguf": MODEL, "q8.gguf": MODEL + b"8", "deep/x.gguf": MODEL + b"x"},
        "acme/big": {**PARTS, "README.md": b"hello"},
        "acme/folder": FOLDER,
        "acme/empty": {"README.md": b"hello", "pytorch_model.bin": bytes(5000)},
    }
    return hub


@pytest.fixture
def lab(tmp_path: Path, sites: tuple[Site, Site], hub: HubSite) -> Lab:
    return Lab(tmp_path, *sites)


def test_a_file_of_a_repository(lab: Lab, sites: tuple[Site, Site]) -> None:
    """ORCH-3072: at the commit the hub named, with the digest it named."""
    path = lab.fetch("hf:acme/coder/q4.gguf")
    assert path.read_bytes() == MODEL
    assert [asked.method for asked in sites[0].asked] == ["HEAD", "GET"]
    assert sites[0].asked[1].target == f"/acme/coder/resolve/{COMMIT}/q4.gguf"
    sites[1].asked.clear()
    assert lab.fetch("hf:acme/coder/q4.gguf") == path
    assert lab.fetch("hf:acme/coder@v1/q4.gguf") == path
    assert sites[1].asked == [], "its digest is known before a byte of it is asked for"


def test_a_repository_with_one_model_means_that(lab: Lab) -> None:
    """ORCH-3072"""
    assert lab.fetch("hf:acme/coder") == lab.fetch("hf:acme/coder/q4.gguf")


def test_of_several_models_one_has_to_be_named(lab: Lab) -> None:
    refused = lab.refusal("hf:acme/two")
    assert (refused.code, "q4.gguf, q8.gguf" in str(refused)) == ("NOT_FOUND", True)
    assert lab.fetch("hf:acme/two/q8.gguf").read_bytes() == MODEL + b"8"
    assert lab.fetch("hf:acme/two/deep/x.gguf").read_bytes() == MODEL + b"x"


@pytest.mark.parametrize("ref", ["hf:acme/big", "hf:acme/big/big-00002-of-00003.gguf"])
def test_a_model_in_several_files_lies_in_one_folder(lab: Lab, ref: str) -> None:
    path = lab.fetch(ref)
    assert path.name == "big-00001-of-00003.gguf"
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == PARTS
    assert lab.fetch(ref) == path
    assert "digest is that of one" in str(lab.refusal(ref, digest(MODEL)))


def test_a_repository_of_tensors_is_a_folder_of_data(lab: Lab) -> None:
    """ORCH-3072: no code, no pickles, and nothing hidden."""
    path = lab.fetch("hf:acme/folder")
    assert {p.name for p in path.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (path / "model.safetensors").read_bytes() == bytes(5000)
    assert lab.run(lambda models: models.verify(str(path))) is None


def test_a_listing_of_many_pages(tmp_path: Path, sites: tuple[Site, Site]) -> None:
    hub = HubSite(*sites, page=2)
    hub.repos["acme/folder"] = FOLDER
    assert len(list(Lab(tmp_path, *sites).fetch("hf:acme/folder").iterdir())) == 3


def test_a_large_file_is_gone_on_with(lab: Lab, sites: tuple[Site, Site]) -> None:
    sites[1].cuts = [1_000_000]
    assert lab.fetch("hf:acme/coder/q4.gguf").read_bytes() == MODEL
    first, second = (asked.headers.get("range") for asked in sites[1].asked)
    assert (first, str(second)[:6]) == (None, "bytes=")


def test_another_file_than_the_hub_named_fails_closed(lab: Lab, sites: tuple[Site, Site]) -> None:
    wrong = bytearray(MODEL)
    wrong[-1] ^= 1
    sha = hashlib.sha256(MODEL).hexdigest()
    sites[1].routes[f"/blobs/{sha}"] = lambda asked: sites[1].file(asked, bytes(wrong))
    assert lab.refusal("hf:acme/coder/q4.gguf").code == "UNTRUSTED_ARTIFACT"
    assert lab.kept == []


def test_another_digest_than_was_asked_for_is_not_even_fetched(lab: Lab, sites: tuple[Site, Site]) -> None:
    assert lab.refusal("hf:acme/coder/q4.gguf", digest(b"")).code == "UNTRUSTED_ARTIFACT"
    assert sites[1].asked == []


@pytest.mark.parametrize("ref", ["hf:acme/old/q4.gguf", "hf:acme/old", "hf:ACME/Coder/q4.gguf"])
def test_a_repository_that_has_moved(lab: Lab, hub: HubSite, ref: str) -> None:
    hub.moved["acme/old"] = hub.moved["ACME/Coder"] = "acme/coder"
    assert lab.fetch(ref).read_bytes() == MODEL


@pytest.mark.parametrize("ref", ["hf:old/coder/q4.gguf", "hf:old/coder"])
def test_a_repository_that_has_moved_to_another_organisation_is_not_followed(
    lab: Lab, hub: HubSite, sites: tuple[Site, Site], ref: str
) -> None:
    """`allowed_registries` names organisations: one that is allowed cannot send on to one that is not."""
    hub.moved["old/coder"] = "acme/coder"
    refused = lab.refusal(ref)
    assert refused.code == "UNTRUSTED_ARTIFACT"
    assert "hf:acme/coder" in str(refused)
    assert sites[1].asked == []


@pytest.mark.parametrize(
    ("ref", "code", "said"),
    [
        ("hf:acme/nothing", "NOT_FOUND", "models.fetch.tokens"),
        ("hf:acme/nothing/q4.gguf", "NOT_FOUND", "models.fetch.tokens"),
        ("hf:acme/coder/nothing.gguf", "NOT_FOUND", "nothing.gguf"),
        ("hf:acme/coder@v9/q4.gguf", "NOT_FOUND", "v9"),
        ("hf:acme/empty", "NOT_FOUND", "neither GGUF nor safetensors"),
    ],
)
def test_what_is_not_there(lab: Lab, ref: str, code: str, said: str) -> None:
    refused = lab.refusal(ref)
    assert (refused.code, said in str(refused)) == (code, True), refused


def test_a_hub_that_stumbles_is_asked_again(lab: Lab, sites: tuple[Site, Site]) -> None:
    whole = sites[0].answer
    sites[0].answer = lambda asked: Reply(503) if len(sites[0].asked) < 4 else whole(asked)  # type: ignore[method-assign]
    assert lab.fetch("hf:acme/coder/q4.gguf").read_bytes() == MODEL


def test_a_private_repository_needs_a_token(tmp_path: Path, sites: tuple[Site, Site], hub: HubSite) -> None:
    hub.private.add("acme/coder")
    assert Lab(tmp_path, *sites).refusal("hf:acme/coder").code == "NOT_FOUND"
    tokens = {f"127.0.0.1:{sites[0].port}": "HF_TOKEN"}
    lab = Lab(tmp_path, *sites, tokens=tokens, environ={"HF_TOKEN": "hf_s3cret"})
    assert lab.fetch("hf:acme/coder").read_bytes() == MODEL
    assert {asked.headers.get("authorization") for asked in sites[1].asked} == {None}, "the token stays with the hub"


def test_a_cdn_that_is_not_allowed_is_named(tmp_path: Path, sites: tuple[Site, Site], hub: HubSite) -> None:
    lab = Lab(tmp_path, sites[0])
    refused = lab.refusal("hf:acme/coder/q4.gguf")
    assert f"127.0.0.1:{sites[1].port} is not in models.fetch.hosts" in str(refused)
    assert sites[1].connections == 0


def test_the_digest_serves_while_the_hub_is_away(tmp_path: Path, sites: tuple[Site, Site], hub: HubSite) -> None:
    lab = Lab(tmp_path, *sites)
    file, folder = lab.fetch("hf:acme/coder/q4.gguf"), lab.fetch("hf:acme/folder")
    sites[0].answer = lambda _: Reply(503)  # type: ignore[method-assign]
    sites[0].asked.clear()
    assert lab.fetch("hf:acme/coder/q4.gguf") == file
    assert len(sites[0].asked) == 1, "with something to fall back on, one attempt is enough"
    assert lab.fetch("hf:acme/folder") == folder
    assert lab.refusal("hf:acme/two/q4.gguf").code == "FETCH_FAILED"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"sha": 5}',
        b'{"sha": "../../../../etc/passwd"}',
        b'{"sha": "' + b"a" * 41 + b'"}',
        b'{"x": ' + b"[" * 100_000,
        b" " * (9 << 20),
    ],
    ids=range(7),
)
def test_what_is_no_hub_is_found_out(lab: Lab, sites: tuple[Site, Site], body: bytes) -> None:
    sites[0].answer = lambda _: Reply(200, body)  # type: ignore[method-assign]
    assert lab.refusal("hf:acme/coder").code == "FETCH_FAILED"


@pytest.mark.parametrize(
    "path", ["../evil.gguf", "/etc/passwd.gguf", "a/../../evil.gguf", "..", "\u0000.gguf", "a b.gguf"]
)
def test_a_listing_cannot_name_a_way_out(lab: Lab, sites: tuple[Site, Site], path: str) -> None:
    """ORCH-3091"""

    def answer(asked: Asked) -> Reply:
        if "/tree/" in asked.target:
            return Reply(200, json.dumps([{"type": "file", "path": path, "size": len(MODEL)}]).encode())
        if "/revision/" in asked.target:
            return Reply(200, json.dumps({"sha": COMMIT}).encode())
        return Reply(200, MODEL)

    sites[0].answer = answer  # type: ignore[method-assign]
    assert lab.refusal("hf:acme/coder").code in ("UNTRUSTED_ARTIFACT", "NOT_FOUND")
    assert lab.kept == []


def test_a_redirect_to_elsewhere_needs_a_checksum(lab: Lab, sites: tuple[Site, Site]) -> None:
    sites[0].answer = lambda _: Reply(302, headers={"Location": sites[1].at("/x")})  # type: ignore[method-assign]
    assert "without a checksum" in str(lab.refusal("hf:acme/coder/q4.gguf"))
    sites[0].answer = lambda _: Reply(302, headers={"Location": "/acme/again"})  # type: ignore[method-assign]
    assert "redirects more than" in str(lab.refusal("hf:acme/coder/q4.gguf"))


def test_another_hub_by_configuration(tmp_path: Path, sites: tuple[Site, Site], hub: HubSite) -> None:
    lab = Lab(tmp_path, *sites, hub=parse_url(sites[0].at("/", "a.test")))
    assert lab.fetch("hf:acme/coder").read_bytes() == MODEL
    assert sites[0].asked[0].headers["host"] == f"a.test:{sites[0].port}"


def test_a_size_that_no_file_has(lab: Lab, sites: tuple[Site, Site], hub: HubSite) -> None:
    """A header may hold more digits than Python reads: then the size is not known."""
    whole = hub.answer

    def exaggerating(asked: Asked) -> Reply:
        reply = whole(asked)
        if "X-Linked-Size" in reply.headers:
            reply.headers["X-Linked-Size"] = "9" * 5000
        return reply

    sites[0].answer = exaggerating  # type: ignore[method-assign]
    assert lab.fetch("hf:acme/coder/q4.gguf").read_bytes() == MODEL
