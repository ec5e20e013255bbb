"""A: admission and queues."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from orchestratord.domain.queue import QueueSpec, TaskQueue
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import mock_pool
from orchestratord.testing.session import VerifyingSession
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import submit, task
from tests.reliability.clients import Got, ask, at_once
from tests.reliability.rows import Seen, not_here, row
from tests.reliability.stage import daemon, held, p99, still

CAPACITY, SLOTS = 64, 2
SMALL = [mock_pool(slots=SLOTS, capacity=CAPACITY)]


@row(
    "A1",
    "500 submissions at once into 64 seats and 2 slots",
    "seats and free slots, overshoot 0",
    2,
    1_000,
)
def overshoot(size: int) -> Seen:
    refused = 0
    with still(pools=SMALL) as (app, _):
        for _ in range(size):
            app.call(app.engine().hold)
            bodies = [task() for _ in range(500)]
            answers = at_once(app.url, "POST", (("/v1/tasks", body) for body in bodies))
            taken = [b["task_id"] for b, a in zip(bodies, answers, strict=True) if a.status == 202]
            most = app.call(lambda: app.daemon.core.pools["home"].queue.seats_taken)
            assert most <= CAPACITY, most
            assert CAPACITY <= len(taken) <= CAPACITY + SLOTS, len(taken)
            for answer in answers:
                if answer.status != 202:
                    assert answer.status == 429, answer
                    assert int(answer.headers["retry-after"]) >= 1
                    refused += 1
            at_once(app.url, "POST", ((f"/v1/tasks/{task_id}/cancel", None) for task_id in taken))
            app.call(app.engine().release_hold)
            app.advance(1)
    return Seen(500 * size, f"overshoot 0; {refused:,} refused, each with Retry-After")


@row("A2", "full queue, one waiting task canceled, two newcomers", "exactly one fits, each time", 200, 10_000)
def one_seat(size: int) -> Seen:
    with still(pools=SMALL) as (app, session):
        _, waiting = held(app, SLOTS, CAPACITY)
        draw = Random(1)
        for _ in range(size):
            out = waiting.pop(draw.randrange(len(waiting)))
            assert session.post(f"/v1/tasks/{out}/cancel").status_code == 204
            waiting.append(submit(session))
            assert session.post("/v1/tasks", json=task()).status_code == 429
        app.call(app.engine().release_hold)
    return Seen(size, f"{size:,} seats given back, {size:,} taken")


def _job(number: int, priority: str, created: float) -> Any:
    request = SimpleNamespace(priority=priority)
    return SimpleNamespace(request=request, task_id=str(number), committed=True, created=created, not_before=0.0)


def _dispatches(size: int, age_s: float) -> tuple[int, float]:
    """Random arrivals into one queue, interactive work without end; inversions, and the longest wait of batch work."""
    draw, queue = Random(size), TaskQueue(QueueSpec(10_000, batch_age_s=age_s))
    now, number, worst, inversions = 0.0, 0, 0.0, 0
    for _ in range(size):
        now += 0.5
        while len(queue) < 8 or draw.random() < 0.3:
            if len(queue) >= 200:
                break
            queue.push(_job(number, "interactive" if draw.random() < 0.9 else "batch", now))
            number += 1
        head: Any = queue.head(now)
        if head is None:
            continue

        def rank(t: Any, now: float = now) -> tuple[int, int]:
            aged = age_s and t.request.priority == "batch" and now - t.created >= age_s
            return (0 if aged else 1 if t.request.priority == "interactive" else 2), int(t.task_id)

        inversions += any(rank(other) < rank(head) for other in queue)
        if head.request.priority == "batch":
            worst = max(worst, now - head.created)
        queue.remove(head)
    return inversions, worst


@row("A3", "two priorities, mixed load, one slot, virtual time", "0 inversions", 5_000, 100_000)
def order(size: int) -> Seen:
    inversions, _ = _dispatches(size, 0.0)
    assert inversions == 0
    return Seen(size, "0 inversions; first in, first out within each")


@row("A4", "batch work under interactive work without end, ageing bound 60 s", "none starves", 5_000, 100_000)
def ageing(size: int) -> Seen:
    inversions, worst = _dispatches(size, 60.0)
    assert inversions == 0
    # At most those that aged before it are in front of it: 200 seats at two starts a second.
    assert worst <= 60.0 + 100.0, worst
    return Seen(size, f"0 inversions; longest wait {worst:.1f} s of virtual time, 60 s before it goes first")


@row("A5", "tasks that pass their deadline while they wait", "expired unstarted, engine calls 0", 60, 1_000)
def expired(size: int) -> Seen:
    with still(pools=[mock_pool(capacity=size + 8)]) as (app, session):
        held(app, SLOTS, 0)
        calls = app.call(lambda: app.engine().calls)
        ids = [submit(session, deadline_ms=100_000) for _ in range(size)]
        app.advance(101)  # before the watchdogs
        app.call(app.engine().release_hold)
        app.advance(1)
        tasks = [app.call(lambda task_id=task_id: app.daemon.core.tasks[task_id]) for task_id in ids]
        assert {t.failure.code for t in tasks if t.failure is not None} == {"DEADLINE_UNMET"}
        assert all(t.terminal for t in tasks)
        assert app.call(lambda: app.engine().calls) == calls
    return Seen(size, "all DEADLINE_UNMET; engine calls 0")


not_here("A6", "no request waits for its task; a reader who leaves a waiting one is B11 and B13")


@row("A7", "the same submission 50 times at once", "one task, one answer", 5, 100)
def same_key(size: int) -> Seen:
    with still(pools=SMALL) as (app, _):
        for _ in range(size):
            before = app.call(lambda: len(app.daemon.core.tasks))
            body = task(max_tokens=1)
            answers = at_once(app.url, "POST", [("/v1/tasks", body)] * 50)
            assert {a.status for a in answers} <= {200, 202}, answers
            assert {a.json()["task_id"] for a in answers} == {body["task_id"]}
            assert app.call(lambda: len(app.daemon.core.tasks)) == before + 1
            app.advance(1)
    return Seen(50 * size, f"{size:,} tasks created")


def _replayed(session: VerifyingSession, body: dict[str, Any], first: dict[str, Any]) -> None:
    """The same again is told the first answer; another body under its id is refused."""
    again = session.post("/v1/tasks", json=body)
    assert (again.status_code, again.headers.get("X-Idempotent-Replay")) == (202, "true"), again.text
    assert again.json() == first
    assert session.post("/v1/tasks", json={**body, "prompt": "another"}).status_code == 409


def _until_killed(process: DaemonProcess, draw: Random) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Submissions one after another, each with its answer, and a kill -9 among them that the last one met."""
    clock, sent = SystemClock(), list[tuple[dict[str, Any], dict[str, Any] | None]]()

    async def client() -> None:
        while True:
            sent.append((body := task(max_tokens=2), None))
            got = await ask(process.url, "POST", "/v1/tasks", body)
            assert got.status in (202, 429), got
            sent[-1] = (body, got.json() if got.status == 202 else None)

    async def both() -> None:
        client_at_work = asyncio.ensure_future(client())
        await clock.sleep(draw.uniform(0.01, 0.15))
        process.kill()
        await asyncio.gather(client_at_work, return_exceptions=True)

    asyncio.run(both())
    return sent


@row(
    "A8",
    "the same id again after a kill -9, with another body, and after its retention (kills)",
    "the first answer; 409; a new task; 0 duplicates",
    3,
    200,
)
def same_key_later(size: int) -> Seen:
    draw, asked = Random(8), 0
    with TemporaryDirectory() as folder:
        config = write_config(Path(folder), data=Path(folder) / "data", slots=4, token_ms=1)
        for _ in range(size):
            with DaemonProcess(config) as process:
                process.up()
                sent = _until_killed(process, draw)
            with DaemonProcess(config) as again, again.up().session() as session:
                for body, answer in sent[-12:]:
                    if answer is None:  # refused, or cut off in the middle: nobody knows, so it is asked again
                        fresh = session.post("/v1/tasks", json=body)
                        answer = fresh.json() if fresh.status_code == 202 else None
                    if answer is not None:
                        _replayed(session, body, answer)
                        asked += 1
                listed = [t["task_id"] for t in session.get("/v1/tasks?limit=200").json()["items"]]
                assert len(set(listed)) == len(listed)
    with still() as (app, session):
        body = task()
        _replayed(session, body, session.post("/v1/tasks", json=body).json())
        app.advance(3_600 + 600 + 1)
        fresh = session.post("/v1/tasks", json={**body, "prompt": "another"})
        assert (fresh.status_code, fresh.headers.get("X-Idempotent-Replay")) == (202, None), fresh.text
    return Seen(size, f"{size} kills, {asked:,} asked again after one; duplicates 0")


RATE = 400  # submissions a second, for a pool that ends 80


async def _storm(url: str, seconds: int) -> tuple[list[tuple[Got, float]], list[tuple[Got, float]]]:
    """Nobody waits for an answer before the next is sent. Answers with their seconds: submissions, health."""
    clock = SystemClock()

    async def timed(method: str, path: str, body: Any = None) -> tuple[Got, float]:
        began = clock.now()
        return await ask(url, method, path, body), clock.now() - began

    submissions, health, began = [], [], clock.now()
    for number in range(seconds * RATE):
        await clock.sleep(max(0.0, began + number / RATE - clock.now()))
        submissions.append(asyncio.ensure_future(timed("POST", "/v1/tasks", task())))
        if number % (RATE // 10) == 0:
            health.append(asyncio.ensure_future(timed("GET", "/healthz")))
    return await asyncio.gather(*submissions), await asyncio.gather(*health)


@row(
    "A9",
    "400 submissions a second for a pool that ends 80 (seconds)",
    "refused with Retry-After, p99 <= 50 ms; /healthz p99 <= 100 ms",
    3,
    10,
    timed=True,
)
def storm(size: int) -> Seen:
    with daemon(slots=4, token_ms=10) as process:
        answers, health = asyncio.run(_storm(process.url, size))
    refused = [(got, took) for got, took in answers if got.status != 202]
    assert {got.status for got, _ in refused} == {429}
    assert all(int(got.headers["retry-after"]) >= 1 for got, _ in refused)
    assert {got.status for got, _ in health} == {200}
    slow, sick = p99([took for _, took in refused]), p99([took for _, took in health])
    assert slow <= 50, f"refusals: p99 {slow:.0f} ms"
    assert sick <= 100, f"/healthz: p99 {sick:.0f} ms"
    return Seen(size, f"{len(refused):,} of {len(answers):,} refused, p99 {slow:.0f} ms; /healthz p99 {sick:.0f} ms")


@row("A10", "a task that breaks every engine it meets, among good ones", "at most 3 attempts; the others end", 5, 50)
def poison(size: int) -> Seen:
    attempts: list[int] = []
    for _ in range(size):
        with still(pools=[mock_pool(slots=1, replicas=2)]) as (app, session):
            for replica in ("r0", "r1"):
                app.call(lambda replica=replica: app.engine(replica=replica).play(*[MockScript(error_after=0)] * 3))
            bad = submit(session)
            app.advance(120)
            for replica in ("r0", "r1"):
                app.call(lambda replica=replica: app.engine(replica=replica).clear())
            app.advance(120)
            good = [submit(session) for _ in range(4)]
            app.advance(60)
            states = {session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in good}
            assert states == {"ended"}, states
            poisoned = app.call(lambda bad=bad: app.daemon.core.tasks[bad])
            attempts.append(poisoned.attempts)
            assert poisoned.terminal
            assert poisoned.attempts <= 3
    return Seen(size, f"attempts {min(attempts)} to {max(attempts)}; every other task ended")
