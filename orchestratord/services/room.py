"""Room: what models take of which memory, as declared, else as measured; and how much of it there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orchestratord.domain.residency import Claim
from orchestratord.ports import HostMemory
from orchestratord.services.members import ReplicaSpec

LIMIT, RAM = "limit", "ram"  # what the configuration allows for all engines; what this machine has


@dataclass(frozen=True, slots=True)
class RoomSettings:
    """`memory_bytes`: what all engines may take together, None: what the host has; `vram_bytes`: of each device."""

    memory_bytes: int | None = None
    vram_bytes: Mapping[str, int] = field(default_factory=dict)


class Room:
    """`pids` gives the engines that run as children of ours; `devices` the memory of devices that can be asked."""

    def __init__(
        self,
        memory: HostMemory,
        settings: RoomSettings,
        pids: Callable[[], Iterable[int]],
        devices: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._memory = memory
        self._settings = settings
        self._pids = pids
        self._devices = devices

    def capacity(self) -> dict[str, int]:
        """Bytes of each resource that all engines of the daemon may take together."""
        whole: dict[str, int] = {}
        if self._settings.memory_bytes is not None:
            whole[LIMIT] = self._settings.memory_bytes
        available = self._memory.available()
        if available is not None:
            whole[RAM] = available + sum(self._memory.private(pid) or 0 for pid in self._pids())
        for device, size in {**self._devices(), **self._settings.vram_bytes}.items():
            whole[_gpu(device)] = size
        return whole

    def claim(self, specs: Iterable[ReplicaSpec], pids: Mapping[str, int] | None = None) -> Claim:
        """What these replicas take together. `pids`: of those that run, by replica."""
        whole: dict[str, int | None] = {}
        for spec in specs:
            for resource, size in self._of(spec, (pids or {}).get(spec.id)).items():
                known = whole.get(resource, 0)
                whole[resource] = None if known is None or size is None else known + size
        return whole

    def successor(self, old: Claim, before: list[ReplicaSpec], after: list[ReplicaSpec]) -> Claim:
        """What the replicas take with another model, where the old one takes `old` and none was declared: that, with
        one file for the other."""
        plain = dict(self.claim(after))
        if any(spec.memory_bytes is not None or spec.process is None for spec in after):
            return plain
        files = sum(map(self._file_size, after)) - sum(map(self._file_size, before))
        known = {r: size for r in (LIMIT, RAM) if (size := old.get(r)) is not None and r in plain}
        return {**plain, **{r: max(size + files, plain[r] or 0) for r, size in known.items()}}

    def _file_size(self, spec: ReplicaSpec) -> int:
        return self._memory.file_size(spec.process.model_path) if spec.process is not None else 0

    def _of(self, spec: ReplicaSpec, pid: int | None) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        devices = [d for d in (spec.device_mask or "").split(",") if d] if spec.process or spec.vram_bytes else []
        for device in devices:
            found[_gpu(device)] = None if spec.vram_bytes is None else spec.vram_bytes // len(devices)
        host = spec.memory_bytes
        if host is None and spec.process is not None and not devices:
            measured = self._memory.resident(pid) if pid is not None else None
            host = measured or self._file_size(spec) or None
        elif host is None:
            return found  # on a device, or in somebody else's process: it takes nothing here that matters
        if self._settings.memory_bytes is not None:
            found[LIMIT] = host
        if spec.process is not None:
            found[RAM] = host
        return found


def _gpu(device: str) -> str:
    return f"gpu:{device}"
