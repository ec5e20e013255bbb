"""Models: where they may come from, and what is asked of them."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from orchestratord.config.section import Millis, Name, Positive, Section, root_url
from orchestratord.domain.url import BadReference, host_pattern


class BucketSettings(Section, frozen=True):
    """Where `s3://` is. Keys come from the environment; without them requests are not signed."""

    endpoint: str = "https://s3.amazonaws.com"
    region: str = "us-east-1"
    access_key_env: str = "AWS_ACCESS_KEY_ID"
    secret_key_env: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name
    session_token_env: str = "AWS_SESSION_TOKEN"  # noqa: S105 - a name

    def __post_init__(self) -> None:
        root_url("models.fetch.s3.endpoint", self.endpoint)


class FetchSettings(Section, frozen=True):
    """What models may be fetched, and from where. Nothing unless `schemes` names something."""

    schemes: tuple[Literal["hf", "https", "s3", "oci"], ...] = ()
    hosts: tuple[str, ...] = ()
    allow_private: tuple[str, ...] = ()
    max_bytes: Positive = 256 * 1024**3
    cache_bytes: Positive | None = None
    connect_ms: Millis = 10_000
    idle_ms: Millis = 60_000
    total_ms: Millis = 86_400_000
    ca_roots: dict[Name, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    hub: str = "https://huggingface.co"
    s3: BucketSettings = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        for name, hosts in (("allow_private", self.allow_private), ("tokens", self.tokens), ("hosts", self.hosts)):
            for host in hosts:
                try:
                    host_pattern(host, wildcard=name == "hosts")
                except BadReference as error:
                    raise ValueError(f"models.fetch.{name}: {host!r} is no host or host:port ({error})") from None
        root_url("models.fetch.hub", self.hub)


class ModelSettings(Section, frozen=True):
    """Where models may be loaded from, and what loading one may take."""

    roots: tuple[str, ...] = ()
    drain_ms: Millis = 300_000
    load_ms: Millis = 600_000
    memory_bytes: Positive | None = None
    vram_bytes: dict[str, Positive] = field(default_factory=dict)
    starve_ms: Millis = 60_000
    fetch: FetchSettings = field(default_factory=FetchSettings)


class TrustSettings(Section, frozen=True):
    """What is asked of models. Entries of the catalog and clients may ask for more, never for less."""

    mode: Literal["permissive", "strict"] = "permissive"
    require_signature: bool = False
    require_sbom: bool = False
    allowed_registries: tuple[str, ...] | None = None
    roots: dict[Name, str] = field(default_factory=dict)
