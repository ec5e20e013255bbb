"""A registry that speaks as much of the OCI distribution protocol as a pull needs, over a Site: a stand-in.

`tests/fetch/test_tools.py` has the same pulls answered by a real registry.
"""

from __future__ import annotations

import json

from tests.fetch.site import Asked, Reply, Site, digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TITLE = "org.opencontainers.image.title"


def layer(data: bytes, title: str | None = None, kind: str = "application/octet-stream") -> dict[str, object]:
    described: dict[str, object] = {"mediaType": kind, "digest": digest(data), "size": len(data)}
    return {**described, "annotations": {TITLE: title}} if title is not None else described


class RegistrySite:
    """With a `realm`, blobs and manifests need the token it gives to whoever has the password, or to anybody."""

    def __init__(self, site: Site, *, realm: Site | None = None, password: str | None = None) -> None:
        self.site, self.realm, self.password = site, realm, password
        self.manifests: dict[str, bytes] = {}  # repository/tag or repository/digest
        self.blobs: dict[str, bytes] = {}
        site.answer = self.answer  # type: ignore[method-assign]
        if realm is not None:
            realm.routes["/token"] = self._token

    def push(
        self, repository: str, tag: str, layers: list[dict[str, object]], *blobs: bytes, kind: str = MANIFEST
    ) -> str:
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": layer(b"{}"), "layers": layers}).encode()
        return self.put(repository, tag, body, *blobs)

    def put(self, repository: str, tag: str, body: bytes, *blobs: bytes) -> str:
        self.manifests[f"{repository}/{tag}"] = self.manifests[f"{repository}/{digest(body)}"] = body
        self.blobs.update({digest(blob): blob for blob in blobs})
        return digest(body)

    def answer(self, asked: Asked) -> Reply:
        if self.realm is not None and asked.headers.get("authorization") != "Bearer pull-token":
            challenge = (
                f'Bearer realm="{self.realm.at("/token", "b.test")}",service="reg & co",scope="repository:x:pull"'
            )
            return Reply(401, b"{}", {"WWW-Authenticate": challenge})
        kind, _, version = asked.target.rpartition("/")
        repository = kind.removeprefix("/v2/").rpartition("/")[0]
        if kind.endswith("/manifests"):
            body = self.manifests.get(f"{repository}/{version}")
            if body is not None and "vnd.oci.image.manifest" in asked.headers["accept"]:
                return Reply(200, body, {"Content-Type": MANIFEST})
            return Reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        if kind.endswith("/blobs") and version in self.blobs:
            return self.site.file(asked, self.blobs[version])
        return Reply(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')

    def _token(self, asked: Asked) -> Reply:
        if self.password is not None and asked.headers.get("authorization") != self.password:
            return Reply(401)
        wanted = asked.target.partition("?")[2]
        assert wanted == "service=reg%20%26%20co&scope=repository:acme/coder:pull", wanted
        return Reply(200, json.dumps({"token": "pull-token", "expires_in": 300}).encode())
