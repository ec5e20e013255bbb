"""What the daemon costs besides tokens: to start, to recover from `kill -9`, to cancel many streams at once."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks import load
from benchmarks.daemon import daemon
from benchmarks.peers import Peer, ask_daemon
from benchmarks.processes import CLOCK, Meter
from benchmarks.scenarios import CLIENTS, SETTLE_S

POLL_S = 0.02
Figures = dict[str, float]


async def start_up(engines: dict[str, int]) -> Figures:
    """From exec to every replica ready, on an empty data directory."""
    begun = time.monotonic()
    async with daemon(engines) as (process, _):
        took = time.monotonic() - begun
        return {"ms": took * 1000, "cpu ms": process_cpu_ms(process.pid)}


async def recovery(engines: dict[str, int], tasks: int) -> Figures:
    """`kill -9` with so many tasks waiting, then a start on the same journal until it is ready and has them all."""
    with tempfile.TemporaryDirectory(prefix="orchestratord-bench-") as name:
        folder = Path(name)
        bodies = [load.task("held", "gated", 1, "batch") for _ in range(tasks)]
        async with daemon(engines, folder) as (process, port):
            await load.shared(port, bodies, load.admit, CLIENTS)
            process.kill()
            await process.wait()
        begun = time.monotonic()
        async with daemon(engines, folder) as (process, port):
            took, used = time.monotonic() - begun, process_cpu_ms(process.pid)
            for body in (bodies[0], bodies[-1]):
                status = await load.call(port, "GET", f"/v1/tasks/{body['task_id']}")
                if status["state"] not in ("queued", "starting", "running"):
                    raise load.Wrong(f"a recovered task is {status['state']}")
    return {"tasks": tasks, "ms": took * 1000, "cpu ms": used}


async def cancel_storm(peer: Peer, streams: int) -> Figures:
    """All streams flow, and all are cancelled at once: until each is answered, each stream has ended, and the engine
    has its slots back."""
    ids: list[str] = []

    async def begin(connection: load.Connection) -> load.Answer:
        body = load.task("work", "paced 20", 4000, "interactive")
        await load.admit(connection, body)
        ids.append(body["task_id"])
        return connection.ask("GET", f"/v1/tasks/{body['task_id']}/stream")

    async def cancel(connection: load.Connection, task_id: str) -> None:
        begun = time.monotonic()
        await connection.ask("POST", f"/v1/tasks/{task_id}/cancel").whole(204)
        waits.append((time.monotonic() - begun) * 1000)

    waits: list[float] = []
    async with load.connections(peer.port, streams) as opened:
        answers = await asyncio.gather(*(begin(connection) for connection in opened))
        while not all(b"event: token" in answer.body for answer in answers):
            await CLOCK.sleep(POLL_S)
        meter, begun = Meter(peer.pid), time.monotonic()
        await load.shared(peer.port, ids, cancel, CLIENTS)
        bodies = await asyncio.gather(*(answer.whole(200) for answer in answers))
        ended = time.monotonic() - begun
        while any(slot["is_processing"] for slot in await load.call(peer.engine, "GET", "/slots")):
            await CLOCK.sleep(POLL_S)
        free = time.monotonic() - begun
        await CLOCK.sleep(SETTLE_S)
        used = meter.us()
    if not all(b'"finish_reason":"canceled"' in body[-400:] for body in bodies):
        raise load.Wrong("a cancelled stream did not end as such")
    return {
        "streams": streams,
        "cpu us each": used / streams,
        "answer p50 ms": sorted(waits)[len(waits) // 2],
        "answer max ms": max(waits),
        "all ended ms": ended * 1000,
        "engine free ms": free * 1000,
    }


def process_cpu_ms(pid: int) -> float:
    """Of its whole life so far."""
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e6


def as_peer(pid: int, port: int, engine: int) -> Peer:
    return Peer("orchestratord", pid, port, engine, ask_daemon, load.check_events)
