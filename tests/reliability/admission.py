"""A: admission and queues."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

from orchestratord.domain.queue import QueueSpec, TaskQueue
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.support import submit, task
from tests.reliability.clients import at_once
from tests.reliability.rows import Seen, fault, not_here, row, tests

CAPACITY, SLOTS = 64, 2


def _full(app: LiveApp, session: Any) -> list[str]:
    """Every slot and every seat taken; the ids of those that wait."""
    app.call(app.engine().hold)
    for _ in range(SLOTS):
        submit(session)
    app.settle()
    return [submit(session) for _ in range(CAPACITY)]


@row(
    "A1",
    "500 submissions at once into 64 seats and 2 slots",
    "seats and free slots, overshoot 0",
    2,
    40,
)
def overshoot(size: int) -> Seen:
    refused = 0
    with LiveApp(mock_settings(pools=[mock_pool(slots=SLOTS, capacity=CAPACITY)])) as app:
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


@row("A2", "full queue, one waiting task canceled, two newcomers", "exactly one fits, each time", 200, 2_000)
def one_seat(size: int) -> Seen:
    with LiveApp(mock_settings(pools=[mock_pool(slots=SLOTS, capacity=CAPACITY)])) as app, app.session() as session:
        waiting = _full(app, session)
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
    with LiveApp(mock_settings(pools=[mock_pool(capacity=size + 8)])) as app, app.session() as session:
        app.call(app.engine().hold)
        for _ in range(SLOTS):
            submit(session)
        app.settle()
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
    with LiveApp(mock_settings(pools=[mock_pool(capacity=CAPACITY)])) as app:
        for _ in range(size):
            before = app.call(lambda: len(app.daemon.core.tasks))
            body = task(max_tokens=1)
            answers = at_once(app.url, "POST", [("/v1/tasks", body)] * 50)
            assert {a.status for a in answers} <= {200, 202}, answers
            assert {a.json()["task_id"] for a in answers} == {body["task_id"]}
            assert app.call(lambda: len(app.daemon.core.tasks)) == before + 1
            app.advance(1)
    return Seen(50 * size, f"{size:,} tasks created")


tests(
    "A8",
    "the same id with another body, after a kill -9, after its retention",
    "409; the same task; a new one",
    "services/test_admission.py::test_another_body_under_the_same_id_is_409",
    "services/test_admission.py::test_past_retention_the_id_is_free_again",
    "services/test_admission.py::test_after_the_fact_the_first_answer_is_told_again",
    "crash/test_kill9.py",
)
fault(
    "A9",
    "A9 a storm of submissions",
    "1 500 submissions into a full queue",
    "refusals p99 <= 50 ms, /healthz <= 100 ms",
)


@row("A10", "a task that breaks every engine it meets, among good ones", "at most 3 attempts; the others end", 5, 50)
def poison(size: int) -> Seen:
    from orchestratord.infra.engines.mock import MockScript

    attempts: list[int] = []
    for _ in range(size):
        with LiveApp(mock_settings(pools=[mock_pool(slots=1, replicas=2)])) as app, app.session() as session:
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
