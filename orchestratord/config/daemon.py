"""The daemon itself: where it listens, who may come in, what it keeps and for how long."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Annotated, Literal

from msgspec import Meta, field

from orchestratord.config.section import MAX_AGE_MS, Amount, Millis, Positive, Section, Size, Small

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def _is_host(text: str) -> bool:
    try:
        return _NAME.fullmatch(text) is not None or IPv6Address(text).scope_id is None
    except ValueError:
        return False


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


SLOWEST_PER_S = 1e-6


class RateLimitSettings(Section, frozen=True):
    """How fast one caller may submit tasks: `per_s` on average, `burst` at once; 0 is no limit."""

    per_s: Amount = 0.0
    burst: Positive = 10

    def __post_init__(self) -> None:
        """Whoever has to wait is told for how many milliseconds: a number the contract can hold."""
        if 0 < self.per_s < SLOWEST_PER_S:
            raise ValueError(f"per_s is 0, for no limit, or at least {SLOWEST_PER_S:g}: one task in eleven days")


class AuthSettings(Section, frozen=True):
    """Who may come in, and how often. The token itself comes from the environment only."""

    public: tuple[Literal["healthz", "readyz", "docs", "openapi"], ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    rate_limit: RateLimitSettings = field(default_factory=RateLimitSettings)

    def __post_init__(self) -> None:
        """What no Host and no Origin header can ever be equal to is a mistake."""
        for host in self.allowed_hosts:
            if not _is_host(host):
                raise ValueError(
                    f"auth.allowed_hosts: {host!r} is no name or address. Write it without scheme, port and brackets."
                )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"auth.allowed_origins: {origin!r} is no origin. Write it as browsers do, in lower case and "
                    "without a path: https://ui.example.net or http://ui.example.net:3000"
                )


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

    per_task: Amount = 0.0
    per_1k_tokens_in: Amount = 0.0
    per_1k_tokens_out: Amount = 0.0


class SessionSettings(Section, frozen=True):
    """One conversation's life and means. The TTL runs only while no task of it is live."""

    ttl_ms: Millis = 600_000
    turns_max: Small = 8
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
    log_bytes: Size = 64 * 1024 * 1024
    transcripts_ms: Annotated[int, Meta(ge=1, le=MAX_AGE_MS)] = 7 * 86_400_000
    transcripts_bytes: Size = 2 * 1024**3
    sweep_ms: Millis = 600_000


class TracingSettings(Section, frozen=True):
    """Spans of requests and tasks; where they go is up to the OTEL_* variables."""

    enabled: bool = False
