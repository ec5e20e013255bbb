"""Memory of this machine and of single processes, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcMemory:
    """See `ports.HostMemory`."""

    def available(self) -> int | None:
        return _kilobytes("/proc/meminfo", "MemAvailable:")

    def resident(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "VmRSS:")

    def private(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "RssAnon:")

    def taken(self) -> float | None:
        shares = (_address_space(), *(_cgroup(group) for group in _groups()))
        return max((share for share in shares if share is not None), default=None)

    def file_size(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError:
            return 0


def _address_space() -> float | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * PAGE / limit
    except OSError:
        return None


def _groups() -> list[Path]:
    """This process's control group and those above it, any of which may have a limit (version 2)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            if line.startswith("0::/"):
                own = CGROUPS / line.removeprefix("0::/")
                return [own, *(above for above in own.parents if above.is_relative_to(CGROUPS))]
    return []


def _cgroup(group: Path) -> float | None:
    """What cannot be dropped of a group's memory: files that nobody uses do not count."""
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        lines = (group / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):  # there is none, or it is `max`
        return None
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return (used - cached) / limit if limit else None


def _kilobytes(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
