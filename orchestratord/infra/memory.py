"""Memory of this machine and of single processes, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import os
import resource
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL = 64 * 1024  # bytes: more than any of these files has


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
        groups = _groups(_read(MEMBERSHIP) or "", CGROUPS)
        shares = (_address_space(), *(_cgroup(group, files) for group, files in groups))
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


def _read(path: str | Path) -> str | None:
    """A small file of the kernel's; None if there is none. A quarter of what `Path.read_text` takes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, SMALL).decode("utf-8", errors="replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)  # the same for as long as nobody moves this process
def _groups(membership: str, top: Path) -> tuple[tuple[str, Files], ...]:
    """This process's control groups and those above them, any of which may have a limit.

    A machine may have either version, or both. In a container the path may be one that only its host can see: then the
    topmost folder is the container's own group.
    """
    found: list[tuple[str, Files]] = []
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = top, V2
        elif "memory" in controllers.split(","):
            root, files = top / "memory", V1
        else:
            continue
        own = root / path.lstrip("/")
        found += [(str(each), files) for each in (own, *own.parents) if each == own or each.is_relative_to(root)]
    return tuple(found)


def _cgroup(group: str, files: Files) -> float | None:
    """What cannot be dropped of a group's memory: files that nobody uses do not count."""
    limit = _number(_read(f"{group}/{files.limit}"))
    if limit is None or not 0 < limit < V1_NONE:
        return None  # and nothing else is read: the kernel adds up its figures for whoever asks, and takes long
    used, figures = _number(_read(f"{group}/{files.used}")), _read(f"{group}/memory.stat")
    if used is None or figures is None:
        return None
    cached = next((int(line.split()[1]) for line in figures.splitlines() if line.startswith(f"{files.cached} ")), 0)
    return (used - cached) / limit


def _number(text: str | None) -> int | None:
    """None also for `max`."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _kilobytes(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
