"""What may be fetched, and from where. Nothing, unless the configuration says so."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestratord.domain.modelref import BucketRef, FileRef, HubRef, ModelRef, RegistryRef, WebRef
from orchestratord.domain.url import Url, is_address, parse_url
from orchestratord.ports import ModelUnavailable

GIB = 1 << 30
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_TUNNELS = [ipaddress.IPv6Network(net) for net in ("2001::/23", "2002::/16", "3ffe::/16")]


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where buckets are. The names are those of environment variables; without a key requests are not signed."""

    endpoint: Url = field(default_factory=lambda: parse_url("https://s3.amazonaws.com/"))
    region: str = "us-east-1"
    access_key_env: str = "AWS_ACCESS_KEY_ID"
    secret_key_env: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name
    session_token_env: str = "AWS_SESSION_TOKEN"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """`hosts`: `name`, `name:port` or `*.name`; without a port 443 is meant. `private`: host:port, likewise, whose
    addresses may be of any kind. `tokens`: host -> name of the environment variable with its token, or user:password.
    `ca_roots`: files with certificates trusted besides the system's. Durations in seconds."""

    schemes: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()
    private: frozenset[str] = frozenset()
    tokens: Mapping[str, str] = field(default_factory=dict)
    ca_roots: tuple[str, ...] = ()
    hub: Url = field(default_factory=lambda: parse_url("https://huggingface.co/"))
    s3: S3Access = field(default_factory=S3Access)
    max_bytes: int = 256 * GIB
    cache_bytes: int | None = None  # of all that was ever fetched
    connect_s: float = 10.0
    idle_s: float = 60.0
    total_s: float = 86_400.0

    def check(self, ref: ModelRef) -> None:
        """Whether the reference may be fetched, by words alone. Raises ModelUnavailable."""
        if ref.scheme not in self.schemes:
            raise refused(
                f"{ref} cannot be loaded: fetching {ref.scheme}: references is off. Add {ref.scheme!r} to "
                "models.fetch.schemes to allow it, or load a file: reference or the name of a pool."
            )
        self.check_url(self.first_url(ref))

    def first_url(self, ref: ModelRef) -> Url:
        """Where fetching begins. For what has several, only host and port mean something."""
        match ref:
            case HubRef():
                return self.hub
            case BucketRef():
                return self.s3.endpoint
            case RegistryRef():
                return Url(ref.host, ref.port, "/v2/")
            case WebRef():
                return ref.url
            case FileRef():
                raise AssertionError("a file is not fetched")

    def check_url(self, url: Url) -> None:
        """Whether this host may be asked at all. Raises ModelUnavailable."""
        if not self._named(url):
            raise refused(f"{url.shown}: {url.netloc} is not in models.fetch.hosts. Add it there to allow it.")
        if is_address(url.host):
            self.check_address(url, url.host)

    def check_address(self, url: Url, address: str) -> None:
        """Whether a host may be reached at an address that its name has led to. Raises ModelUnavailable."""
        if url.netloc not in self.private and not is_public(address):
            raise refused(
                f"{url.shown}: {url.host} is at {address}, which is not an address of the public internet. If that is "
                f'meant, add "{url.netloc}" to models.fetch.allow_private.'
            )

    def _named(self, url: Url) -> bool:
        if url.netloc in self.private or url.netloc in self.hosts:
            return True
        if "hf" in self.schemes and url.netloc == self.hub.netloc:
            return True
        if "s3" in self.schemes and url.netloc == self.s3.endpoint.netloc:
            return True
        below = (host[1:] for host in self.hosts if host.startswith("*."))
        return any(url.netloc.endswith(suffix) for suffix in below)


def refused(message: str) -> ModelUnavailable:
    return ModelUnavailable("UNTRUSTED_ARTIFACT", message)


def is_public(text: str) -> bool:
    """Whether an address is one machine of the public internet.

    Of IPv6 only what is certainly that: neither mapped, translated (NAT64) nor tunnelled (6to4, Teredo) IPv4, which
    may come out anywhere.
    """
    address = ipaddress.ip_address(text)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    plain = address.scope_id is None and address in _GLOBAL_UNICAST
    return plain and not any(address in net for net in _TUNNELS)
