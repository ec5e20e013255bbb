"""I: drain, reload, shutdown; K: time."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import mock_pool
from tests.http.daemon import DaemonProcess
from tests.http.support import RawConnection, submit, wait_for
from tests.reliability.rows import Seen, not_here, passing, program, row, tests
from tests.reliability.stage import all_end, daemon, held, still

program(
    "I1",
    "reloads that fail at every stage",
    "the old model serves on, nothing lost",
    "tests.reloads --seed 3 --kills 0 --count {}",
    20,
    500,
)
not_here("I2", "a reload replaces one pool's model (I1, I3); the file is read once at start")
program(
    "I3",
    "kill -9 at each of the 13 steps of a reload (rounds)",
    "the old model or the new one",
    "tests.reloads --seed 3 --count 0 --kills {}",
    1,
    10,
)
tests(
    "I4", "operations on top of each other", "one at a time, 409", "services/test_reload.py", "domain/test_control.py"
)
RUNNING, WAITING = 64, 200


@row(
    "I5",
    "drains with 64 tasks that run, one of them for ever, and 200 that wait",
    "starts after the ack 0; the others end; the last one at the deadline + 1 s; none is lost",
    2,
    20,
)
def drain(size: int) -> Seen:
    passing("domain/test_control.py")
    pool = mock_pool(slots=RUNNING, capacity=WAITING + RUNNING, watchdogs={"idle_ms": 0})
    with still(pools=[pool]) as (app, session):
        core = app.daemon.core

        def states(ids: list[str]) -> set[str]:
            return app.call(lambda: {core.tasks[i].state.value for i in ids})

        for _ in range(size):
            app.call(lambda: app.engine().play(MockScript(hang_after=1)))
            (straggler, *running), waiting = held(app, RUNNING, WAITING)
            calls = app.call(lambda: app.engine().calls)
            assert session.post("/v1/pools/home/drain", json={"deadline_ms": 30_000}).status_code == 202
            app.call(app.engine().release_hold)
            app.advance(1)
            assert states(running) == {"ended"}
            app.advance(28)
            assert states([straggler]) == {"running"}
            app.advance(2)
            assert states([straggler]) == {"failed"}
            assert session.get(f"/v1/tasks/{straggler}").json()["error"]["code"] == "POOL_UNAVAILABLE"
            assert states(waiting) == {"queued"}
            assert app.call(lambda: app.engine().calls) == calls, "something started"
            assert session.post("/v1/pools/home/resume").status_code == 202
            app.advance(5)
            assert states(waiting) == {"ended"}
    return Seen(
        size, f"{size * WAITING:,} waited and ran after the resume; starts after the ack 0; the last one ended in time"
    )


@row(
    "I6",
    "SIGTERM with 20 streams, one task that runs and 3 that wait (times)",
    "streams end properly, exit 0 <= grace + 1 s; what waited runs after the restart",
    1,
    10,
    timed=True,
)
def sigterm(size: int) -> Seen:
    grace_s, worst = 1.5, 0.0
    for _ in range(size):
        with daemon(journal=True, token_ms=5, grace_ms=int(grace_s * 1000)) as process, process.session() as session:
            running = submit(session, max_tokens=400)
            waiting = [submit(session) for _ in range(3)]
            streams = [RawConnection(process.url) for _ in range(20)]
            for connection in streams:
                connection.get(f"/v1/tasks/{running}/stream")
                connection.until(b"event: token")
            began = time.monotonic()
            process.signal()
            ends = [connection.rest() for connection in streams]
            assert process.ended() == 0
            worst = max(worst, time.monotonic() - began)
            assert all(b"event: error" in end or b"event: end" in end for end in ends), ends[0][-300:]
            assert all(end.endswith(b"0\r\n\r\n") for end in ends), "a stream without its proper end"
            with DaemonProcess(process.config) as again, again.up().session() as later:
                all_end(later, waiting)
    assert worst <= grace_s + 1, f"exit after {worst:.2f} s"
    return Seen(size, f"grace {grace_s} s, exit 0 after {worst:.2f} s; 20 terminal events; 3 ran after the restart")


tests(
    "I7",
    "slots that become fewer",
    "what runs ends; nothing more is leased",
    "domain/test_core.py::test_no_two_leases_share_a_slot_and_a_restart_empties_them",
)


@row("I8", "storms of SIGTERM, SIGINT and SIGHUP, 100 each", "one orderly exit, code 0", 2, 10)
def storm(size: int) -> Seen:
    for _ in range(size):
        with daemon(journal=True, grace_ms=500) as process:
            for number in range(100):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.process.pid, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 3])
            assert process.ended() == 0
            assert "Traceback" not in process.output()
    return Seen(100 * size, f"{size} orderly exits, code 0")


@row("I9", "a second SIGTERM within a grace of 60 s (times)", "exit 0 at once (<= 1 s)", 1, 10, timed=True)
def second_signal(size: int) -> Seen:
    worst = 0.0
    for _ in range(size):
        with daemon(journal=True, token_ms=20, grace_ms=60_000) as process, process.session() as session:
            task_id = submit(session, max_tokens=4000, ctx=4096, on_disconnect="continue")
            running = f"/v1/tasks/{task_id}"
            wait_for(lambda s=session, path=running: s.get(path).json()["state"] == "running", "it runs")
            process.signal()
            wait_for(lambda session=session: session.get("/readyz").status_code == 503, "it drains")
            began = time.monotonic()
            process.signal()
            assert process.ended() == 0
            worst = max(worst, time.monotonic() - began)
    assert worst <= 1, f"{worst:.2f} s"
    return Seen(size, f"exit 0 {worst:.2f} s after the second signal")


@row("K1", "a day forwards, two back", "no deadline moves")
def wall_clock(_: int) -> Seen:
    with still() as (app, session):
        clock = app.clock
        assert clock is not None
        app.call(app.engine().hold)
        ids = [submit(session, deadline_ms=60_000) for _ in range(4)]
        wall = clock.wall_ms
        for jump in (86_400_000, -86_400_000):
            app.call(lambda jump=jump: setattr(clock, "wall_ms", lambda: wall() + jump))
            app.advance(5)
            states = {session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in ids}
            assert states <= {"queued", "starting", "running"}, states
        app.call(app.engine().release_hold)
        app.advance(1)
        assert {session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in ids} == {"ended"}
    return Seen(1, "no deadline moves, every task ends")
