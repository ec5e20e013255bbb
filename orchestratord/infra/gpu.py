"""GPUs as NVIDIA's management library tells them. Without it (the extra `gpu`) or without a driver there are none.

The library is asked off the event loop: a driver in trouble may take its time.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from orchestratord.domain.device import Device

RETRY_READS = 30  # a driver that cannot be reached is tried again after so many reads


class NvmlProbe:
    """See `ports.GpuProbe`."""

    def __init__(self, module: str = "pynvml") -> None:
        try:
            self._nvml: Any = importlib.import_module(module)
        except ImportError:
            self._nvml = None
        self._open = False
        self._skip = 0
        self._reading: asyncio.Future[list[Device]] | None = None

    async def read(self) -> list[Device]:
        if self._nvml is None:
            return []
        if self._skip:
            self._skip -= 1
            return []
        # A read that hangs is waited for by whoever comes next: there is never more than one.
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._read))
        return await asyncio.shield(self._reading)

    def _read(self) -> list[Device]:
        try:
            if not self._open:
                self._nvml.nvmlInit()
                self._open = True
            return [self._device(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except self._nvml.NVMLError:  # no driver, or it was reset: what it said before holds no more
            self._open, self._skip = False, RETRY_READS
            return []

    def _device(self, index: int) -> Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        try:
            utilization = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except self._nvml.NVMLError:  # some cards do not say
            utilization = None
        uuid = self._nvml.nvmlDeviceGetUUID(handle)
        text = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
        return Device(index, text, utilization, int(memory.used), int(memory.free))
