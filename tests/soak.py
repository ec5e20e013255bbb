"""Hundreds of thousands of tasks through one daemon: nothing may grow with their number.

    python -m tests.soak [--count N] [--seed S]

The real daemon over HTTP on loopback, mock engine, journal and artifacts on disk, retention cut down so that its steady
state is reached early. What each client does follows from the seed: read to the end, leave, cancel, never read, ask
again. The tasks that are kept when it is looked are all alike, each read to its end, so that logs compare. Samples at
every 5 % show memory, descriptors, asyncio tasks, leases, sessions, logs and journal. Fails when memory grows by more
than 1 MB per 100,000 tasks over the last 80 %, or when anything countable at 100 % is more than it was at 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import uvloop

from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.support import wait_for

CLIENTS = 16
KEPT = 500  # ended tasks the daemon keeps
ALIKE = KEPT + 10 * CLIENTS  # the last tasks of a part: clients are not equally far
SLOPE_MB = 1.0  # per 100,000 tasks
SHORT_RUN = 100_000  # tasks: too few for a slope, since allocators move in steps
SHORT_RUN_MB = 4.0  # of growth that such a run may show


class Sample(NamedTuple):
    done: int
    rss_mb: float
    descriptors: int
    asyncio_tasks: int
    leases: int
    tasks: int
    sessions: int
    log_kb: int
    cursors: int
    journal_mb: float
    objects: int
    blocks: int


class Client:
    """One connection that is kept, as good clients do."""

    def __init__(self, url: str, seed: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._ids = Random(seed)
        self._draw = Random(seed)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request on the kept connection."""
        if self._stream is None:
            self._stream = await asyncio.open_connection(*self._address)
        reader, writer = self._stream
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{head}\r\n".encode() + data)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:-2])
        return int(answer.split(b" ", 2)[1]), await reader.readexactly(int(fields.get(b"content-length", b"0")))

    async def read(self, task_id: str, leave_after: int | None) -> None:
        """A stream on a connection of its own; left in the middle if so wanted."""
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(
            f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        seen = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                seen += data.count(b"event: token")
                if leave_after is not None and seen >= leave_after:
                    break
        writer.transport.abort() if self._draw.random() < 0.5 else writer.close()

    async def live(self, numbers: Callable[[], int | None]) -> None:
        """Tasks as drawn while numbers, which count down, are high; in the end tasks that are all alike."""
        draw, ids = self._draw, self._ids
        while (left := numbers()) is not None:
            alike = left < ALIKE
            body = {
                "task_id": str(uuid.UUID(int=ids.getrandbits(128), version=4)),
                "session_id": str(uuid.UUID(int=ids.getrandbits(128), version=4)),
                "workload": "completion",
                "model_ref": "home",
                "engine": "llamacpp",
                "ctx": 512,
                "priority": draw.choice(["interactive", "batch"]),
                "max_tokens": 8 if alike else draw.randint(1, 12),
                "deadline_ms": 600_000,
                "prompt": "soak",
            }
            status, text = await self.ask("POST", "/v1/tasks", body)
            assert status == 202, text
            path = f"/v1/tasks/{body['task_id']}"
            way = 0.0 if alike else draw.random()
            if way < 0.6:
                await self.read(body["task_id"], None)
            elif way < 0.7:
                await self.read(body["task_id"], draw.randint(0, 6))
            elif way < 0.85:
                status, text = await self.ask("POST", f"{path}/cancel")
                assert status == 204, text
            elif way < 0.9:
                await self.ask("POST", "/v1/tasks", body)
                await self.ask("DELETE", f"/v1/sessions/{body['session_id']}")
            elif way < 0.95:
                await self.ask("GET", path)
                await self.ask("GET", "/metrics")


def sample(app: LiveApp, folder: Path, done: int) -> Sample:
    daemon, process = app.daemon, psutil.Process()
    gc.collect()
    return app.call(
        lambda: Sample(
            done,
            process.memory_info().rss / 1e6,
            process.num_fds(),
            len(asyncio.all_tasks()),
            sum(len(pool.leases) for pool in daemon.core.pools.values()),
            len(daemon.core.tasks),
            len(daemon.core.sessions),
            daemon.core.tasks.log_bytes // 1000,
            daemon.streams.open_cursors,
            sum(file.stat().st_size for file in folder.glob("journal.db*")) / 1e6,
            len(gc.get_objects()),
            sys.getallocatedblocks(),
        )
    )


async def load(app: LiveApp, count: int, seed: int, look: Callable[[int], Awaitable[None]]) -> None:
    """`count` tasks by all clients together; between two parts everything comes to rest and is looked at."""
    clients = [Client(app.url, f"{seed}/{number}") for number in range(CLIENTS)]
    for part in range(20):
        share = iter(reversed(range(count * (part + 1) // 20 - count * part // 20)))
        await asyncio.gather(*(client.live(lambda share=share: next(share, None)) for client in clients))
        await look(count * (part + 1) // 20)


def slope(samples: list[Sample]) -> float:
    """MB per 100,000 tasks, by least squares."""
    xs, ys = [s.done / 100_000 for s in samples], [s.rss_mb for s in samples]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def findings(samples: list[Sample]) -> list[str]:
    found = []
    early, last = samples[1], samples[-1]  # 10 % and 100 %
    for name in ("descriptors", "asyncio_tasks", "leases", "cursors", "log_kb", "tasks", "sessions"):
        before, after = getattr(early, name), getattr(last, name)
        if after > before * 1.02 + 3:
            found.append(f"{name}: {before} at 10 %, {after} at 100 %")
    if last.leases or last.cursors:
        found.append(f"{last.leases} leases and {last.cursors} cursors are left")
    if last.journal_mb > 64:
        found.append(f"the journal has {last.journal_mb:.0f} MB")
    rest = samples[4:]
    grown = rest[-1].rss_mb - rest[0].rss_mb
    if slope(rest) > SLOPE_MB and (last.done >= SHORT_RUN or grown > SHORT_RUN_MB):
        found.append(f"memory grows by {slope(rest):.2f} MB per 100,000 tasks")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200_000, help="tasks (default 200000)")
    parser.add_argument("--seed", type=int, default=1, help="decides what each client does (default 1)")
    arguments = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    sys.setswitchinterval(0.0005)
    began = time.monotonic()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = mock_settings(
            Path(folder),
            pools=[mock_pool(slots=8, capacity=256)],
            retention={"tasks": KEPT, "tasks_ms": 600_000},
            sessions={"ttl_ms": 1000},
            streams={"disconnect_grace_ms": 50},
            artifacts={"transcripts": "off"},
        )
        app = LiveApp(settings, manual=False)
        app.log.write = lambda text: len(text)  # type: ignore[method-assign]
        app.ledger._entries = deque(maxlen=0)  # type: ignore[assignment] - else the books of the tests are the leak

        async def look(done: int) -> None:
            loop = asyncio.get_running_loop()
            for _ in range(300):
                if await loop.run_in_executor(None, lambda: app.call(lambda: at_rest(app))):
                    break
                await loop.run_in_executor(None, time.sleep, 0.05)  # noqa: TID251 - real time passes in the daemon
            samples.append(await loop.run_in_executor(None, sample, app, Path(folder), done))
            figures = samples[-1]._asdict().items()
            sys.stdout.write("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures))
            sys.stdout.write("\n")
            sys.stdout.flush()

        with app:
            wait_for(lambda: not app.call(app.daemon.pools.not_ready), "the pool is ready")
            uvloop.run(load(app, arguments.count, arguments.seed, look))
    found = findings(samples)
    for line in found:
        sys.stdout.write(f"{line}\n")
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"tasks {arguments.count}, memory slope {slope(samples[4:]):.2f} MB per 100,000, findings {len(found)}, "
        f"seconds {seconds:.0f}, tasks/s {arguments.count / seconds:.0f}\n"
    )
    return 1 if found else 0


def at_rest(app: LiveApp) -> bool:
    """Nothing is left to do, and retention has been through."""
    core = app.daemon.core
    core.forget(app.daemon.clock.now())
    busy = any(len(pool.leases) or len(pool.queue) for pool in core.pools.values())
    return not busy and not app.daemon.streams.open_cursors and not len(core.sessions)


if __name__ == "__main__":
    sys.exit(main())
