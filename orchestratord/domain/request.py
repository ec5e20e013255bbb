"""What a client asks for: the TaskRequest of the contract, field for field, and who sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orchestratord.domain.record import record

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
Workload = Literal["completion", "embedding", "rerank"]
DEFAULT_PROFILE = "v1"
DeterminismClass = Literal["exact", "best_effort"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; the engine's own template turns a list of them into a prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Per-task overrides of single sampling knobs; None leaves the profile's value."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The knobs that are set."""
        if self is AS_THE_PROFILE:
            return ()
        return tuple(knob for knob in self.__slots__ if getattr(self, knob) is not None)


@dataclass(frozen=True, slots=True)
class PlacementHints:
    """What the client says about where its task may run (ORCH-39xx)."""

    mode: Literal["pin", "prefer", "auto"] = "auto"
    pin_pool_id: str | None = None
    prefer_pools: tuple[str, ...] = ()
    avoid_pools: tuple[str, ...] = ()
    require_device_mask: str | None = None
    allow_fallback: bool = True


AS_THE_PROFILE = Sampling()  # one for all requests that name no knob
ANYWHERE = PlacementHints()  # and for all that do not care


@record
class TaskRequest:
    """The TaskRequest of the contract, field for field. Durations are milliseconds from receipt."""

    task_id: str
    session_id: str
    workload: Workload
    model_ref: str
    engine: str
    ctx: int
    priority: Priority
    max_tokens: int
    deadline_ms: int
    seed: int | None = None
    determinism: Literal["strict", "best_effort"] = "best_effort"
    sampler_profile_version: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    inputs: tuple[str, ...] | None = None
    expected_tokens: int | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    output_mode: str | None = None
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    placement: PlacementHints = ANYWHERE
    sampling: Sampling = AS_THE_PROFILE

    @property
    def cold(self) -> bool:
        """Whether it must not build on a prefix in the engine's cache."""
        return self.kv_hint == "cold" or self.determinism == "strict"

    @property
    def max_events(self) -> int:
        """Upper bound of log events before the terminal one: `started` and every token or result."""
        return 1 + (self.max_tokens if self.workload == "completion" else len(self.inputs or ()))

    @property
    def units(self) -> int:
        """Work asked for at most: output tokens, or inputs for the workloads that produce none."""
        return self.max_tokens if self.workload == "completion" else len(self.inputs or ())


@record
class Caller:
    """Who sent a request: its correlation id, and `localhost` or `token:<6 hex>`, never the token."""

    correlation_id: str
    identity: str
