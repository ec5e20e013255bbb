"""oci: references against a stand-in for a registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.registry import INDEX, RegistrySite, layer
from tests.fetch.site import MODEL, Asked, Reply, Site, digest, serving
from tests.fetch.support import Lab


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def registry(site: Site) -> RegistrySite:
    registry = RegistrySite(site)
    registry.push("acme/coder", "latest", [layer(MODEL, "q4.gguf"), layer(b"hello", "README.md")], MODEL, b"hello")
    return registry


@pytest.fixture
def lab(tmp_path: Path, site: Site, registry: RegistrySite) -> Lab:
    return Lab(tmp_path, site)


def ref(site: Site, rest: str) -> str:
    return f"oci://127.0.0.1:{site.port}/{rest}"


def test_the_model_of_an_image(lab: Lab, site: Site, registry: RegistrySite) -> None:
    """ORCH-3072: by its tag, and by its digest."""
    path = lab.fetch(ref(site, "acme/coder"))
    assert path.read_bytes() == MODEL
    assert lab.run(lambda models: models.verify(str(path))) == digest(MODEL)
    site.asked.clear()
    assert lab.fetch(ref(site, "acme/coder:latest")) == path
    pinned = registry.push("acme/coder", "other", [layer(MODEL, "q4.gguf")])
    assert lab.fetch(ref(site, f"acme/coder@{pinned}")) == path
    assert not [asked for asked in site.asked if "/blobs/" in asked.target], "its digest is known from the manifest"


@pytest.mark.parametrize(
    "kind", ["application/vnd.docker.ai.gguf.v3", "application/vnd.ollama.image.model", "application/octet-stream"]
)
def test_a_model_without_a_name(lab: Lab, site: Site, registry: RegistrySite, kind: str) -> None:
    """By its type, as model runners push them; or because there is nothing else."""
    others = [layer(b"licence", kind="text/plain")] if "octet" not in kind else []
    registry.push("acme/typed", "q4", [*others, layer(MODEL, kind=kind)], MODEL, b"licence")
    assert lab.fetch(ref(site, "acme/typed:q4")).read_bytes() == MODEL


def test_a_model_in_several_layers(lab: Lab, site: Site, registry: RegistrySite) -> None:
    parts = {f"big-{n:05}-of-00002.gguf": MODEL + bytes([n]) for n in (1, 2)}
    registry.push("acme/big", "latest", [layer(data, name) for name, data in parts.items()], *parts.values())
    path = lab.fetch(ref(site, "acme/big"))
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == parts
    assert path.name == "big-00001-of-00002.gguf"


def test_an_index_of_one_image(lab: Lab, site: Site, registry: RegistrySite) -> None:
    inner = registry.push("acme/coder", "inner", [layer(MODEL, "q4.gguf")])
    described = {"mediaType": INDEX, "digest": inner, "size": 1}
    registry.put("acme/coder", "index", json.dumps({"manifests": [described]}).encode())
    assert lab.fetch(ref(site, "acme/coder:index")).read_bytes() == MODEL
    registry.put("acme/coder", "many", json.dumps({"manifests": [described, described]}).encode())
    assert "index of several" in str(lab.refusal(ref(site, "acme/coder:many")))


def test_a_blob_is_gone_on_with(lab: Lab, site: Site) -> None:
    site.cuts = [1_000_000]
    assert lab.fetch(ref(site, "acme/coder")).read_bytes() == MODEL
    blobs = [asked.headers.get("range") for asked in site.asked if "/blobs/" in asked.target]
    assert (blobs[0], str(blobs[1])[:6]) == (None, "bytes=")


def test_another_blob_than_the_manifest_says_fails_closed(lab: Lab, site: Site, registry: RegistrySite) -> None:
    registry.blobs[digest(MODEL)] = MODEL[:-1] + b"!"
    assert lab.refusal(ref(site, "acme/coder")).code == "UNTRUSTED_ARTIFACT"
    registry.blobs[digest(MODEL)] = MODEL + b"!"
    assert "were announced" in str(lab.refusal(ref(site, "acme/coder")))
    assert lab.kept == []


def test_another_manifest_than_was_asked_for_fails_closed(lab: Lab, site: Site, registry: RegistrySite) -> None:
    pinned = digest(b"something else")
    registry.manifests[f"acme/coder/{pinned}"] = registry.manifests["acme/coder/latest"]
    refused = lab.refusal(ref(site, f"acme/coder@{pinned}"))
    assert (refused.code, "another manifest" in str(refused)) == ("UNTRUSTED_ARTIFACT", True)


@pytest.mark.parametrize("wrong", ["sha256:../../evil", "sha512:" + "a" * 128, "sha256:" + "A" * 64, "latest", ""])
def test_a_layer_without_a_proper_digest_is_refused(lab: Lab, site: Site, registry: RegistrySite, wrong: str) -> None:
    """ORCH-3091"""
    registry.push("acme/bad", "latest", [{**layer(MODEL, "q4.gguf"), "digest": wrong}])
    assert lab.refusal(ref(site, "acme/bad")).code == "UNTRUSTED_ARTIFACT"
    described = {"mediaType": INDEX, "digest": f"sha256:{wrong}", "size": 1}
    registry.put("acme/bad", "index", json.dumps({"manifests": [described]}).encode())
    assert lab.refusal(ref(site, "acme/bad:index")).code == "UNTRUSTED_ARTIFACT"


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "0 layers"),
        ([layer(b"a"), layer(b"b")], "2 layers"),
        ([layer(b"a", "a.gguf"), layer(b"b", "b.gguf")], "a.gguf, b.gguf"),
        ([layer(b"a", "a\n.gguf"), layer(b"b", "..gguf"), layer(b"c", "b" * 300 + ".gguf")], "3 layers"),
        ([layer(b"a", "../a-00001-of-00002.gguf"), layer(b"b", "../a-00002-of-00002.gguf")], ""),
    ],
)
def test_an_image_that_is_no_model(
    lab: Lab, site: Site, registry: RegistrySite, layers: list[dict[str, object]], said: str
) -> None:
    registry.push("acme/none", "latest", layers, b"a", b"b")
    if said:
        refused = lab.refusal(ref(site, "acme/none"))
        assert (refused.code, said in str(refused)) == ("NOT_FOUND", True)
    else:
        path = lab.fetch(ref(site, "acme/none"))
        assert path.is_relative_to(lab.folder / "cache" / "trees"), "of a name only its last word counts"


def test_what_is_not_there(lab: Lab, site: Site) -> None:
    assert lab.refusal(ref(site, "acme/coder:nothing")).code == "NOT_FOUND"
    assert lab.refusal(ref(site, "acme/nothing")).code == "NOT_FOUND"


DEEP = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"layers": 5}', b'{"layers": [{}]}', DEEP], ids=range(5))
def test_what_is_no_registry_is_found_out(lab: Lab, site: Site, body: bytes) -> None:
    site.answer = lambda _: Reply(200, body)  # type: ignore[method-assign]
    assert lab.refusal(ref(site, "acme/coder")).code == "FETCH_FAILED"


# -- tokens ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("password", [None, "Basic dXNlcjpwYXNz"])
def test_a_token_for_the_pull_comes_from_the_realm(tmp_path: Path, site: Site, password: str | None) -> None:
    """And it goes to the registry alone, as the password does to the realm."""
    with serving() as realm:
        registry = RegistrySite(site, realm=realm, password=password)
        registry.push("acme/coder", "latest", [layer(MODEL, "q4.gguf")], MODEL)
        tokens = {f"b.test:{realm.port}": "REGISTRY"} if password else {}
        lab = Lab(tmp_path, site, realm, tokens=tokens, environ={"REGISTRY": "user:pass"})
        assert lab.fetch(ref(site, "acme/coder")).read_bytes() == MODEL
        assert [a.headers.get("authorization") for a in site.asked] == [None, "Bearer pull-token", "Bearer pull-token"]
        assert [a.headers.get("authorization") for a in realm.asked] == [password]


def test_a_token_for_the_pull_does_not_follow_the_blob_elsewhere(tmp_path: Path, site: Site) -> None:
    """ORCH-3091"""
    with serving() as realm, serving() as cdn:
        registry = RegistrySite(site, realm=realm)
        registry.push("acme/coder", "latest", [layer(MODEL, "q4.gguf")], MODEL)
        cdn.files["/blob"] = MODEL
        whole = site.answer

        def answer(asked: Asked) -> Reply:
            if "/blobs/" in asked.target:
                return Reply(307, headers={"Location": cdn.at("/blob")})
            return whole(asked)

        site.answer = answer  # type: ignore[method-assign]
        assert Lab(tmp_path, site, realm, cdn).fetch(ref(site, "acme/coder")).read_bytes() == MODEL
        assert site.asked[-1].headers["authorization"] == "Bearer pull-token"
        assert [asked.headers.get("authorization") for asked in cdn.asked] == [None]


def test_a_realm_that_refuses(tmp_path: Path, site: Site) -> None:
    with serving() as realm:
        RegistrySite(site, realm=realm, password="Basic x")
        refused = Lab(tmp_path, site, realm).refusal(ref(site, "acme/coder"))
        assert (refused.code, "models.fetch.tokens" in str(refused)) == ("FETCH_FAILED", True)


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="http://127.0.0.1/token"',
        'Bearer realm="https://user@127.0.0.1/token"',
        'Bearer realm="https://elsewhere.test/token"',
        'Bearer realm="https://169.254.169.254/token"',
        'Bearer realm="/token"',
    ],
)
def test_a_realm_is_judged_like_any_other_host(lab: Lab, site: Site, challenge: str) -> None:
    """ORCH-3091"""
    site.answer = lambda _: Reply(401, headers={"WWW-Authenticate": challenge})  # type: ignore[method-assign]
    assert lab.refusal(ref(site, "acme/coder")).code == "UNTRUSTED_ARTIFACT"


@pytest.mark.parametrize("challenge", ["", "Basic", 'Basic realm="x"', "Bearer", 'Bearer service="x"'])
def test_without_a_realm_there_is_no_token(lab: Lab, site: Site, challenge: str) -> None:
    site.answer = lambda _: Reply(401, headers={"WWW-Authenticate": challenge})  # type: ignore[method-assign]
    assert lab.refusal(ref(site, "acme/coder")).code == "FETCH_FAILED"


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"token": "a\\r\\nX: y"}', b'{"token": 5}', DEEP], ids=range(5))
def test_a_realm_that_gives_nothing_of_use(tmp_path: Path, site: Site, body: bytes) -> None:
    with serving() as realm:
        RegistrySite(site, realm=realm)

        def odd(asked: Asked) -> Reply:
            return Reply(200, body)

        realm.routes["/token"] = odd
        assert Lab(tmp_path, site, realm).refusal(ref(site, "acme/coder")).code == "FETCH_FAILED"
