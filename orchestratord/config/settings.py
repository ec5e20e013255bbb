"""All sections together, and what must hold between them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import msgspec
import platformdirs
from msgspec import Meta, field

from orchestratord.config.daemon import (
    ArtifactSettings,
    AuthSettings,
    JournalSettings,
    LogSettings,
    RetentionSettings,
    ServerSettings,
    SessionSettings,
    StreamSettings,
    TracingSettings,
)
from orchestratord.config.models import ModelSettings, TrustSettings
from orchestratord.config.pools import V1, PoolSettings, ProfileSettings
from orchestratord.config.section import ConfigError, Name, Section, unique
from orchestratord.domain.modelref import parse as parse_ref
from orchestratord.domain.url import BadReference
from orchestratord.infra.secrets import is_secret_name, secret_options

ENVIRONMENT_ONLY = ("token", "auth_optional")

POOLS_MAX, REPLICAS_MAX = 256, 1024  # ids of either are labels of metrics


class Settings(Section, frozen=True):
    """Everything. `load` builds it."""

    server: ServerSettings = field(default_factory=ServerSettings)
    log: LogSettings = field(default_factory=LogSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    pools: Annotated[tuple[PoolSettings, ...], Meta(max_length=POOLS_MAX)] = ()
    profiles: dict[Name, ProfileSettings] = field(default_factory=dict)
    allow_mock: bool = False
    data_dir: str | None = None
    token: str | None = None  # environment only
    auth_optional: bool = False  # environment only

    def __post_init__(self) -> None:
        unique("pool", [pool.id for pool in self.pools])
        if (count := len({replica.id for pool in self.pools for replica in pool.replicas})) > REPLICAS_MAX:
            raise ValueError(f"replicas have {count} different ids, at most {REPLICAS_MAX} are possible: r0, r1, ...")
        for pool in self.pools:
            if pool.pins.profile not in (None, *self.all_profiles):
                known = ", ".join(sorted(self.all_profiles))
                raise ValueError(f"pool {pool.id!r} is pinned to profile {pool.pins.profile!r}; there are {known}")
            unique(f"replica in pool {pool.id}", [replica.id for replica in pool.replicas])
            _needs_reference(pool)
            if not self.allow_mock and (pool.driver == "mock" or any(r.mock for r in pool.replicas)):
                raise ValueError(f"pool {pool.id!r} uses the mock engine; set `allow_mock = true` if that is meant")
        if "v1" in self.profiles:
            raise ValueError("profile 'v1' is built in and never changes; choose another name")

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else platformdirs.user_state_path("orchestratord")

    @property
    def all_profiles(self) -> dict[str, ProfileSettings]:
        return {"v1": V1, **self.profiles}


def _needs_reference(pool: PoolSettings) -> None:
    lacking = [r.id for r in pool.replicas if r.process is not None and r.process.model_path is None]
    if lacking:
        try:
            parse_ref(pool.model)
        except BadReference as error:
            raise ValueError(
                f"replica {lacking[0]!r} of pool {pool.id!r} needs process.model_path, or the pool a model that can be "
                f"fetched. {error}"
            ) from None


def check_bind(settings: Settings) -> None:
    """Refuse to listen beyond loopback without a token (AUTH-1003). Raises ConfigError."""
    if settings.token is None and not is_loopback(settings.server.host):
        raise ConfigError(
            f"server.host {settings.server.host} is reachable from other machines and there is no AUTH_TOKEN. "
            "Set AUTH_TOKEN to a secret, or bind to 127.0.0.1."
        )


def written_secrets(settings: Settings) -> list[str]:
    """Secrets that stand in the file itself: keys in an engine's environment or options, passwords in its URL."""
    found: list[str] = []
    for replica in (replica for pool in settings.pools for replica in pool.replicas):
        if password := urlsplit(replica.url or "").password:
            found += [password, unquote(password)]
        if replica.process is not None:
            found += [value for name, value in replica.process.env.items() if is_secret_name(name)]
            found += secret_options(replica.process.extra_args)
    return found


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def json_schema() -> dict[str, Any]:
    """The published schema of the configuration file: what the environment alone may say is not in it."""
    schema = msgspec.json.schema(Settings)
    for secret in ENVIRONMENT_ONLY:
        del schema["$defs"]["Settings"]["properties"][secret]
    return schema
