"""Processes that are measured: started, found again in /proc, ended with whoever started them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import load
from orchestratord.infra.clock import SystemClock

ROOT = Path(__file__).parents[1]
START_S = 20.0
CLOCK = SystemClock()


class Meter:
    """CPU of a process and its children: the counters behind /proc/PID/stat, in nanoseconds instead of ticks."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = self._cpu_ns()

    def us(self) -> float:
        return (self._cpu_ns() - self._begun) / 1000

    def _cpu_ns(self) -> int:
        return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in (self._pid, *children(self._pid)))


def children(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, listed.read_text().split()):
            found += [child, *children(child)]
    return found


def rss_kib(pid: int) -> int:
    status = "".join(Path(f"/proc/{p}/status").read_text() for p in (pid, *children(pid)))
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@asynccontextmanager
async def running(
    *command: str, stdout: int | None = None, stderr: int | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """A process that ends with the block, or with this process."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHD_", "AUTH_"))}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**environ, **(env or {})},
        stdout=stdout,
        stderr=stderr,
        preexec_fn=_die_with_parent,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def helper(*command: str) -> AsyncIterator[tuple[Process, list[int]]]:
    """A Python module of ours that prints its ports once it listens."""
    async with running(sys.executable, "-m", *command, stdout=PIPE) as process:
        assert process.stdout is not None
        async with CLOCK.limit(START_S):
            line = await process.stdout.readline()
        if not line:
            raise load.Wrong(f"{' '.join(command)} did not start")
        yield process, [int(port) for port in line.split()]
