"""Engines as child processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orchestratord.domain.request import Workload


class ReplicaProcess(Protocol):
    """An engine server run as a child: own process group, dead with the daemon even on its kill -9."""

    @property
    def url(self) -> str:
        """Where the child listens: http://127.0.0.1:port."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """The exit code once the child is gone, else None."""

    async def wait(self) -> int:
        """Return the exit code once the child is gone (negative: a signal). May be awaited by several."""

    async def stop(self, grace: float) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL, to the whole group. Returns when all are gone. Idempotent."""

    def tail(self) -> list[str]:
        """The last lines the child wrote to stdout and stderr (at most 200 lines of 500 characters)."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run an engine: its own options, as the configuration gives them."""

    driver: str
    model_path: str  # or a model reference, until it is resolved
    slots: int
    ctx: int  # per slot
    threads: int
    binary: str | None
    extra_args: tuple[str, ...]
    env: dict[str, str]
    device_mask: str | None
    mode: Workload = "completion"  # for engines that must be told at their start
    api_key_env: str | None = None  # the one secret of the daemon's environment that is the engine's, too


@runtime_checkable
class Startable(Protocol):
    """What the class of a driver has besides whose engine the daemon can start: what to run, and in which environment.

    Both are called on the class, before there is an engine, and quick enough for the event loop.
    """

    def command(self, spec: ProcessSpec, port: int) -> list[str]:
        """Program and arguments of a server on 127.0.0.1:`port` that serves `spec.model_path`.

        Raises OSError when it cannot be started; the message names the fix (FileNotFoundError: how to get the program).
        """

    def environment(self, spec: ProcessSpec) -> dict[str, str]:
        """Its whole environment: ours where it needs that, what keeps it to `spec.device_mask`, then `spec.env`."""


class ReplicaHost(Protocol):
    """Starts engine servers."""

    async def start(self, spec: ProcessSpec) -> ReplicaProcess:
        """Start one on a free loopback port. Raises OSError when it cannot be started (message names the fix)."""
