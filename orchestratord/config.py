"""One validated settings object: built-in defaults, then one TOML or YAML file, then the environment.

Environment: `ORCHD_SECTION__KEY` overrides any scalar, `AUTH_TOKEN` or `AUTH_TOKEN_FILE` gives the token,
`AUTH_OPTIONAL=true` lets local peers in without it. Services get plain values from here, never this object.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
import platformdirs
import yaml
from msgspec import Meta, Struct, field

from orchestratord.domain.modelref import parse as parse_ref
from orchestratord.domain.url import BadReference, host_pattern, parse_url
from orchestratord.infra.secrets import is_secret_name, secret_options

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1)]
ENVIRONMENT_ONLY = ("token", "auth_optional")
POOLS_MAX, REPLICAS_MAX = 256, 1024  # ids of either are labels of metrics
Millis = Annotated[int, Meta(ge=1, le=7 * 86_400_000)]
MAX_AGE_MS = 10 * 366 * 86_400_000


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to write instead."""


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are errors."""


class ServerSettings(Section, frozen=True):
    """Where the daemon listens and what it accepts."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    shutdown_grace_ms: Millis = 10_000
    max_body_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    connections: Positive | None = None  # None: half of the descriptors the process may have
    connections_per_client: Positive | None = None


class LogSettings(Section, frozen=True):
    """How the daemon tells what happens, on standard error. `auto`: readable on a terminal, else JSON."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class RateLimitSettings(Section, frozen=True):
    """How fast one caller may submit tasks: `per_s` on average, `burst` at once; 0 is no limit."""

    per_s: Annotated[float, Meta(ge=0)] = 0.0
    burst: Positive = 10


class AuthSettings(Section, frozen=True):
    """Who may come in, and how often. The token itself comes from the environment only."""

    public: tuple[Literal["healthz", "readyz", "docs", "openapi"], ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    rate_limit: RateLimitSettings = field(default_factory=RateLimitSettings)


class JournalSettings(Section, frozen=True):
    """Where facts are kept. `process` survives the daemon's death, `power` the machine's."""

    kind: Literal["sqlite", "memory"] = "sqlite"
    durability: Literal["process", "power"] = "process"


class ArtifactSettings(Section, frozen=True):
    """Where artifacts are kept, and how much of a task its transcript tells."""

    kind: Literal["filesystem", "memory"] = "filesystem"
    transcripts: Literal["full", "metadata", "off"] = "full"


class BudgetSettings(Section, frozen=True):
    """What one session may spend; a budget that is not set does not limit."""

    tokens: Positive | None = None
    time_ms: Positive | None = None
    cost: Annotated[float, Meta(gt=0, le=9e9)] | None = None


class TariffSettings(Section, frozen=True):
    """What work costs, in the unit of `budgets.cost`."""

    per_task: Annotated[float, Meta(ge=0)] = 0.0
    per_1k_tokens_in: Annotated[float, Meta(ge=0)] = 0.0
    per_1k_tokens_out: Annotated[float, Meta(ge=0)] = 0.0


class SessionSettings(Section, frozen=True):
    """One conversation's life and means. The TTL runs only while no task of it is live."""

    ttl_ms: Millis = 600_000
    turns_max: Positive = 8
    budgets: BudgetSettings = field(default_factory=BudgetSettings)
    tariff: TariffSettings = field(default_factory=TariffSettings)


class StreamSettings(Section, frozen=True):
    metrics_ms: Millis = 1000
    metrics_queued_ms: Millis = 5000
    keep_alive_ms: Millis = 15_000
    stall_ms: Millis = 30_000
    disconnect_grace_ms: Millis = 30_000


class RetentionSettings(Section, frozen=True):
    """How long finished tasks are kept for replay, and how long their transcripts."""

    tasks_ms: Millis = 3_600_000
    tasks: Positive = 10_000
    log_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    transcripts_ms: Annotated[int, Meta(ge=1, le=MAX_AGE_MS)] = 7 * 86_400_000
    transcripts_bytes: Annotated[int, Meta(ge=0)] = 2 * 1024**3
    sweep_ms: Millis = 600_000


class QueueSettings(Section, frozen=True):
    """Seats, and what happens when they are taken."""

    capacity: Annotated[int, Meta(ge=1, le=100_000)] = 64
    full_policy: Literal["reject", "drop-lru", "shed-low-priority"] = "reject"
    batch_capacity: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    batch_age_ms: Annotated[int, Meta(ge=0, le=7 * 86_400_000)] = 0


class PriorSettings(Section, frozen=True):
    """What is assumed of service times before the first task was observed."""

    overhead_ms: Annotated[float, Meta(ge=0)] = 100.0
    ms_per_unit: Annotated[float, Meta(gt=0)] = 20.0
    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5
    load_ms: Annotated[float, Meta(ge=0)] = 10_000.0


class WatchdogSettings(Section, frozen=True):
    """Longest silences and the longest run; 0 switches one off."""

    first_token_ms: Annotated[int, Meta(ge=0)] = 120_000
    idle_ms: Annotated[int, Meta(ge=0)] = 60_000
    wall_ms: Annotated[int, Meta(ge=0)] = 0


class RestartSettings(Section, frozen=True):
    """How often an engine of ours is restarted within a window before it stays down."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 20
    window_ms: Millis = 600_000


class PinSettings(Section, frozen=True):
    """What every replica of a pool has to be; one that is not gets no work."""

    engine_version: str | None = None
    model_digest: Digest | None = None
    profile: Name | None = None


class ProcessSettings(Section, frozen=True):
    """An engine the daemon starts and supervises. Without `model_path` its model is what the pool's reference means."""

    model_path: str | None = None
    mode: Literal["completion", "embedding", "rerank"] = "completion"
    slots: Annotated[int, Meta(ge=1, le=256)] = 1
    ctx: Annotated[int, Meta(ge=64)] = 4096
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    binary: str | None = None
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}


class MockSettings(Section, frozen=True):
    """The in-process engine for trials and tests; needs `allow_mock`."""

    slots: Annotated[int, Meta(ge=1, le=4096)] = 1
    ctx: Annotated[int, Meta(ge=64)] = 4096
    token_ms: Annotated[float, Meta(ge=0)] = 0.0
    prefill_ms: Annotated[float, Meta(ge=0)] = 0.0
    load_ms: Annotated[float, Meta(ge=0)] = 0.0


class ReplicaSettings(Section, frozen=True):
    """Exactly one of url, process and mock."""

    id: Name
    url: Annotated[str, Meta(pattern=r"^https?://[^\s/]+$")] | None = None
    process: ProcessSettings | None = None
    mock: MockSettings | None = None
    device_mask: str | None = None
    memory_bytes: Positive | None = None
    vram_bytes: Positive | None = None
    api_key_env: str | None = None
    options: dict[str, int | str] = {}

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.url, self.process, self.mock)) != 1:
            raise ValueError(f"replica {self.id!r} needs exactly one of `url`, `process` and `mock`")


class PoolSettings(Section, frozen=True):
    """One engine, one model, a queue and replicas."""

    id: Name
    engine: Literal["llamacpp", "vllm", "tgi", "triton"]
    model: str
    driver: str | None = None
    aliases: tuple[str, ...] = ()
    queue: QueueSettings = field(default_factory=QueueSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    watchdogs: WatchdogSettings = field(default_factory=WatchdogSettings)
    restarts: RestartSettings = field(default_factory=RestartSettings)
    load: Literal["always", "on_demand"] = "always"
    min_resident_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 5_000
    idle_unload_ms: Annotated[int, Meta(ge=0, le=7 * 86_400_000)] = 0
    pins: PinSettings = field(default_factory=PinSettings)
    replicas: tuple[ReplicaSettings, ...] = ()


class BucketSettings(Section, frozen=True):
    """Where `s3://` is. Keys come from the environment; without them requests are not signed."""

    endpoint: str = "https://s3.amazonaws.com"
    region: str = "us-east-1"
    access_key_env: str = "AWS_ACCESS_KEY_ID"
    secret_key_env: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name
    session_token_env: str = "AWS_SESSION_TOKEN"  # noqa: S105 - a name

    def __post_init__(self) -> None:
        _root_url("models.fetch.s3.endpoint", self.endpoint)


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
    ca_roots: dict[Name, str] = {}
    tokens: dict[str, str] = {}
    hub: str = "https://huggingface.co"
    s3: BucketSettings = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        for name, hosts in (("allow_private", self.allow_private), ("tokens", self.tokens), ("hosts", self.hosts)):
            for host in hosts:
                try:
                    host_pattern(host, wildcard=name == "hosts")
                except BadReference as error:
                    raise ValueError(f"models.fetch.{name}: {host!r} is no host or host:port ({error})") from None
        _root_url("models.fetch.hub", self.hub)


class ModelSettings(Section, frozen=True):
    """Where models may be loaded from, and what loading one may take."""

    roots: tuple[str, ...] = ()
    drain_ms: Millis = 300_000
    load_ms: Millis = 600_000
    memory_bytes: Positive | None = None
    vram_bytes: dict[str, Positive] = {}
    starve_ms: Millis = 60_000
    fetch: FetchSettings = field(default_factory=FetchSettings)


class TrustSettings(Section, frozen=True):
    """What is asked of models. Entries of the catalog and clients may ask for more, never for less."""

    mode: Literal["permissive", "strict"] = "permissive"
    require_signature: bool = False
    require_sbom: bool = False
    allowed_registries: tuple[str, ...] | None = None
    roots: dict[Name, str] = {}


class ProfileSettings(Section, frozen=True):
    """A sampler profile: an immutable set of defaults that `sampling` overrides knob by knob."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


V1 = ProfileSettings(
    temperature=0.8,
    top_p=0.95,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)


class TracingSettings(Section, frozen=True):
    """Spans of requests and tasks; where they go is up to the OTEL_* variables."""

    enabled: bool = False


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
    profiles: dict[Name, ProfileSettings] = {}
    allow_mock: bool = False
    data_dir: str | None = None
    token: str | None = None  # environment only
    auth_optional: bool = False  # environment only

    def __post_init__(self) -> None:
        _unique("pool", [pool.id for pool in self.pools])
        if (count := len({replica.id for pool in self.pools for replica in pool.replicas})) > REPLICAS_MAX:
            raise ValueError(f"replicas have {count} different ids, at most {REPLICAS_MAX} are possible: r0, r1, ...")
        for pool in self.pools:
            if pool.pins.profile not in (None, *self.all_profiles):
                known = ", ".join(sorted(self.all_profiles))
                raise ValueError(f"pool {pool.id!r} is pinned to profile {pool.pins.profile!r}; there are {known}")
            _unique(f"replica in pool {pool.id}", [replica.id for replica in pool.replicas])
            _needs_reference(pool)
            if not self.allow_mock and (pool.driver == "mock" or any(r.mock for r in pool.replicas)):
                raise ValueError(f"pool {pool.id!r} uses the mock engine; set `allow_mock = true` if that is meant")
        if "v1" in self.profiles:
            raise ValueError("profile 'v1' is built in and never changes; choose another name")

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir) if self.data_dir else platformdirs.user_state_path("orchestratord")

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


def _root_url(setting: str, text: str) -> None:
    try:
        if parse_url(text).target != "/":
            raise BadReference("a path is not wanted")
    except BadReference as error:
        raise ValueError(f"{setting}: {text!r} must be https://host or https://host:port ({error})") from None


def _unique(what: str, ids: list[str]) -> None:
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"{what} id used twice: {', '.join(twice)}")


def load(path: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this start. Raises ConfigError."""
    raw = read_file(Path(path)) if path is not None else {}
    for secret in ENVIRONMENT_ONLY:
        if secret in raw:
            raise ConfigError(f"{secret} is not read from the file: set AUTH_TOKEN or AUTH_OPTIONAL in the environment")
    for key, value in environ.items():
        if key.startswith("ORCHD_"):
            _override(raw, key, value)
    raw["token"] = _token(environ)
    raw["auth_optional"] = environ.get("AUTH_OPTIONAL", "").lower() in ("1", "true", "yes")
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), path)) from None
    check_bind(settings)
    return settings


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


def read_file(path: Path) -> dict[str, Any]:
    """What the file says, as it stands. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
        parsed = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be parsed: {error}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path} must be a table of sections at the top")
    return parsed


def _override(raw: dict[str, Any], key: str, value: str) -> None:
    """ORCHD_SERVER__PORT=9000 -> raw["server"]["port"] = 9000."""
    steps = key.removeprefix("ORCHD_").lower().split("__")
    if steps[0] not in Settings.__struct_fields__:
        close = difflib.get_close_matches(steps[0], Settings.__struct_fields__, n=1)
        hint = f" Did you mean ORCHD_{close[0].upper()}?" if close else ""
        raise ConfigError(f"{key} names no setting.{hint}")
    node = raw
    for step in steps[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {step} is not a section")
    node[steps[-1]] = _scalar(value)


def _scalar(value: str) -> Any:
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return value


def _token(environ: Mapping[str, str]) -> str | None:
    if path := environ.get("AUTH_TOKEN_FILE"):
        try:
            token = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"AUTH_TOKEN_FILE {path} cannot be read: {error}") from None
        if not token:
            raise ConfigError(f"AUTH_TOKEN_FILE {path} is empty")
        return token
    token = environ.get("AUTH_TOKEN", "").strip()
    if "AUTH_TOKEN" in environ and not token:
        raise ConfigError("AUTH_TOKEN is empty: set it to a secret, or unset it for an open loopback daemon")
    return token or None


_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$(?P<path>[^`]*)`)?")


def _explain(message: str, path: str | Path | None) -> str:
    """msgspec's message with the file in front and the field that was probably meant behind."""
    where = f"{path}: " if path is not None else ""
    found = _UNKNOWN.search(message)
    if not found:
        return f"{where}{message}"
    known = _fields_at(found["path"] or "")
    close = difflib.get_close_matches(found["field"], known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Known here: {', '.join(sorted(known))}."
    place = (found["path"] or "").lstrip(".")
    return f"{where}unknown setting {found['field']!r}{' in ' + place if place else ''}.{hint}"


def _fields_at(path: str) -> list[str]:
    kind: Any = Settings
    for step in re.findall(r"\.(\w+)|\[(?:\d+|\.\.\.)\]", path):
        if step:
            kind = _struct_in(msgspec.structs.fields(kind), step)
            if kind is None:
                return []
    return list(kind.__struct_fields__)


def _struct_in(fields: tuple[Any, ...], name: str) -> Any:
    declared = next((f.type for f in fields if f.name == name), None)
    pending = [declared]
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
        pending.extend(getattr(candidate, "__args__", ()))
    return None
