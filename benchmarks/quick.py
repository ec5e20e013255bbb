"""The quick form: the daemon beside its floors, the ratios held to the stored ones. What CI runs."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks import life, load
from benchmarks.daemon import daemon
from benchmarks.processes import CLOCK, Meter, helper
from benchmarks.scenarios import memory

STORED = Path(__file__).with_name("ratios.json")
LIMIT = 2.0
ROUND_LIMIT_S = 60.0
TASKS, ADMISSIONS, STREAMS = 300, 400, 400
STUB_TIMES = 4  # the stub is done too soon to be measured well
Costs = dict[str, dict[str, float]]  # {figure: {peer: cost}}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    floor: str | None  # the daemon's cost is divided by this one's


FIGURES = {
    "B": Figure("20 x 500 tokens, unpaced", "us/token", "copy"),
    "C": Figure("50 x 100 tokens, 20 ms apart", "us/token", "copy"),
    "D": Figure("one-token task: admit, stream", "us/task", "stub"),
    "F": Figure("admission alone", "us/task", "stub"),
    "E idle": Figure("RSS, idle", "MiB", None),
    "E stream": Figure("RSS per running stream", "KiB", None),
}


@dataclass
class Ports:
    """Who listens where. `work` and `held` are the engine's: the latter has one slot, and nothing lets it go."""

    work: int
    held: int
    copy: int
    stub: int
    daemon: int = 0


# -- scenarios ------------------------------------------------------------------------------------------------
async def token_path(pid: int, answers: list[load.Answer], engine: int, pace_ms: int) -> float:
    """CPU from the moment the engine lets all streams go to their ends. Their admission is not in it."""
    await asyncio.gather(*(answer.head for answer in answers))
    await load.call(engine, "GET", f"/gathered?streams={len(answers)}")
    measured = Meter(pid)
    released = await load.call(engine, "POST", f"/go?pace_ms={pace_ms}")
    if released != {"released": len(answers)}:
        raise load.Wrong(f"the engine released {released} instead of {len(answers)} streams")
    await asyncio.gather(*(answer.done for answer in answers))
    return measured.us()


async def through_daemon(pid: int, ports: Ports, streams: int, tokens: int, pace_ms: int) -> float:
    tasks = [load.task("work", "gated", tokens, "interactive") for _ in range(streams)]
    await load.shared(ports.daemon, tasks, load.admit)
    async with load.connections(ports.daemon, streams) as opened:
        asked = zip(opened, tasks, strict=True)
        answers = [c.ask("GET", f"/v1/tasks/{body['task_id']}/stream") for c, body in asked]
        cost = await token_path(pid, answers, ports.work, pace_ms)
        for answer in answers:
            load.check_events(await answer.whole(200), tokens)
    return cost / (streams * tokens)


async def through_copy(pid: int, ports: Ports, streams: int, tokens: int, pace_ms: int) -> float:
    body = {"prompt": "gated", "n_predict": tokens, "stream": True}
    async with load.connections(ports.copy, streams) as opened:
        answers = [connection.ask("POST", "/completion", body) for connection in opened]
        cost = await token_path(pid, answers, ports.work, pace_ms)
        for answer in answers:
            load.check_frames(await answer.whole(200), tokens)
    return cost / (streams * tokens)


async def thrice(run: Callable[[], Awaitable[float]]) -> float:
    """The mean of three: an unpaced run is over too soon to be measured well."""
    return sum([await run() for _ in range(3)]) / 3


async def request_path(
    pid: int, port: int, tasks: list[dict[str, Any]], do: Callable[[load.Connection, dict[str, Any]], Awaitable[None]]
) -> float:
    measured = Meter(pid)
    await load.shared(port, tasks, do)
    return measured.us() / len(tasks)


async def one_round(pids: dict[str, int], ports: Ports, backwards: bool) -> Costs:
    """A fresh daemon, every scenario, the peers in turn."""
    async with daemon({"work": ports.work, "held": ports.held}) as (process, ports.daemon):
        pids = {**pids, "daemon": process.pid}
        memory_of = await memory(life.as_peer(process.pid, ports.daemon, ports.work), STREAMS, 2)
        found: Costs = {f"E {name}": {"daemon": value} for name, value in memory_of.items()}
        small = [load.task("work", "ping", 1, "interactive") for _ in range(TASKS)]
        queued = [load.task("held", "gated", 1, "batch") for _ in range(ADMISSIONS)]
        runs: dict[str, dict[str, Callable[[], Awaitable[float]]]] = {
            "B": {
                "daemon": lambda: thrice(lambda: through_daemon(pids["daemon"], ports, 20, 500, 0)),
                "copy": lambda: thrice(lambda: through_copy(pids["copy"], ports, 20, 500, 0)),
            },
            "C": {
                "daemon": lambda: through_daemon(pids["daemon"], ports, 50, 100, 20),
                "copy": lambda: through_copy(pids["copy"], ports, 50, 100, 20),
            },
            "D": {
                "daemon": lambda: request_path(pids["daemon"], ports.daemon, small, load.admit_and_stream),
                "stub": lambda: request_path(pids["stub"], ports.stub, small * STUB_TIMES, load.admit),
            },
            "F": {
                "daemon": lambda: request_path(pids["daemon"], ports.daemon, queued, load.admit),
                "stub": lambda: request_path(pids["stub"], ports.stub, queued * STUB_TIMES, load.admit),
            },
        }
        for key, peers in runs.items():
            order = list(peers.items())
            for peer, run in reversed(order) if backwards else order:
                found.setdefault(key, {})[peer] = await run()
        return found


async def measure(rounds: int) -> list[Costs]:
    results = []
    async with (
        helper("benchmarks.engine", str(STREAMS), "1") as (_, (work, held)),
        helper("benchmarks.floor", "copy", str(work)) as (copy, (copy_port,)),
        helper("benchmarks.floor", "stub") as (stub, (stub_port,)),
    ):
        ports = Ports(work, held, copy_port, stub_port)
        pids = {"copy": copy.pid, "stub": stub.pid}
        for number in range(rounds):
            async with CLOCK.limit(ROUND_LIMIT_S):
                results.append(await one_round(pids, ports, backwards=bool(number % 2)))
    return results


# -- report ---------------------------------------------------------------------------------------------------
def ratio(figure: Figure, costs: dict[str, float]) -> float:
    return costs["daemon"] / (costs[figure.floor] if figure.floor else 1.0)


def report(results: list[Costs], best: dict[str, float], stored: dict[str, float]) -> None:
    """Print the table and one verdict per ratio."""
    print(f"{'':41}{'daemon':>9}{'floor':>9}  in each round")
    for key, figure in FIGURES.items():
        cost = min(result[key]["daemon"] for result in results)
        floor = f"{min(result[key][figure.floor] for result in results):9.1f}" if figure.floor else " " * 9
        spread = " ".join(f"{ratio(figure, result[key]):.1f}" for result in results)
        print(f"{key:9}{figure.name:32}{cost:9.1f}{floor}  {figure.unit}; {spread}")
    print()
    for key, figure in FIGURES.items():
        what = f"daemon/{figure.floor}" if figure.floor else figure.unit
        was = f"stored {stored[key]:.1f}, limit {LIMIT:g}x" if key in stored else "nothing stored"
        print(f"{key} {what} {best[key]:.1f} ({was}){'  TOO MUCH' if key in slower(best, stored) else ''}")


def slower(best: dict[str, float], stored: dict[str, float]) -> list[str]:
    return [key for key, value in best.items() if key in stored and value >= LIMIT * stored[key]]


def main(rounds: int, store: bool) -> int:
    begun = time.monotonic()
    try:
        results = uvloop.run(measure(max(1, rounds)))
    except (load.Wrong, OSError, TimeoutError) as error:
        print(f"nothing measured: {error or type(error).__name__}", file=sys.stderr)
        return 2
    stored = json.loads(STORED.read_text())["ratios"] if STORED.exists() else {}
    ratios = {key: [ratio(figure, result[key]) for result in results] for key, figure in FIGURES.items()}
    best = {key: min(values) for key, values in ratios.items()}
    report(results, best, stored)
    print(f"\n{len(results)} rounds, {time.monotonic() - begun:.0f} s, no token lost")
    if store:
        about = {"python": platform.python_version(), "machine": platform.machine(), "rounds": len(results)}
        middle = {key: round(median(values), 2) for key, values in ratios.items()}
        STORED.write_text(json.dumps({"about": about, "ratios": middle}, indent=2) + "\n")
        return 0
    return 1 if slower(best, stored) else 0
