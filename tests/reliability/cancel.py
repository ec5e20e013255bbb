"""B: cancel, and clients who leave."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import psutil

from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import LiveApp, mock_pool
from tests.http.support import RawConnection, readers, submit, task, wait_for
from tests.reliability.clients import at_once, request
from tests.reliability.rows import Seen, program, row, tests
from tests.reliability.stage import held, live, p99, still

tests(
    "B1",
    "cancel at every boundary of a stream",
    "nothing but the end above the seal",
    "http/test_streams.py::test_a_cancel_seals_the_stream_where_it_is",
    "http/test_streams.py::test_the_seal_is_the_id_of_the_last_event",
)
program(
    "B2",
    "cancel against token, 64 clients over HTTP",
    "0 tokens above a seal",
    "tests.races --seed 4 --count {}",
    300,
    12_000,
)
program(
    "B3",
    "cancel against completion, in a world a seed decides (seeds)",
    "one end; the 204 and GET agree",
    "tests.sim --seed 300000 --count {} --jobs 1",
    40,
    2_000,
)
tests(
    "B4",
    "cancel against dispatch",
    "no engine call, or one that is aborted",
    "services/test_dispatch.py::test_a_cancel_between_lease_and_first_step_frees_the_slot",
    "services/test_replicas.py::test_a_cancel_does_not_wait_for_the_engine",
)


@row("B5", "20 cancels at once, again, after the end, of nobody", "one effect, one answer; 404", 20, 500)
def again(size: int) -> Seen:
    with still() as (app, session):
        for _ in range(size):
            (task_id,), _ = held(app, 1, 0)
            aborted = app.call(lambda: app.engine().aborted)
            path = f"/v1/tasks/{task_id}/cancel"
            answers = at_once(app.url, "POST", [(path, None)] * 20)
            assert {a.status for a in answers} == {204}
            assert len({a.headers["x-last-event-id"] for a in answers}) == 1
            app.settle()
            assert app.call(lambda: app.engine().aborted) - aborted <= 1
            late = session.post(path)
            assert late.headers["X-Last-Event-Id"] == answers[0].headers["x-last-event-id"]
            app.call(app.engine().release_hold)
            app.settle()
        assert session.post("/v1/tasks/6f1d2c3b-4a59-4e68-8777-86958493a2b1/cancel").status_code == 404
    return Seen(20 * size, "one seal, one abort each")


@row("B6", "waiting tasks canceled beside one that runs", "its output is byte for byte the same", 200, 1_000)
def neighbour(size: int) -> Seen:
    def texts(cancels: int) -> list[Any]:
        with still(pools=[mock_pool(slots=1)]) as (app, session):
            app.call(app.engine().hold)
            running = submit(session, seed=7, max_tokens=size, ctx=4096)
            app.settle()
            for number in range(size):
                if number < cancels:
                    waiting = submit(session)
                    assert session.post(f"/v1/tasks/{waiting}/cancel").status_code == 204
                app.call(lambda: app.engine().step(1))
            app.call(app.engine().release_hold)
            app.advance(1)
            with session.events(running) as events:
                return [frame.data for frame in events if frame.name == "token"]

    assert texts(size) == texts(0)
    return Seen(size, "0 disturbed")


tests(
    "B7",
    "an engine that ignores aborts and goes on",
    "late tokens 0; its slot taken until proven free",
    "services/test_replicas.py::test_late_tokens_of_a_canceled_task_are_seen_by_nobody",
    "services/test_replicas.py::test_a_slot_whose_abort_is_ignored_is_not_used_until_it_is_idle",
    "services/test_replicas.py::test_a_slot_of_an_engine_out_of_reach_is_not_known_to_be_free",
    "services/test_replicas.py::test_an_attempt_that_was_given_up_keeps_its_slot_until_the_engine_lets_go",
)


@row("B8", "cancel while the engine hangs", "the 204 does not wait for it: p99 <= 200 ms", 20, 500, timed=True)
def hanging(size: int) -> Seen:
    took = []
    with still(pools=[mock_pool(slots=4)]) as (app, session):
        for _ in range(size):
            app.call(lambda: app.engine().play(MockScript(hang_after=1)))
            task_id = submit(session)
            app.settle()
            began = time.perf_counter()
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
            took.append(time.perf_counter() - began)
            app.advance(1)
    assert p99(took) <= 200, f"p99 {p99(took):.0f} ms"
    return Seen(size, f"p50 {sorted(took)[size // 2] * 1000:.0f} ms, p99 {p99(took):.0f} ms")


def _raw_ids(body: bytes) -> list[tuple[int, str]]:
    found = []
    for frame in body.split(b"\n\n"):
        fields = dict(line.partition(b": ")[::2] for line in frame.split(b"\n"))
        if b"id" in fields:
            found.append((int(fields[b"id"]), fields[b"event"].decode()))
    return found


@row("B9", "a reader with 64 KiB and more unread, a cancel, then it reads on", "no token above the seal", 3, 50)
def slow_reader(size: int) -> Seen:
    unread = 0
    with still(pools=[mock_pool(ctx=100_000)]) as (app, session):
        for _ in range(size):
            app.call(app.engine().hold)
            task_id = submit(session, max_tokens=20_000, ctx=100_000)
            app.settle()
            with RawConnection(app.url, receive_buffer=4096) as slow:
                slow.get(f"/v1/tasks/{task_id}/stream")
                assert slow.head()[0] == 200
                app.call(lambda: app.engine().step(8_000))
                app.settle()
                seal = int(session.post(f"/v1/tasks/{task_id}/cancel").headers["X-Last-Event-Id"])
                app.call(app.engine().release_hold)
                app.settle()
                body = b"".join(slow.chunks())
                unread = max(unread, len(body))
                events = _raw_ids(body)
                assert events[-1] == (seal, "end"), (events[-1], seal)
                assert [number for number, _ in events] == list(range(1, seal + 1))
    assert unread > 65536
    return Seen(size, f"up to {unread // 1024:,} KiB were read after the cancel; 0 tokens above the seal")


@row("B10", "submit and cancel at once", "memory <= 20 MB more, leases 0", 1_000, 20_000)
def storm(size: int) -> Seen:
    with live(pools=[mock_pool(capacity=256)], retention={"tasks": 100}) as (app, session):
        app.log.write = lambda text: len(text)  # type: ignore[method-assign]
        app.ledger._entries = deque(maxlen=0)  # type: ignore[assignment] - the books of the tests

        def pair(count: int) -> None:
            for _ in range(count // 50):
                bodies = [task(max_tokens=50) for _ in range(50)]
                at_once(app.url, "POST", (("/v1/tasks", body) for body in bodies))
                at_once(app.url, "POST", ((f"/v1/tasks/{b['task_id']}/cancel", None) for b in bodies))
                app.call(lambda: app.daemon.core.forget(app.daemon.clock.now()))

        pair(500)
        before = psutil.Process().memory_info().rss
        pair(size)
        grown = (psutil.Process().memory_info().rss - before) / 1e6
        pools = app.daemon.core.pools
        wait_for(lambda: app.call(lambda: sum(len(p.leases) for p in pools.values())) == 0, "no lease is left")
        assert session.get("/healthz").status_code == 200
    assert grown <= 20, f"{grown:.1f} MB"
    return Seen(size, f"{grown:+.1f} MB, leases 0")


@row(
    "B11",
    "readers who leave a running task that nobody else reads",
    "engine told within 1 s, every time",
    50,
    1_000,
    timed=True,
)
def leaving(size: int) -> Seen:
    worst = 0.0
    streams, sessions = {"disconnect_grace_ms": 1}, {"turns_max": 10_000}
    with live(pools=[mock_pool(slots=4)], streams=streams, sessions=sessions) as (app, session):
        for _ in range(size):
            app.call(lambda: app.engine().play(MockScript(hang_after=1)))
            task_id = submit(session)
            connection = RawConnection(app.url)
            connection.get(f"/v1/tasks/{task_id}/stream")
            connection.until(b"event: token")
            aborted = app.call(lambda: app.engine().aborted)
            began = time.perf_counter()
            connection.reset()
            wait_for(lambda aborted=aborted: app.call(lambda: app.engine().aborted) > aborted, "the engine is told")
            worst = max(worst, time.perf_counter() - began)
            assert session.get(f"/v1/tasks/{task_id}").json()["state"] == "canceled"
    assert worst <= 1.0, worst
    return Seen(size, f"{size:,} of {size:,}; longest {worst * 1000:.0f} ms")


@row("B12", "clients who reset before their submission is answered", "no slot leaks", 100, 1_000)
def unanswered(size: int) -> Seen:
    with live(pools=[mock_pool(capacity=256)], retention={"tasks": 100}) as (app, _):
        core = app.daemon.core
        for _ in range(size):
            connection = RawConnection(app.url)
            connection.send(request("POST", "/v1/tasks", task(max_tokens=2)))
            connection.reset()
        wait_for(lambda: app.call(lambda: all(t.terminal for t in core.tasks.values())), "every task ends", 60)
        assert app.call(lambda: sum(len(p.leases) for p in core.pools.values())) == 0
        wait_for(lambda: app.call(lambda: len(app._server.server_state.tasks)) == 0, "every request has ended")
    return Seen(size, "leases 0, requests 0")


def _left(size: int, answered: bool) -> Seen:
    """Readers who reset, before their answer can begin or once it has; what they leave behind."""
    with still() as (app, session):
        app.call(app.engine().hold)
        task_id = submit(session, on_disconnect="continue")
        app.settle()

        def figures(app: LiveApp = app) -> tuple[int, int, int]:
            held_for = app.call(lambda: len(asyncio.all_tasks(app._loop)))
            return readers(app), psutil.Process().num_fds(), held_for

        def loop(count: int) -> None:
            for _ in range(count):
                connection = RawConnection(app.url)
                connection.get(f"/v1/tasks/{task_id}/stream")
                if answered:
                    assert connection.head()[0] == 200
                connection.reset()
            wait_for(lambda: readers(app) == 0, "every seat is given back", 60)
            wait_for(lambda: app.call(lambda: len(app._server.server_state.connections)) <= 1, "all are gone", 60)

        loop(20)
        before = figures()
        loop(size)
        wait_for(lambda: figures() == before, f"it is as it was: {before}, not {figures()}")
        app.call(app.engine().release_hold)
    return Seen(size, f"seats {before[0]}, descriptors and asyncio tasks +0")


@row("B13", "readers who reset before their answer begins", "seats, descriptors, tasks as before", 300, 1_000)
def gone_before(size: int) -> Seen:
    return _left(size, answered=False)


@row("C11", "readers who subscribe and reset", "seats, descriptors, tasks as before", 300, 10_000)
def gone_after(size: int) -> Seen:
    return _left(size, answered=True)
