"""OCI registries: the manifest of a reference, and which of its layers are the model.

The distribution protocol: GET /v2/{repository}/manifests/{tag or digest}, GET /v2/{repository}/blobs/{digest}; a 401
names the realm that gives a token for the pull.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

import msgspec

from orchestratord.domain.modelref import RegistryRef
from orchestratord.domain.url import BadReference, Url, parse_url
from orchestratord.infra.fetch.cache import DIGEST, NAME
from orchestratord.infra.fetch.download import Source
from orchestratord.infra.fetch.https import Answer, Https, decode
from orchestratord.infra.fetch.hub import only
from orchestratord.infra.fetch.policy import refused
from orchestratord.ports import ModelUnavailable

MAX_MANIFEST = 4 << 20
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
ACCEPT = ", ".join(
    ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json", *INDEXES)
)
MODELS = ("application/vnd.docker.ai.gguf.v3", "application/vnd.ollama.image.model", "application/vnd.gguf")
TITLE = "org.opencontainers.image.title"
_PARAMETER = re.compile(r'(\w+)="([^"\\]*)"')


class Layer(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The file's name, if it is a plain word; of a path its last word."""
        word = (self.annotations or {}).get(TITLE, "").rpartition("/")[2]
        return word if NAME.fullmatch(word) else ""


class Manifest(msgspec.Struct, rename="camel"):
    """Of an image, or an index of several."""

    layers: list[Layer] = []
    manifests: list[Layer] = []


class Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class Registry:
    def __init__(self, https: Https) -> None:
        self._https = https

    async def sources(self, ref: RegistryRef) -> dict[str, Source]:
        """Name -> where it is. Raises ModelUnavailable and Interrupted."""
        manifest, authorization = await self._manifest(ref, ref.digest or ref.tag or "latest", None)
        if manifest.manifests:
            if len(manifest.manifests) != 1:
                raise ModelUnavailable("NOT_FOUND", f"{ref} is an index of several images. Name one by its digest.")
            manifest, authorization = await self._manifest(ref, manifest.manifests[0].digest, authorization)
        return {
            name: Source(
                str(ref),
                Url(ref.host, ref.port, f"/v2/{ref.repository}/blobs/{layer.digest}"),
                layer.digest,
                layer.size,
                authorization=authorization,
            )
            for name, layer in _models(ref, manifest).items()
        }

    async def _manifest(self, ref: RegistryRef, version: str, authorization: str | None) -> tuple[Manifest, str | None]:
        if ":" in version and not DIGEST.fullmatch(version):
            raise refused(f"{ref}: {version[:80]!r} is no sha256 digest.")
        url = Url(ref.host, ref.port, f"/v2/{ref.repository}/manifests/{version}")
        for attempt in (1, 2):
            async with self._https.request("GET", url, {"Accept": ACCEPT}, authorization=authorization) as answer:
                if answer.status == 401 and attempt == 1 and authorization is None:
                    authorization = await self._token(ref, answer)
                    continue
                answer.unless_fine(200)
                body = await answer.body(MAX_MANIFEST)
                break
        else:
            raise AssertionError("unreachable")
        if DIGEST.fullmatch(version) and f"sha256:{hashlib.sha256(body).hexdigest()}" != version:
            raise refused(f"{ref}: the registry sends another manifest than {version}.")
        try:
            return decode(body, Manifest), authorization
        except msgspec.DecodeError as error:
            raise ModelUnavailable("FETCH_FAILED", f"{ref}: its manifest cannot be read ({error}).") from None

    async def _token(self, ref: RegistryRef, answer: Answer) -> str | None:
        """A token for this pull, from where the registry says; None if it offers none."""
        kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        given = dict(_PARAMETER.findall(rest))
        if kind.lower() != "bearer" or "realm" not in given:
            return None
        service = f"service={quote(given['service'], safe='')}&" if "service" in given else ""
        try:
            realm = parse_url(given["realm"])
            mark = "&" if "?" in realm.target else "?"
            url = parse_url(f"{realm}{mark}{service}scope=repository:{ref.repository}:pull")
        except BadReference as error:
            raise refused(f"{ref}: the registry names a realm that cannot be used: {error}.") from None
        # The registry's own credential, if there is one, goes to the realm only if that is the same host or has one.
        async with self._https.request("GET", url) as reply:
            reply.unless_fine(200)
            body = await reply.body(MAX_MANIFEST)
        try:
            token = decode(body, Token)
        except msgspec.DecodeError as error:
            raise ModelUnavailable("FETCH_FAILED", f"{ref}: {url.shown} gives no token ({error}).") from None
        value = token.token or token.access_token
        return f"Bearer {value}" if value.isascii() and value.isprintable() and value else None


def _models(ref: RegistryRef, manifest: Manifest) -> dict[str, Layer]:
    """Name -> layer, of the one model in it. What names files so says so; else what is typed so; else the only one."""
    for layer in manifest.layers:
        if not DIGEST.fullmatch(layer.digest):
            raise refused(f"{ref}: a layer has {layer.digest[:80]!r} for a sha256 digest.")
    titled = {layer.title: layer for layer in manifest.layers if layer.title.endswith(".gguf")}
    if titled:
        return {name: titled[name] for name in only(ref, sorted(titled))}
    typed = [layer for layer in manifest.layers if layer.media_type.startswith(MODELS)] or manifest.layers
    if len(typed) != 1:
        raise ModelUnavailable(
            "NOT_FOUND", f"{ref}: which of its {len(manifest.layers)} layers is the model cannot be told."
        )
    return {"model.gguf": typed[0]}
