"""Pools, their queues and their replicas."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, field

from orchestratord.config.section import (
    WEEK_MS,
    Devices,
    Digest,
    MaybeMillis,
    Millis,
    ModelName,
    Name,
    Positive,
    Section,
    Time,
)


class QueueSettings(Section, frozen=True):
    """Seats, and what happens when they are taken."""

    capacity: Annotated[int, Meta(ge=1, le=100_000)] = 64
    full_policy: Literal["reject", "drop-lru", "shed-low-priority"] = "reject"
    batch_capacity: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    batch_age_ms: MaybeMillis = 0


class PriorSettings(Section, frozen=True):
    """What is assumed of service times before the first task was observed."""

    overhead_ms: Time = 100.0
    ms_per_unit: Annotated[float, Meta(gt=0, le=WEEK_MS)] = 20.0
    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5
    load_ms: Time = 10_000.0


class WatchdogSettings(Section, frozen=True):
    """Longest silences and the longest run; 0 switches one off."""

    first_token_ms: MaybeMillis = 120_000
    idle_ms: MaybeMillis = 60_000
    wall_ms: MaybeMillis = 0


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
    ctx: Annotated[int, Meta(ge=64, le=2**31 - 1)] = 4096
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    binary: str | None = None
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


class MockSettings(Section, frozen=True):
    """The in-process engine for trials and tests; needs `allow_mock`."""

    slots: Annotated[int, Meta(ge=1, le=4096)] = 1
    ctx: Annotated[int, Meta(ge=64, le=2**31 - 1)] = 4096
    token_ms: Time = 0.0
    prefill_ms: Time = 0.0
    load_ms: Time = 0.0


class ReplicaSettings(Section, frozen=True):
    """Exactly one of url, process and mock."""

    id: Name
    url: Annotated[str, Meta(pattern=r"^https?://[^\s/?#]+(?![\s\S])")] | None = None
    process: ProcessSettings | None = None
    mock: MockSettings | None = None
    device_mask: Devices | None = None
    memory_bytes: Positive | None = None
    vram_bytes: Positive | None = None
    api_key_env: str | None = None
    options: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.url, self.process, self.mock)) != 1:
            raise ValueError(f"replica {self.id!r} needs exactly one of `url`, `process` and `mock`")
        if self.url is not None and not _is_reachable(self.url):
            raise ValueError(
                f"replica {self.id!r}: its url has no host, or a port that is none; expected http://host:port"
            )


def _is_reachable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


MOST_SLOTS = 65_536  # of a pool: the most the contract can tell


class PoolSettings(Section, frozen=True):
    """One engine, one model, a queue and replicas."""

    id: Name
    engine: Literal["llamacpp", "vllm", "tgi", "triton"]
    model: ModelName
    driver: str | None = None
    aliases: tuple[ModelName, ...] = ()
    queue: QueueSettings = field(default_factory=QueueSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    watchdogs: WatchdogSettings = field(default_factory=WatchdogSettings)
    restarts: RestartSettings = field(default_factory=RestartSettings)
    load: Literal["always", "on_demand"] = "always"
    min_resident_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 5_000
    idle_unload_ms: MaybeMillis = 0
    pins: PinSettings = field(default_factory=PinSettings)
    replicas: tuple[ReplicaSettings, ...] = ()

    def __post_init__(self) -> None:
        slots = sum(one.slots for r in self.replicas if (one := r.process or r.mock) is not None)
        if slots > MOST_SLOTS:
            raise ValueError(f"pool {self.id!r} has {slots} slots in all; {MOST_SLOTS} is the most one may have")


class ProfileSettings(Section, frozen=True):
    """A sampler profile: an immutable set of defaults that `sampling` overrides knob by knob."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None


V1 = ProfileSettings(
    temperature=0.8,
    top_p=0.95,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
