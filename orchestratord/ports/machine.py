"""The machine: its devices and its memory."""

from __future__ import annotations

from typing import Protocol

from orchestratord.domain.device import Device


class GpuProbe(Protocol):
    """The GPUs of this machine."""

    async def read(self) -> list[Device]:
        """All of them as they are now; [] where there are none or they cannot be seen. Never raises."""


class HostMemory(Protocol):
    """What memory there is. None where the system does not say. Quick enough for the event loop."""

    def available(self) -> int | None:
        """Bytes that can be taken without swapping."""

    def resident(self, pid: int) -> int | None:
        """Bytes a process has in memory."""

    def private(self, pid: int) -> int | None:
        """Of these, the bytes that come back when it ends: without files, which the system may drop at any time."""

    def taken(self) -> float | None:
        """Of the memory this process and its group may have, the share they take; None if there is no limit."""

    def file_size(self, path: str) -> int:
        """Bytes of a local file; 0 if it cannot be seen."""
