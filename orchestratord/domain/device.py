"""A device that engines compute on, and which of them a mask means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU now. utilization: 0..1, None where the driver does not say. used, free: bytes, whoever uses them."""

    index: int  # by PCI bus, as `nvidia-smi` counts
    uuid: str
    utilization: float | None
    used: int
    free: int


def behind(mask: str | None, devices: Iterable[Device]) -> tuple[Device, ...]:
    """The devices of a mask such as `0`, `0,1` or `GPU-8f3a`; () without one, or where it names none."""
    parts = [part.strip() for part in (mask or "").split(",")]
    return tuple(device for device in devices if any(_is(part, device) for part in parts))


def _is(part: str, device: Device) -> bool:
    if part.isascii() and part.isdigit():
        return int(part) == device.index
    return part.startswith("GPU-") and device.uuid.startswith(part)
