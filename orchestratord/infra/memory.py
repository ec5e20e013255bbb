"""Memory of this machine and of single processes, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import os


class ProcMemory:
    """See `ports.HostMemory`."""

    def available(self) -> int | None:
        return _kilobytes("/proc/meminfo", "MemAvailable:")

    def resident(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "VmRSS:")

    def private(self, pid: int) -> int | None:
        return _kilobytes(f"/proc/{pid}/status", "RssAnon:")

    def file_size(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError:
            return 0


def _kilobytes(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
