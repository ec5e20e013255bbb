"""Engines that are killed, frozen, slowed down and that lie, under load; then the checker judges what clients saw.

`python -m tests.chaos --count 1000 --seed 1`. Real llama-servers with a tiny model run as supervised children and are
killed (SIGKILL), frozen (SIGSTOP, for a moment or until somebody does something about it) and slowed (stopped and
continued all the time) while tasks run on them. Scripted ones are healthy by all they say and lie to single tasks. At
least `count` tasks, and at least a twentieth as many faults of each kind. A task counts under the last fault it met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import uvloop

from orchestratord.testing.checker import Finding, TaskRecord, check
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.lying_llama import CTX, LIES, SLOTS, LyingLlama, lying_llama
from tests.races import TRIES, Http, Plan, Races, watch_leases

KINDS = ("killed", "frozen", "slowed")
REAL, LIARS = 3, 2
CLIENTS = 12
DEADLINE_MS = 60_000
HUNG_S = DEADLINE_MS / 1000 + 30  # real time after which a client counts as hung
READY_S = 120.0
LETS_GO_S = 10.0
HONEST = frozenset({"WORKER_RESET", "DECODE_TIMEOUT", "REPLICA_EXHAUSTED", "DEADLINE_UNMET"})
FATAL = frozenset({"garbage", "too many", "too few", "no end", "error", "late silence", "drip"})  # such a task fails


def make_plan(seed: int, number: int) -> Plan:
    draw = Random(f"{seed}/{number}")
    liar = draw.random() < 0.5
    lie = f" lie {draw.choice(LIES)};" if liar and draw.random() < 0.6 else ""
    tokens = draw.randint(10, 40) if liar else draw.randint(40, 250)
    body = {
        "task_id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
        "session_id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
        "workload": "completion",
        "model_ref": "liars" if liar else "real",
        "engine": "llamacpp",
        "ctx": CTX,
        "priority": draw.choice(["interactive", "batch"]),
        "max_tokens": tokens,
        "deadline_ms": DEADLINE_MS,
        "prompt": f"ba fi {number}{lie}",
        "on_disconnect": "continue",
    }
    cancels = draw.random() < (0.5 if "clings" in lie else 0.1)
    return Plan(
        body=body,
        way="cancel" if cancels else draw.choice(["resume", "alone"]),
        moment="while reading",
        point=draw.randint(2, tokens),
        cancels=1,
        leaves=(draw.randint(1, tokens),),
        by_header=True,
        reset=draw.random() < 0.5,
        second_reader=draw.random() < 0.2,
    )


class Chaos(Races):
    """Clients who take a refusal for what it is, and come back."""

    async def _submit(self, plan: Plan) -> int:
        status = 0
        for _ in range(TRIES):
            status, _, answer = await self.http.ask("POST", "/v1/tasks", plan.body)
            if status not in (429, 503) or not answer["retriable"]:
                break
            self.tally.refused += 1
            await self.clock.sleep(min(1.0, answer.get("retry_after_ms", 500) / 1000))
        return status

    async def _play(self, plan: Plan, task: TaskRecord) -> None:
        try:
            async with self.clock.limit(HUNG_S):
                await super()._play(plan, task)
        except TimeoutError:
            self.tally.odd.append(f"{task.task_id}: its client hung")


@dataclass(slots=True)
class Faults:
    """Hurts real engines while tasks run on them."""

    app: LiveApp
    draw: Random
    wanted: int
    chaos: Chaos
    told: dict[str, str]  # prompt -> lie, of the scripted engines
    done: Counter[str] = field(default_factory=Counter)
    hit: dict[str, str] = field(default_factory=dict)  # task id -> kind of the last fault
    hurting: set[asyncio.Task[None]] = field(default_factory=set)
    hurt: set[int] = field(default_factory=set)  # pids that something is done to

    @property
    def enough(self) -> bool:
        told = Counter(self.told.values())
        hurt = all(self.done[kind] >= self.wanted for kind in KINDS)
        return hurt and all(told[lie] >= self.wanted for lie in LIES)

    async def rage(self) -> None:
        while True:
            await self.chaos.clock.sleep(self.draw.uniform(0.02, 0.2))
            kind = min(KINDS, key=lambda each: (self.done[each], self.draw.random()))
            pid = await asyncio.to_thread(self.app.call, self._victim)
            if pid is not None:
                await self._mark(kind, pid)
                self.done[kind] += 1
                self.hurt.add(pid)
                job = asyncio.ensure_future(self._hurt(kind, pid))
                self.hurting.add(job)
                job.add_done_callback(self.hurting.discard)

    async def _mark(self, kind: str, pid: int) -> None:
        """Tasks the engine has now, also those that came to it after the fault began."""
        self.hit.update(dict.fromkeys(await asyncio.to_thread(self.app.call, lambda: self._tasks(pid)), kind))

    def _tasks(self, pid: int) -> list[str]:
        members = self.app.daemon.replicas._members.values()
        found = [m.replica for m in members if m.process is not None and m.process.pid == pid]
        return [lease.task.task_id for replica in found for lease in replica.leases.values()]

    def _victim(self) -> int | None:
        """An engine that works."""
        members = self.app.daemon.replicas._members.values()
        able = [m for m in members if m.process is not None and m.process.pid not in self.hurt and m.replica.leases]
        if not able:
            return None
        victim = self.draw.choice(able)
        assert victim.process is not None
        return victim.process.pid

    async def _hurt(self, kind: str, pid: int) -> None:
        clock = self.chaos.clock
        with contextlib.suppress(ProcessLookupError):
            if kind == "killed":
                os.kill(pid, signal.SIGKILL)
            elif kind == "frozen":
                os.kill(pid, signal.SIGSTOP)
                for _ in range(self.draw.choice([1, 5, 10, 200])):
                    await clock.sleep(0.1)
                    await self._mark(kind, pid)
                os.kill(pid, signal.SIGCONT)
            else:
                for _ in range(30):
                    os.kill(pid, signal.SIGSTOP)
                    await clock.sleep(0.04)
                    await self._mark(kind, pid)
                    os.kill(pid, signal.SIGCONT)
                    await clock.sleep(0.01)
        self.hurt.discard(pid)

    async def rest(self) -> None:
        for job in self.hurting:
            job.cancel()
        await asyncio.gather(*self.hurting, return_exceptions=True)
        for pid in self.hurt:  # whoever froze it did not wake it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def settings_for(model: Path, urls: list[str], data: Path) -> Any:
    process = {"model_path": str(model), "slots": SLOTS, "ctx": CTX, "threads": 1}
    replicas = {
        "real": [{"id": f"real{n}", "process": process} for n in range(REAL)],
        "liars": [{"id": f"liar{n}", "url": url} for n, url in enumerate(urls)],
    }
    pools = [
        {
            "id": name,
            "engine": "llamacpp",
            "model": f"file:{name}.gguf",
            "watchdogs": {"first_token_ms": 3000, "idle_ms": 1500},
            "restarts": {"limit": 10_000},
            "replicas": found,
        }
        for name, found in replicas.items()
    ]
    return mock_settings(data, pools=pools)


def _all_leases(app: LiveApp) -> list[Any]:
    return [lease for pool in app.daemon.core.pools.values() for lease in pool.leases]


async def _run(app: LiveApp, faults: Faults, chaos: Chaos, count: int, seed: int) -> None:
    async with chaos.clock.limit(READY_S):
        while not all(pool["ready"] for pool in (await chaos.http.ask("GET", "/v1/pools"))[2]["items"]):
            await chaos.clock.sleep(0.05)

    def plans() -> Iterator[Plan]:
        number = 0
        while number < count or not faults.enough:
            yield make_plan(seed, number)
            number += 1

    raging = asyncio.ensure_future(faults.rage())
    try:
        shared = plans()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(chaos.client(shared))
    finally:
        raging.cancel()
        await asyncio.gather(raging, return_exceptions=True)
        await faults.rest()
    for _ in range(600):  # what was quarantined comes back when its engine is seen idle, or has been replaced
        if not await asyncio.to_thread(app.call, lambda: _all_leases(app)):
            break
        await chaos.clock.sleep(0.1)


def _books(app: LiveApp, chaos: Chaos) -> Iterator[Finding]:
    core, record = app.daemon.core, chaos.record
    record.active_leases = len(_all_leases(app))
    record.queued = sum(len(pool.queue) for pool in core.pools.values())
    for task_id, task in core.tasks.items():
        live = core.sessions.get(task.session_id, app.daemon.clock.now())
        if live is not None and live.live:
            yield Finding("status_disagrees", task_id, f"its session has {live.live} live tasks at the end")
        if task.log.watchers:
            yield Finding("status_disagrees", task_id, f"{task.log.watchers} readers are still watched for")


def _honesty(chaos: Chaos, hit: dict[str, str], bodies: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """An end with all that was asked for, or an error that blames the engine; never an end made of a lie."""
    for task in chaos.record.tasks:
        final, body = task.final, bodies[task.task_id]
        if final is None:
            continue  # the checker says so
        if final["state"] == "ended":
            lie = hit.get(task.task_id, "").removeprefix("lie: ")
            if lie in FATAL:
                yield Finding("text_mismatch", task.task_id, f"it ended well on a lie ({lie})")
            whole = final["tokens_out"] == body["max_tokens"] or final["finish_reason"] == "stop"
            text = "".join(f" {n}" for n in range(1, body["max_tokens"] + 1))
            if not whole or (body["model_ref"] == "liars" and task.transcript != text):
                yield Finding("text_mismatch", task.task_id, f"not what was asked for: {final} {task.transcript!r}")
        elif final["state"] == "failed" and final["error"]["code"] not in HONEST:
            yield Finding("status_disagrees", task.task_id, f"it failed as {final['error']}")


@dataclass(slots=True)
class Report:
    chaos: Chaos
    findings: list[Finding]
    table: list[str]


def run(count: int, seed: int) -> Report:
    return uvloop.run(_whole(count, seed))


async def _whole(count: int, seed: int) -> Report:
    draw, told = Random(seed), dict[str, str]()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        liars: list[LyingLlama] = [await stack.enter_async_context(lying_llama(draw, told)) for _ in range(LIARS)]
        tiny_llama(folder / "tiny.gguf")
        app = LiveApp(settings_for(folder / "tiny.gguf", [x.url for x in liars], folder / "data"), manual=False)
        await asyncio.to_thread(app.start)
        try:
            chaos = Chaos(Http(app.url))
            faults = Faults(app, draw, max(2, count // 20), chaos, told)
            await asyncio.to_thread(app.call, lambda: watch_leases(app, chaos.record))
            await _run(app, faults, chaos, count, seed)
            findings = await asyncio.to_thread(app.call, lambda: list(_books(app, chaos)))
            attempts = await asyncio.to_thread(
                app.call, lambda: {task_id: task.attempts for task_id, task in app.daemon.core.tasks.items()}
            )
        finally:
            await asyncio.to_thread(app.stop)
        # An engine that was just being started lets go by itself, as soon as it sees its lifeline closed.
        _, alive = await asyncio.to_thread(psutil.wait_procs, psutil.Process().children(recursive=True), LETS_GO_S)
        left = [process.pid for process in alive]
    bodies = {plan.body["task_id"]: plan.body for plan in (make_plan(seed, n) for n in range(len(chaos.record.tasks)))}
    hit = {**faults.hit, **{i: f"lie: {told[b['prompt']]}" for i, b in bodies.items() if b["prompt"] in told}}
    findings += check(chaos.record)
    findings += _honesty(chaos, hit, bodies)
    findings += [Finding("leaked_lease", None, f"process {pid} is still there") for pid in left]
    injected = faults.done + Counter(f"lie: {lie}" for lie in told.values())
    return Report(chaos, findings, list(_table(chaos, hit, injected, attempts)))


def _table(chaos: Chaos, hit: dict[str, str], injected: Counter[str], attempts: dict[str, int]) -> Iterator[str]:
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for task in chaos.record.tasks:
        row = outcomes[hit.get(task.task_id, "none")]
        final = task.final or {"state": "unknown"}
        row["tasks"] += 1
        row[final["error"]["code"] if "error" in final else final["state"]] += 1
        row["retried"] += attempts.get(task.task_id, 1) > 1
    columns = ("tasks", "ended", "canceled", *sorted(HONEST), "retried")
    others = sorted({name for row in outcomes.values() for name in row} - set(columns))
    columns = (*columns, *others)
    yield f"| fault | injected | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for kind in ("none", *KINDS, *(f"lie: {lie}" for lie in LIES)):
        yield f"| {kind} | {injected[kind]} | {' | '.join(str(outcomes[kind][name]) for name in columns)} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="tasks, at least (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="decides what clients and faults do (default 1)")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    report = run(arguments.count, arguments.seed)
    for line in report.table:
        sys.stdout.write(f"{line}\n")
    for finding in report.findings[:50]:
        sys.stdout.write(f"{finding.kind} {finding.task_id or '-'}: {finding.detail}\n")
    for odd in report.chaos.tally.odd[:50]:
        sys.stdout.write(f"odd: {odd}\n")
    found = len(report.findings) + len(report.chaos.tally.odd)
    sys.stdout.write(
        f"tasks {len(report.chaos.record.tasks)}, cancelled {report.chaos.tally.cancelled}, "
        f"refused {report.chaos.tally.refused}, findings {found}, seconds {time.monotonic() - began:.1f}\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
