"""Many clients at once against a daemon on real time: submit, cancel, leave, come back; then the checker judges.

`python -m tests.races --count 1000 --seed 7`. What each client does follows from the seed alone; how the steps of
different clients interleave does not. An even seed journals to SQLite, an odd one in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit

import uvloop

from orchestratord.config import Settings
from orchestratord.infra.clock import SystemClock
from orchestratord.testing.checker import CancelAck, Finding, LeaseRecord, Reader, RunRecord, Seen, TaskRecord, check
from orchestratord.testing.frames import parse_frame
from orchestratord.testing.live import LiveApp, mock_settings

CLIENTS = 64
SLOTS = 4
CAPACITY = 24
TOKEN_MS, PREFILL_MS = 1.0, 2.0
HASTE = 0.5  # of the advised time before a refused client tries again
TRIES = 400
TERMINAL = ("end", "error")

Way = Literal["cancel", "resume", "alone"]
Moment = Literal["with the request", "at once", "while reading", "at the end", "unread"]


# -- what each client will do ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Plan:
    """One task and its client's behaviour."""

    body: dict[str, Any]
    way: Way
    moment: Moment  # of the cancel
    point: int  # events after which it cancels or leaves
    cancels: int  # how many at the same time
    leaves: tuple[int, ...]  # resume: events read before each leaving
    by_header: bool  # resume by Last-Event-ID, else by ?after=
    reset: bool  # leave with RST, else with FIN
    second_reader: bool


def make_plan(seed: int, number: int, sessions: list[str]) -> Plan:
    draw = Random(f"{seed}/{number}")
    tokens = draw.randint(1, 60)
    body = {
        "task_id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
        "session_id": draw.choice(sessions),
        "workload": "completion",
        "model_ref": "home",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": draw.choice(["interactive", "batch"]),
        "max_tokens": tokens,
        "deadline_ms": 600_000,
        "prompt": f"race {number}",
        "on_disconnect": draw.choice(["cancel", "continue"]),
    }
    ways: tuple[Way, ...] = ("cancel", "resume", "alone")
    moments: tuple[Moment, ...] = (
        "with the request",
        "at once",
        "while reading",
        "while reading",
        "at the end",
        "unread",
    )
    return Plan(
        body=body,
        way=ways[number % 3],
        moment=draw.choice(moments),
        point=draw.randint(1, tokens + 1),
        cancels=draw.choice([1, 1, 2, 5]),
        leaves=tuple(draw.randint(1, tokens) for _ in range(draw.randint(1, 4))),
        by_header=draw.random() < 0.5,
        reset=draw.random() < 0.5,
        second_reader=draw.random() < 0.3,
    )


# -- the clients' side of HTTP ---------------------------------------------------------------------------------
class Http:
    """Requests on connections of their own; nothing of the daemon's code is used to read the answers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = parts.hostname, parts.port

    async def _open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int, dict[str, str]]:
        reader, writer = await asyncio.open_connection(*self._address)
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._address[0]}", "Connection: close"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except BaseException:
            writer.close()
            raise
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        return reader, writer, int(head[0].split(" ")[1]), fields

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        reader, writer, status, headers = await self._open(method, path, body)
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        writer.close()
        return status, headers, json.loads(content) if content else None

    async def follow(self, task_id: str, record: Reader, *, by_header: bool, reset: bool) -> AsyncIterator[Seen]:
        """Events after `record.after`, each noted in the record; a consumer that stops early leaves the stream."""
        path, sent = f"/v1/tasks/{task_id}/stream", {}
        if record.after and by_header:
            sent = {"Last_Event_ID": str(record.after)}
        elif record.after:
            path += f"?after={record.after}"
        reader, writer, status, _ = await self._open("GET", path, **sent)
        record.closed = "client"
        try:
            if status == 204:
                record.closed = "end"
                return
            assert status == 200, f"stream of {task_id} after {record.after}: {status}"
            pending = b""
            async for chunk in _chunks(reader):
                *blocks, pending = (pending + chunk).split(b"\n\n")
                for block in blocks:
                    frame = parse_frame(block + b"\n\n")
                    if frame is not None:
                        seen = Seen(frame.id, frame.name, frame.data, frame.raw if frame.id is not None else b"")
                        record.events.append(seen)
                        yield seen
            record.closed = "end"
        except (asyncio.IncompleteReadError, ConnectionError):
            record.closed = "cut"
        finally:
            if reset and record.closed == "client":
                writer.transport.abort()
            else:
                writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


# -- one run ---------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Tally:
    cancelled: int = 0
    resumed: int = 0
    refused: int = 0
    odd: list[str] = field(default_factory=list)  # answers that should not be


@dataclass(slots=True)
class Races:
    """Runs plans against one daemon and records what was seen."""

    http: Http
    clock: SystemClock = field(default_factory=SystemClock)
    record: RunRecord = field(default_factory=RunRecord)
    tally: Tally = field(default_factory=Tally)
    steps: Iterator[int] = field(default_factory=count)

    async def client(self, plans: Iterator[Plan]) -> None:
        for plan in plans:
            task = TaskRecord(plan.body["task_id"], 0, session_id=plan.body["session_id"])
            self.record.tasks.append(task)
            await self._play(plan, task)

    async def _play(self, plan: Plan, task: TaskRecord) -> None:
        early = plan.way == "cancel" and plan.moment == "with the request"
        racing = asyncio.ensure_future(self._cancel(plan, task, may_miss=True)) if early else None
        task.admission_status = await self._submit(plan)
        if racing is not None:
            await racing
        if task.admission_status != 202:
            self.tally.odd.append(f"{task.task_id} was never admitted: {task.admission_status}")
            return
        second = asyncio.ensure_future(self._read(plan, task, "second")) if plan.second_reader else None
        ways: dict[Way, Callable[[Plan, TaskRecord], Awaitable[None]]] = {
            "cancel": self._canceling,
            "resume": self._resuming,
            "alone": self._leaving_alone,
        }
        await ways[plan.way](plan, task)
        if second is not None:
            await second
        await self._read(plan, task, "afterwards")
        await self._conclude(task)

    async def _submit(self, plan: Plan) -> int:
        status = 0
        for _ in range(TRIES):
            status, _, answer = await self.http.ask("POST", "/v1/tasks", plan.body)
            if status != 429:
                break
            self.tally.refused += 1
            await self.clock.sleep(answer["retry_after_ms"] / 1000 * HASTE)
        return status

    async def _cancel(self, plan: Plan, task: TaskRecord, *, may_miss: bool = False) -> None:
        answers = await asyncio.gather(
            *(self.http.ask("POST", f"/v1/tasks/{task.task_id}/cancel") for _ in range(plan.cancels))
        )
        for status, headers, _ in answers:
            if status == 204:
                task.cancels.append(CancelAck(int(headers["x-last-event-id"]), next(self.steps)))
            elif not (may_miss and status == 404):
                self.tally.odd.append(f"cancel of {task.task_id}: {status}")
        self.tally.cancelled += bool(task.cancels)

    async def _read(self, plan: Plan, task: TaskRecord, name: str, after: int = 0, stop: int | None = None) -> int:
        """Follow the stream, to its end or for `stop` events. Returns the last id it had."""
        reader = Reader(f"{name} {len(task.readers)}", after)
        task.readers.append(reader)
        number = 0
        events = self.http.follow(task.task_id, reader, by_header=plan.by_header, reset=plan.reset)
        async with contextlib.aclosing(events):
            while number != stop and (seen := await anext(events, None)) is not None:
                number += 1
                after = after if seen.id is None else seen.id
        return after

    async def _canceling(self, plan: Plan, task: TaskRecord) -> None:
        if plan.moment == "while reading":
            reader = Reader("canceler", 0)
            task.readers.append(reader)
            number = 0
            async for _ in self.http.follow(task.task_id, reader, by_header=True, reset=False):
                number += 1
                if number == plan.point:
                    await self._cancel(plan, task)
            if number < plan.point:
                await self._cancel(plan, task)
        elif plan.moment == "at the end":
            await self._read(plan, task, "patient")
            await self._cancel(plan, task)
        elif plan.moment in ("at once", "unread"):
            reading = asyncio.ensure_future(self._read(plan, task, "first")) if plan.moment == "at once" else None
            await self._cancel(plan, task)
            if reading is not None:
                await reading

    async def _resuming(self, plan: Plan, task: TaskRecord) -> None:
        after = 0
        for stop in plan.leaves:
            after = await self._read(plan, task, "restless", after, stop)
            self.tally.resumed += 1
        await self._read(plan, task, "returned", after)

    async def _leaving_alone(self, plan: Plan, task: TaskRecord) -> None:
        """Nobody looks until it is over."""

    async def _conclude(self, task: TaskRecord) -> None:
        status, _, task.final = await self.http.ask("GET", f"/v1/tasks/{task.task_id}")
        if status != 200:
            task.final = None
            return
        if task.final is not None and "transcript_id" in task.final:
            _, _, artifact = await self.http.ask("GET", f"/v1/artifacts/{task.final['transcript_id']}")
            task.transcript = artifact["content"]["text"]
        else:
            self.tally.odd.append(f"{task.task_id} has no transcript")


def watch_leases(app: LiveApp, record: RunRecord) -> None:
    """Note every lease of the core as it is taken and given back."""
    core, steps, known = app.daemon.core, count(), {}
    dispatch, release = core.dispatch, core.release

    def noting_dispatch(*args: Any) -> list[Any]:
        leases = dispatch(*args)
        for lease in leases:
            entry = LeaseRecord(
                str(lease.id), lease.task.task_id, lease.replica.id, lease.replica.slots, next(steps), None
            )
            known[lease.id] = entry
            record.leases.append(entry)
        return leases

    def noting_release(lease: Any) -> None:
        held = lease.id in lease.replica.leases
        release(lease)
        if held:
            known[lease.id].released = next(steps)

    core.dispatch, core.release = noting_dispatch, noting_release  # type: ignore[method-assign]


def settings_for(seed: int, folder: Path) -> Settings:
    mock = {"slots": SLOTS, "ctx": 4096, "token_ms": TOKEN_MS, "prefill_ms": PREFILL_MS}
    pool = {
        "id": "home",
        "engine": "llamacpp",
        "model": "file:home.gguf",
        "queue": {"capacity": CAPACITY},
        "replicas": [{"id": "r0", "mock": mock}],
    }
    return mock_settings(folder if seed % 2 == 0 else None, pools=[pool], sessions={"turns_max": 1_000_000})


def _leases(app: LiveApp) -> Iterator[Any]:
    return (lease for pool in app.daemon.core.pools.values() for lease in pool.leases)


async def _play_all(races: Races, plans: Iterator[Plan], clients: int, busy: Callable[[], bool]) -> None:
    for _ in range(TRIES):
        status, _, _ = await races.http.ask("GET", "/readyz")
        if status == 200:
            break
        await races.clock.sleep(0.02)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(races.client(plans))
    for _ in range(TRIES):  # slots of canceled tasks come back when the engine has let go of them
        if not busy():
            break
        await races.clock.sleep(0.02)


def run(tasks: int, seed: int, clients: int = CLIENTS) -> tuple[Tally, list[Finding]]:
    """Play the whole run; what the checker and the books of the daemon say about it."""
    draw = Random(seed)
    sessions = [str(uuid.UUID(int=draw.getrandbits(128), version=4)) for _ in range(max(1, tasks // 4))]
    plans = (make_plan(seed, number, sessions) for number in range(tasks))
    with tempfile.TemporaryDirectory() as folder, LiveApp(settings_for(seed, Path(folder)), manual=False) as app:
        races = Races(Http(app.url))
        app.call(lambda: watch_leases(app, races.record))
        uvloop.run(_play_all(races, plans, clients, lambda: app.call(lambda: any(_leases(app)))))
        findings = list(app.call(lambda: _books(app, races.record)))
    return races.tally, check(races.record) + findings


def _books(app: LiveApp, record: RunRecord) -> Iterator[Finding]:
    """What the daemon's own state says at the end; every slot must be free and every account closed."""
    core, engine = app.daemon.core, app.engine()
    record.active_leases = len(list(_leases(app)))
    record.queued = sum(len(pool.queue) for pool in core.pools.values())
    if engine.overcommitted or engine.peak > SLOTS:
        yield Finding("overcommitted_slots", None, f"{engine.overcommitted} refused, {engine.peak} at once")
    if engine.busy_slots:
        yield Finding("leaked_lease", None, f"the engine still works on {engine.busy_slots} jobs")
    for task_id, task in core.tasks.items():
        live = core.sessions.get(task.session_id, app.daemon.clock.now())
        if live is not None and live.live:
            yield Finding("status_disagrees", task_id, f"its session has {live.live} live tasks at the end")
        if task.log.watchers:
            yield Finding("status_disagrees", task_id, f"{task.log.watchers} readers are still watched for")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.races", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="tasks (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="decides what every client does (default 1)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"at the same time (default {CLIENTS})")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    tally, findings = run(arguments.count, arguments.seed, arguments.clients)
    for finding in findings:
        sys.stdout.write(f"{finding.kind} {finding.task_id or '-'}: {finding.detail}\n")
    for odd in tally.odd:
        sys.stdout.write(f"odd: {odd}\n")
    sys.stdout.write(
        f"tasks {arguments.count}, cancelled {tally.cancelled}, resumed {tally.resumed}, refused {tally.refused}, "
        f"findings {len(findings) + len(tally.odd)}, seconds {time.monotonic() - began:.1f}\n"
    )
    return 1 if findings or tally.odd else 0


if __name__ == "__main__":
    sys.exit(main())
