"""Memory of this machine and of single processes, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Files(NamedTuple):
    """What a version of control groups calls a group's limit and use, and the files in it that nobody uses."""

    limit: str
    used: str
    cached: str


V1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = Files("memory.max", "memory.current", "inactive_file")
V1_NONE = 1 << 60  # version 1 has no word for no limit: it says the most pages a counter can hold


class ProcMemory:
    """See `ports.HostMemory`."""

    def available(self) -> int | None:
        return _kilobytes("/proc/meminfo", "MemAvailable:")

    def resident(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "VmRSS:")

    def private(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "RssAnon:")

    def taken(self) -> float | None:
        shares = (_address_space(), *(_cgroup(group, files) for group, files in _groups()))
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


def _groups() -> Iterator[tuple[Path, Files]]:
    """This process's control groups and those above them, any of which may have a limit.

    A machine may have either version, or both. In a container the path may be one that only its host can see: then the
    topmost folder is the container's own group.
    """
    try:
        lines = MEMBERSHIP.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = CGROUPS, V2
        elif "memory" in controllers.split(","):
            root, files = CGROUPS / "memory", V1
        else:
            continue
        own = root / path.lstrip("/")
        yield own, files
        yield from ((above, files) for above in own.parents if above.is_relative_to(root))


def _cgroup(group: Path, files: Files) -> float | None:
    """What cannot be dropped of a group's memory: files that nobody uses do not count."""
    try:
        limit = int((group / files.limit).read_text("ascii"))
        used = int((group / files.used).read_text("ascii"))
        lines = (group / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):  # there is none, or it is `max`
        return None
    cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{files.cached} ")), 0)
    return (used - cached) / limit if 0 < limit < V1_NONE else None


def _kilobytes(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
