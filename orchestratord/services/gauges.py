"""Gauges: what engines and devices say of themselves now and then, for metrics, health and placement.

A figure that is not there is no figure: it is never a zero.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestratord.domain.core import Core
from orchestratord.domain.device import Device, behind
from orchestratord.domain.pool import Replica
from orchestratord.ports import Clock, Engine, EngineError, GpuProbe, KvGauge
from orchestratord.services.members import ReplicaSpec

POLL_S = 2.0  # engines notice clients that left only when nobody has asked them anything for a second
ASK_LIMIT_S = 2.0


class Gauges:
    """serving: every ready replica with its engine. proving: whether an abort on a replica is being proven."""

    def __init__(
        self,
        core: Core,
        clock: Clock,
        gpus: GpuProbe,
        serving: Callable[[], list[tuple[ReplicaSpec, Replica, Engine]]],
        proving: Callable[[Replica], bool],
    ) -> None:
        self._core = core
        self._clock = clock
        self._gpus = gpus
        self._serving = serving
        self._proving = proving
        self._task: asyncio.Task[None] | None = None
        self._seen: list[Device] = []

    def vram(self) -> dict[str, int]:
        """Bytes of each device that was seen, by its number and by its UUID: whatever is in them."""
        return {name: device.used + device.free for device in self._seen for name in (str(device.index), device.uuid)}

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="gauges")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            await self._clock.sleep(POLL_S)
            self._seen = devices = await self._devices()
            await asyncio.gather(*(self._measure(*each, devices) for each in self._serving()))

    async def _devices(self) -> list[Device]:
        try:
            async with self._clock.limit(ASK_LIMIT_S):
                return await self._gpus.read()
        except TimeoutError:
            return []

    async def _measure(self, spec: ReplicaSpec, replica: Replica, engine: Engine, devices: list[Device]) -> None:
        life = replica.incarnation
        usage = replica.kv_usage if self._proving(replica) else await self._kv_usage(engine)
        if replica.state == "ready" and replica.incarnation == life:
            self._core.measured(replica, usage, behind(spec.device_mask, devices) if spec.here else ())

    async def _kv_usage(self, engine: Engine) -> float | None:
        if not isinstance(engine, KvGauge):
            return None
        try:
            async with self._clock.limit(ASK_LIMIT_S):
                return await engine.kv_usage()
        except (EngineError, TimeoutError):
            return None
