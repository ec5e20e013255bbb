"""The daemon's core and services in a world a seed decides: order of events, time, faults, clients, crashes.

    python -m tests.sim [--count N] [--seed S] [--jobs J]

Runs the seeds S .. S+N-1 and looks at every invariant after every step. Nothing in it is real but the code under
test: no sockets, threads, disks or clocks. A seed that fails, fails the same way each time; its line says how.
`--twice` runs every seed twice and compares the traces (I27).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from random import Random
from typing import Any, NamedTuple

from tests.invariants import Broken
from tests.sim.clients import bad_luck, everybody
from tests.sim.loop import SimLoop, Stuck, Time
from tests.sim.world import World, reseed


class Outcome(NamedTuple):
    seed: int
    trace: str
    steps: int
    looks: int
    lives: int
    accepted: int
    broken: str | None


def simulate(seed: int, sabotage: Any = None) -> Outcome:
    """One world from its beginning to its rest."""
    warnings.simplefilter("ignore")  # coroutines of a killed daemon are never finished: that is the point
    reseed(seed)
    draw = Random(seed)
    times = Time()
    loop = SimLoop(draw, times)
    asyncio.set_event_loop(loop)
    world = World(draw, loop, times, sabotage, crashes=seed % 4 != 0)
    broken = None

    async def story() -> None:
        world.ours.add(asyncio.current_task())  # type: ignore[arg-type]
        await world.boot()
        luck = world.spawn(bad_luck(world, Random(f"{seed}/luck")))
        people = [world.spawn(one) for one in everybody(world, seed)]
        await asyncio.gather(*people)
        world.healed = True
        await luck
        await world.rest()

    try:
        loop.run_until_complete(story())
    except (Broken, Stuck, AssertionError) as error:
        broken = f"{type(error).__name__}: {str(error) or _where(error)}"
    except Exception as error:
        broken = f"a bug: {error!r}"
    finally:
        if world.daemon is not None:
            world.daemon.dispatch.stop()  # what is ended below gives slots back, and nobody may begin there
        world.watch = world.daemon = None
        _bury(loop)
    accepted = sum(promise.acked for promise in world.promises.values())
    return Outcome(seed, loop.trace, loop.steps, world.looks, world.lives, accepted, broken)


def _where(error: BaseException) -> str:
    """The innermost line of an assertion that says nothing."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno} {frame.line}"


def _bury(loop: SimLoop) -> None:
    """End what is left of the world: a killed daemon's coroutines among it."""
    loop.trace_over()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    with contextlib.suppress(Stuck):
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    asyncio.set_event_loop(None)
    loop.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many seeds (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="the first one (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    if arguments.jobs == 1:
        outcomes = list(map(simulate, seeds))
    else:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            outcomes = list(pool.map(simulate, seeds, chunksize=4))
    failed = [outcome for outcome in outcomes if outcome.broken is not None]
    if arguments.twice:
        again = map(simulate, seeds)
        failed += [a._replace(broken="i27: another trace") for a, b in zip(outcomes, again, strict=True) if a != b]
    for outcome in failed:
        sys.stdout.write(f"seed {outcome.seed}: {outcome.broken}\n")
    total = [sum(getattr(outcome, name) for outcome in outcomes) for name in ("steps", "looks", "lives", "accepted")]
    sys.stdout.write(
        f"seeds {len(outcomes)}, steps {total[0]}, looks {total[1]}, lives {total[2]}, accepted {total[3]}, "
        f"failed {len(failed)}, seconds {time.monotonic() - began:.1f}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
