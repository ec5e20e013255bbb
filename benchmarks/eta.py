"""How good the estimates are: a simulation over the real core, in virtual time.

Every task goes through `Core.admit`, `dispatch` and `finish` as in the daemon; only the engine is a model: prefill
plus output tokens, with noise, slower the more slots are busy. What the core predicted at admission is held against
what came. docs/estimates.md defines the figures and keeps a recorded run.

    python -m benchmarks.eta [--seeds N] [--write]
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import count, product
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from orchestratord.domain import forecast
from orchestratord.domain.core import Core
from orchestratord.domain.errors import DeadlineUnmet
from orchestratord.domain.facts import Fact
from orchestratord.domain.hooks import Hooks, Limits, Sized
from orchestratord.domain.outcome import Usage
from orchestratord.domain.pool import Lease, PoolSpec, Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.request import Caller, Priority, TaskRequest
from orchestratord.domain.task import Task

DOC = Path(__file__).parents[1] / "docs" / "estimates.md"
SLOTS = (1, 2, 4, 8)
TASKS = 400  # admissions in one run
TOKEN_MS, PREFILL_MS = 10.0, 60.0  # of a task that has the engine to itself
CROWD = 0.1  # how much each other busy slot slows a task
LENIENT_MS = 7 * 86_400_000
ESTIMATE, PER_POSITION, LAST_WAITS = "estimate", "100 ms per position", "mean of the last 20 waits"
PREDICTORS = (ESTIMATE, PER_POSITION, LAST_WAITS)
BAR_MEDIAN, BAR_BRIER = 0.35, 0.18  # under steady load


class Done:
    """A ticket that is durable at once."""

    def exception(self) -> None:
        return None

    def result(self) -> None:
        return None

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        fn(self)


@dataclass(frozen=True, slots=True)
class Job:
    """What a client submits, and what only the engine knows of it: its length, and its work alone on the engine."""

    asked: int
    length: int
    work_ms: float
    expected: int | None
    priority: Priority

    @property
    def usual_ms(self) -> float:
        """What a client thinks that such a task takes."""
        return 0.65 * self.asked * TOKEN_MS if self.asked < CEILING else 220 * TOKEN_MS


@dataclass(slots=True)
class Seen:
    """One admitted task: what was predicted, and what came. Milliseconds."""

    predicted: dict[str, float]
    deadline: float  # what `chance` and `on_time` are about
    chance: float
    feasible: bool  # admission takes a task with that deadline
    waited: bool  # no slot was free for it at once
    later: float | None = None  # its chance at a random moment before the deadline, if it was open then
    real: float = 0.0
    on_time: bool = False


@dataclass(slots=True)
class Run:
    seen: list[Seen] = field(default_factory=list)
    services: list[float] = field(default_factory=list)
    refused: int = 0


# -- lengths -----------------------------------------------------------------------------------------------
CEILING = 2048


def _job(rng: Random, asked: int, length: float, priority: Priority, expected: int | None = None) -> Job:
    tokens = max(1, min(asked, round(length)))
    work = PREFILL_MS * rng.lognormvariate(0, 0.5) + tokens * TOKEN_MS * rng.lognormvariate(0, 0.1)
    return Job(asked, tokens, work, expected, priority)


def plain(rng: Random, priority: Priority = "interactive") -> Job:
    """Clients that ask for about what they need: three in ten use all of it, the others 50 % +- 22 %."""
    asked = rng.choice((64, 128, 256, 512))
    return _job(rng, asked, asked * (1.0 if rng.random() < 0.3 else rng.betavariate(2, 2)), priority)


def mixed(rng: Random) -> Job:
    """Log-normal lengths under a ceiling that says nothing; four in ten bring a hint, 20 % too high and 25 % noisy."""
    length = rng.lognormvariate(5.0, 0.9)
    hint = max(1, min(CEILING, round(length * 1.2 * rng.lognormvariate(0, 0.25)))) if rng.random() < 0.4 else None
    return _job(rng, CEILING, length, "interactive", hint)


# -- the simulated daemon ------------------------------------------------------------------------------------
class Sim:
    """One pool under one load, with an engine whose slots slow each other down."""

    def __init__(self, slots: int, rng: Random, *, enforce: bool = False) -> None:
        self.rng, self.slots, self.enforce = rng, slots, enforce
        self.now = 1000.0
        self.speed = 1.0
        self.run = Run()
        self.admissions = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = count()
        self._jobs: dict[str, tuple[Job, Callable[[], None] | None]] = {}
        self._open: dict[str, Seen] = {}
        self._running: dict[Lease, float] = {}  # work left
        self._waits: deque[float] = deque(maxlen=20)
        hooks = Hooks(
            record=self._record,
            encode=lambda *_: b"frame",
            tokens=lambda event_id, texts, index: [b""] * len(texts),
            token_form=b"%d%b%d",
            quote=lambda text: b"",
            abort=self._abort,
            wake=lambda: None,
            admitted=lambda _: None,
            ended=lambda task, phase, reason: self._ended(task),
            archive=lambda *_: None,
        )
        spec = PoolSpec("p", "llamacpp", "mock", "m", queue=QueueSpec(100_000))
        self.core = Core([spec], Limits(retain_tasks=0, transcripts=False), hooks)
        self.pool = self.core.pools["p"]
        self.core.add_replica("p", Replica("r0"))
        self.core.replica_ready(
            "p", self.pool.replicas["r0"], slots=slots, ctx=4096, workloads=frozenset({"completion"})
        )

    @staticmethod
    def _record(fact: Fact) -> Done:
        return Done()

    @property
    def wall_ms(self) -> int:
        return int(self.now * 1000)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._ids), what))

    def submit(self, job: Job, then: Callable[[], None] | None = None) -> None:
        """Admit `job`; `then` is called when it is over, or refused."""
        self.admissions += 1
        name = f"t{self.admissions}"
        usual_wait = fmean(self._waits) if self._waits else 0.0
        position = forecast.position(self.pool, job.priority)
        waits = len(self.pool.leases) + position >= self.slots
        # half of the clients go by the waits they see, half by the queue they see
        guess = job.usual_ms + (usual_wait if self.rng.random() < 0.5 else job.usual_ms * position / self.slots)
        deadline = max(20, int(guess * self.rng.lognormvariate(0.2, 0.5)))
        limit = deadline if self.enforce else LENIENT_MS
        request = TaskRequest(
            name, name, "completion", "m", "llamacpp", 4096, job.priority, job.asked, limit,
            prompt="x", expected_tokens=job.expected,
        )  # fmt: skip
        self._jobs[name] = (job, then)
        end = forecast.start_ms(self.pool, job.priority) + self.pool.service.estimate_ms(request)
        try:
            task, _ = self.core.admit(Sized(request, b"", 1, 1, None, Caller("c", "l")), self.now, self.wall_ms)
        except DeadlineUnmet:
            self.run.refused += 1
            del self._jobs[name]
            if then is not None:
                self.at(self.now, then)
            return
        predicted = {
            ESTIMATE: float(task.admitted.admission.predicted_start_ms),
            PER_POSITION: 100.0 * position,
            LAST_WAITS: usual_wait,
        }
        self._open[name] = Seen(predicted, deadline, self._chance(task, deadline), end <= deadline, waits)
        self.at(self.now + self.rng.random() * deadline / 1000, lambda: self._look_again(task))

    def _chance(self, task: Task, deadline: float) -> float:
        """What the core would say if `deadline` were the task's."""
        kept, task.deadline = task.deadline, task.created + deadline / 1000
        chance = forecast.on_time_probability(self.pool, task, self.now)
        task.deadline = kept
        return chance

    def _look_again(self, task: Task) -> None:
        seen = self._open.get(task.task_id)
        if seen is not None:
            seen.later = self._chance(task, seen.deadline)

    def _dispatch(self) -> None:
        for lease in self.core.dispatch(self.now, self.wall_ms):
            self._running[lease] = self._jobs[lease.task.task_id][0].work_ms
            self._waits.append((self.now - lease.task.created) * 1000)

    def _abort(self, lease: Lease) -> None:
        """The deadline stopped a running task: its slot is free at once."""
        if self._running.pop(lease, None) is not None:
            self.core.finish(lease, self.now, self.wall_ms, finish_reason="canceled")

    def _ended(self, task: Task) -> None:
        _, then = self._jobs.pop(task.task_id)
        seen = self._open.pop(task.task_id)
        seen.on_time = task.failure is None and (self.now - task.created) * 1000 <= seen.deadline
        if task.started is None:
            seen.waited = False  # nobody knows how long it would have been
        else:
            seen.real = (task.started - task.created) * 1000
            if task.failure is None:
                self.run.services.append((self.now - task.started) * 1000)
        self.run.seen.append(seen)
        if then is not None:
            self.at(self.now, then)

    def go(self) -> Run:
        """Until every event has happened and every task is over."""
        while self._events or self._running:
            pace = 1000 * self.speed / (1 + CROWD * (len(self._running) - 1))  # work of each task in a second
            first = min(self._running, key=self._running.__getitem__, default=None)
            end = inf if first is None else self.now + self._running[first] / pace
            due = self._events[0][0] if self._events else inf
            expiry = (self.core.tasks.next_deadline() or inf) if self.enforce else inf
            then = min(end, due, expiry)
            done = (then - self.now) * pace
            for lease in self._running:
                self._running[lease] -= done
            self.now = then
            if first is not None and then == end:
                del self._running[first]
                usage = Usage(1, self._jobs[first.task.task_id][0].length, 0)
                self.core.finish(first, self.now, self.wall_ms, finish_reason="stop", usage=usage)
            elif then == due:
                heappop(self._events)[2]()
            else:
                self.core.expire(self.now, self.wall_ms)
            self._dispatch()
        return self.run


# -- load shapes ---------------------------------------------------------------------------------------------
def gap_s(sim: Sim, make: Callable[[Random], Job], load: float) -> float:
    """Mean time between arrivals that keeps the slots busy for the share `load`."""
    probe = Random(1)
    mean = fmean(make(probe).work_ms for _ in range(2000))
    return mean * (1 + CROWD * (sim.slots - 1)) / sim.slots / load / 1000


def poisson(sim: Sim, make: Callable[[Random], Job], load: float, tasks: int = TASKS) -> float:
    """Independent arrivals; gives the time of the last one."""
    mean, when = gap_s(sim, make, load), sim.now
    for _ in range(tasks):
        when += sim.rng.expovariate(1 / mean)
        sim.at(when, lambda: sim.submit(make(sim.rng)))
    return when


def all_over(number: int, then: Callable[[], None]) -> Callable[[], None]:
    """To be called once for each of `number` tasks; the last call calls `then`."""
    left = number

    def one_over() -> None:
        nonlocal left
        left -= 1
        if not left:
            then()

    return one_over


def steady(sim: Sim) -> None:
    """Independent arrivals at 80 %."""
    poisson(sim, plain, 0.8)


def bursty(sim: Sim) -> None:
    """Ten agents; each submits three to eight tasks at once, waits for all of them, thinks, and again."""
    think = 10 * 5.5 * gap_s(sim, plain, 0.8)

    def agent() -> None:
        if sim.admissions < TASKS:
            burst = sim.rng.randint(3, 8)
            one_over = all_over(burst, think_it_over)
            for _ in range(burst):
                sim.submit(plain(sim.rng), one_over)

    def think_it_over() -> None:
        sim.at(sim.now + sim.rng.expovariate(1 / think), agent)

    for _ in range(10):
        think_it_over()


def long_batch(sim: Sim) -> None:
    """Interactive arrivals at 40 %, and a hundred batch tasks at once, three times, each when the last are done."""
    poisson(sim, plain, 0.4, TASKS // 2)
    left = 3

    def backlog() -> None:
        nonlocal left
        left -= 1
        one_over = all_over(100, come_back if left else lambda: None)
        for _ in range(100):
            sim.submit(plain(sim.rng, "batch"), one_over)

    def come_back() -> None:
        sim.at(sim.now + 10.0, backlog)

    come_back()


def mixed_lengths(sim: Sim) -> None:
    """Log-normal lengths at 80 %, some with hints."""
    poisson(sim, mixed, 0.8)


def speed_change(sim: Sim) -> None:
    """Halfway an engine at 45 % of its load becomes so slow that it is at 80 %."""
    last = poisson(sim, plain, 0.45)

    def slower() -> None:
        sim.speed = 0.45 / 0.8

    sim.at(sim.now + (last - sim.now) / 2, slower)


def enforced(sim: Sim) -> None:
    """Arrivals at 120 % whose deadlines are real: refused at admission, ended when they pass."""
    poisson(sim, plain, 1.2)


SHAPES: dict[str, Callable[[Sim], None]] = {
    "steady": steady,
    "bursty agents": bursty,
    "long batch": long_batch,
    "mixed lengths": mixed_lengths,
    "speed change": speed_change,
    "real deadlines": enforced,
}


def one(shape: str, slots: int, seed: int) -> tuple[str, int, Run]:
    sim = Sim(slots, Random(f"{shape} {slots} {seed}"), enforce=shape == "real deadlines")
    SHAPES[shape](sim)
    return shape, slots, sim.go()


# -- figures -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Errors:
    """Of one predictor over the tasks that had to wait; docs/estimates.md has the definitions."""

    tasks: int
    median: float
    p90: float
    bare: float  # median of |predicted - real| / real, nothing below the line
    services: float  # median absolute error in mean service times


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[int(q * len(values))] if values else 0.0


def errors(runs: Sequence[Run], who: str) -> Errors:
    relative, bare, services = [], [], []
    for run in runs:
        mean = fmean(run.services)
        for seen in run.seen:
            if seen.waited:
                off = abs(seen.predicted[who] - seen.real)
                relative.append(off / max(seen.real, mean))
                bare.append(off / max(seen.real, 1.0))
                services.append(off / mean)
    return Errors(
        len(bare), quantile(relative, 0.5), quantile(relative, 0.9), quantile(bare, 0.5), quantile(services, 0.5)
    )


Chance = tuple[float, bool]  # what was said, and what came


@dataclass(frozen=True, slots=True)
class Score:
    base: float  # share on time
    brier: float

    @property
    def constant(self) -> float:
        """The Brier score of always saying the base rate, which nobody knows beforehand."""
        return self.base * (1 - self.base)


def score(chances: Sequence[Chance]) -> Score:
    return Score(fmean(came for _, came in chances), fmean((said - came) ** 2 for said, came in chances))


def reliability(chances: Sequence[Chance]) -> Iterator[tuple[int, float, float]]:
    """(tasks, mean chance, share on time) for ten bins of equal width."""
    for tenth in range(10):
        here = [chance for chance in chances if min(9, int(chance[0] * 10)) == tenth]
        yield len(here), fmean(said for said, _ in here) if here else 0.0, fmean(c for _, c in here) if here else 0.0


def at_admission(runs: Sequence[Run]) -> list[Chance]:
    return [(seen.chance, seen.on_time) for run in runs for seen in run.seen]


def feasible(runs: Sequence[Run]) -> list[Chance]:
    return [(seen.chance, seen.on_time) for run in runs for seen in run.seen if seen.feasible]


def later(runs: Sequence[Run]) -> list[Chance]:
    return [(seen.later, seen.on_time) for run in runs for seen in run.seen if seen.later is not None]


def row(*cells: object) -> str:
    return f"| {' | '.join(f'{c:.2f}' if isinstance(c, float) else str(c) for c in cells)} |"


def report(results: dict[tuple[str, int], list[Run]]) -> Iterator[str]:
    """The tables of docs/estimates.md."""
    everything = [run for runs in results.values() for run in runs]
    groups = {shape: [run for (s, _), runs in results.items() if s == shape for run in runs] for shape in SHAPES}
    groups["all"] = everything
    by_slots = {f"steady, {slots} slot{'s' * (slots > 1)}": results["steady", slots] for slots in SLOTS}
    yield "| load | waited | median | p90 | bare | services | per position: median | p90 | last 20: median | p90 |"
    yield "|---|" + "---:|" * 9
    for name, runs in (groups | by_slots).items():
        own, per_position, last = (errors(runs, who) for who in PREDICTORS)
        yield row(
            name, own.tasks, own.median, own.p90, own.bare, own.services,
            per_position.median, per_position.p90, last.median, last.p90,
        )  # fmt: skip
    yield ""
    yield "| load | base rate | Brier | constant | admissible: Brier | constant | later: Brier | constant |"
    yield "|---|" + "---:|" * 7
    for name, runs in groups.items():
        first, taken, then = score(at_admission(runs)), score(feasible(runs)), score(later(runs))
        figures = first.brier, first.constant, taken.brier, taken.constant, then.brier, then.constant
        yield row(name, first.base, *(f"{figure:.3f}" for figure in figures))
    yield ""
    yield "| chance said | at admission | mean said | on time | later | mean said | on time |"
    yield "|---|" + "---:|" * 6
    pairs = zip(reliability(at_admission(everything)), reliability(later(everything)), strict=True)
    for tenth, (first_bin, later_bin) in enumerate(pairs):
        yield row(f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", *first_bin, *later_bin)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eta", description="How good the estimates are.")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each load with each number of slots")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/estimates.md")
    options = parser.parse_args()
    cases = product(SHAPES, SLOTS, range(options.seeds))
    results: dict[tuple[str, int], list[Run]] = {}
    with ProcessPoolExecutor() as workers:
        for shape, slots, run in workers.map(one, *zip(*cases, strict=True), chunksize=8):
            results.setdefault((shape, slots), []).append(run)
    tables = "\n".join(report(results))
    print(tables)
    if options.write:
        day = f"{datetime.now(UTC):%d %B %Y}".lstrip("0")
        said = (
            f"{day}, CPython {platform.python_version()}, `python -m benchmarks.eta --seeds {options.seeds} --write`:"
        )
        text = f"<!-- figures -->\n{said}\n\n{tables}\n<!-- end of figures -->"
        page = re.sub(r"<!-- figures -->.*<!-- end of figures -->", lambda _: text, DOC.read_text(), flags=re.DOTALL)
        DOC.write_text(page)
    runs = [run for slots in SLOTS for run in results["steady", slots]]
    median, chance = errors(runs, ESTIMATE).median, score(at_admission(runs))
    held = median <= BAR_MEDIAN and chance.brier <= min(BAR_BRIER, chance.constant)
    print(f"steady: median {median:.2f} (bar {BAR_MEDIAN}), Brier {chance.brier:.3f} (bar {BAR_BRIER})")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
