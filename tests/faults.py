"""Disks that fill up, descriptors that run out, readers that stall, clocks that jump, signals that repeat.

    python -m tests.faults [ROW ...] [--readers N]

Each row breaks a real daemon (mock engine, SQLite, loopback) in one way, looks at what it still does, mends it and
looks how it recovers; nothing is restarted. A table of what was seen is printed; exit code 1 if a promise was broken.
Rows that need root or strace say so and are left out without them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from orchestratord.testing.live import LiveApp, mock_settings
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import RawConnection, readers, submit, task, wait_for

Row = Callable[[Path, argparse.Namespace], str]
ROWS: dict[str, Row] = {}


class Skipped(Exception):
    """This machine cannot do it."""


def row(name: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        ROWS[name] = function
        return function

    return add


def since(began: float) -> str:
    return f"{time.monotonic() - began:.2f} s"


# -- the disk ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def small_disk(folder: Path, options: str = "size=3m") -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0:
        raise Skipped("only root can mount a small disk")
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        raise Skipped(f"mount: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def outage(daemon: DaemonProcess, broken: Callable[[], None], mended: Callable[[], None]) -> str:
    """What every outage of the journal looks like, and its end."""
    with daemon.session() as session:
        waiting = submit(session, max_tokens=200, on_disconnect="continue")
        queued = submit(session)
        broken()

        def refusing() -> bool:
            answer = session.post("/v1/tasks", json=task())
            assert answer.status_code in (202, 429, 503), answer.text
            return answer.status_code == 503 and bool(answer.json()["code"] == "STORAGE_UNAVAILABLE")

        wait_for(refusing, "admission says that the disk is broken", 30)
        assert session.get("/readyz").status_code == 503
        failed = daemon.says("journal_failed")
        assert failed["level"] == "error", failed
        assert failed["reason"].isupper(), failed
        assert "set data_dir" in failed["human"], failed
        assert session.get("/healthz").status_code == 200
        assert session.get(f"/v1/tasks/{waiting}").status_code == 200
        answer = session.post(f"/v1/tasks/{queued}/cancel")
        assert answer.status_code in (204, 503), answer.text
        assert session.get(f"/v1/tasks/{queued}").json()["state"] in ("canceled", "ended")
        mended()
        began = time.monotonic()
        wait_for(lambda: session.get("/readyz").status_code == 200, "ready again by itself", 30)
        took = since(began)
        assert daemon.says("journal_recovered")["outage_ms"] >= 0
        again = submit(session)
        wait_for(lambda: session.get(f"/v1/tasks/{again}").json()["state"] == "ended", "work is done again", 30)
        before = session.get(f"/v1/tasks/{queued}").json()
    daemon.kill()
    with DaemonProcess(daemon.config) as restarted, restarted.up().session() as session:
        after = session.get(f"/v1/tasks/{queued}").json()
    kept = (before["state"], before["last_event_id"]) == (after["state"], after["last_event_id"])
    assert kept, f"the end told in the outage was {before}, after a kill -9 it is {after}"
    return f"503 STORAGE_UNAVAILABLE, not ready, reads and cancels work; ready {took} after; a kill -9 forgets nothing"


def daemon_on(folder: Path, data: Path, **more: Any) -> DaemonProcess:
    return DaemonProcess(write_config(folder, data=data, token_ms=5, **more)).up()


@row("E6 disk full")
def disk_full(folder: Path, _: argparse.Namespace) -> str:
    with small_disk(folder) as disk:
        filler = disk / "filler"

        def fill() -> None:
            file = os.open(filler, os.O_WRONLY | os.O_CREAT)
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, bytes(4096))
            os.close(file)

        with daemon_on(folder, disk / "data") as daemon:
            return outage(daemon, fill, filler.unlink)


@row("E6 file size limit")
def file_size(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data") as daemon:
        process = psutil.Process(daemon.process.pid)
        limit = resource.RLIM_INFINITY
        return outage(
            daemon,
            lambda: process.rlimit(psutil.RLIMIT_FSIZE, (4096, limit)),
            lambda: process.rlimit(psutil.RLIMIT_FSIZE, (limit, limit)),
        )


@row("E7 EIO on write and fsync")
def input_output_error(folder: Path, _: argparse.Namespace) -> str:
    if shutil.which("strace") is None:
        raise Skipped("strace is not installed")
    tracer: list[subprocess.Popen[bytes]] = []

    with daemon_on(folder, folder / "data") as daemon:

        def trace() -> None:
            calls = "pwrite64,fdatasync,fsync"
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
            command += ["-e", f"inject={calls}:error=EIO", "-p", str(daemon.process.pid)]
            tracer.append(subprocess.Popen(command, stderr=subprocess.PIPE))
            attached = Path(f"/proc/{daemon.process.pid}/status")
            wait_for(lambda: "TracerPid:\t0\n" not in attached.read_text(), "strace is attached", 10)

        def detach() -> None:
            tracer[0].send_signal(signal.SIGINT)
            tracer[0].wait(10)

        try:
            return outage(daemon, trace, detach)
        finally:
            if tracer and tracer[0].poll() is None:
                tracer[0].kill()


@row("E read-only disk at start")
def read_only(folder: Path, _: argparse.Namespace) -> str:
    with small_disk(folder, "ro") as disk:
        daemon = DaemonProcess(write_config(folder, data=disk / "data"))
        code, said = daemon.ended(), daemon.output().strip().splitlines()[-1]
        assert code == 69, (code, said)
        assert str(disk) in said, said
        return f"exit {code}: {said.partition('orchestratord: ')[2][:90]}"


@row("E artifacts on a full disk")
def artifacts_full(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data") as daemon, daemon.session() as session:
        process = psutil.Process(daemon.process.pid)
        body = {"kind": "other", "content": {"text": "x" * 20_000}}
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        answer = session.post("/v1/artifacts", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "STORAGE_UNAVAILABLE"), answer.text
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        stored = session.post("/v1/artifacts", json=body).json()
        found = session.get(f"/v1/artifacts/{stored['id']}")
        assert found.json()["content"] == body["content"]
        return "503 STORAGE_UNAVAILABLE, nothing partial; the same artifact is stored once there is room"


# -- descriptors, connections, readers -----------------------------------------------------------------------
@row("F2 descriptors run out")
def descriptors(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data") as daemon, requests.Session() as asking:
        asking.trust_env = False
        process = psutil.Process(daemon.process.pid)
        spare = 12
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + spare, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
        flood = []
        for _ in range(10 * spare):
            connection = socket.socket()
            connection.settimeout(2)
            connection.connect(("127.0.0.1", daemon.port))
            flood.append(connection)
        for connection in flood:
            connection.close()
        began = time.monotonic()

        def healthy() -> bool:
            with contextlib.suppress(requests.RequestException):
                return asking.get(f"{daemon.url}/healthz", timeout=1).status_code == 200
            return False

        wait_for(healthy, "it answers again", 20)
        took = since(began)
        with daemon.session() as session:
            done = submit(session)
            wait_for(lambda: session.get(f"/v1/tasks/{done}").json()["state"] == "ended", "it works again", 20)
        daemon.signal()
        assert daemon.ended() == 0
        lines = daemon.output().count("\n")
        assert lines < 200, f"{lines} lines of log"
        return (
            f"{10 * spare} connections for {spare} descriptors; answers {took} after they close; {lines} lines of log"
        )


@row("C1 stalled readers")
def stalled_readers(folder: Path, arguments: argparse.Namespace) -> str:
    """Nobody reads; a healthy reader of the same task is not held up, and the stalled ones are cut."""
    del folder
    count = arguments.readers
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    app = LiveApp(mock_settings(streams={"stall_ms": 2000, "metrics_ms": 500}, sessions={"turns_max": 1000}))
    with app, app.session() as session:
        app.call(app.engine().hold)
        task_id = submit(session, max_tokens=3000, ctx=4096, on_disconnect="continue")
        app.settle()
        before = psutil.Process().memory_info().rss
        stalled = []
        for _ in range(count):
            connection = RawConnection(app.url, receive_buffer=4096)
            connection.get(f"/v1/tasks/{task_id}/stream")
            stalled.append(connection)
        wait_for(lambda: readers(app) == count, "all of them have a seat", 60)
        seen: list[int] = []

        def read() -> None:
            with app.session() as other, other.events(task_id, timeout=60) as events:
                seen.extend(event.id for event in events if event.id is not None)

        fast = threading.Thread(target=read)
        fast.start()
        wait_for(lambda: readers(app) == count + 1, "the fast one, too")
        app.call(app.engine().release_hold)
        wait_for(lambda: app.daemon.core.tasks[task_id].terminal, "the task ends", 60)
        fast.join(60)
        assert seen == list(range(1, 3003)), f"the fast reader got {len(seen)} events"
        grown = (psutil.Process().memory_info().rss - before) / 1e6
        for _ in range(20):
            app.advance(0.5)
        left = readers(app)
        for connection in stalled:
            connection.reset()
        wait_for(lambda: readers(app) == 0, "no seat is left", 30)
        return (
            f"{count} stalled, fast reader whole, {grown / count * 1000:.0f} KB each, {left} left after the stall limit"
        )


# -- time and signals ----------------------------------------------------------------------------------------
@row("F7 SIGSTOP and SIGCONT")
def stopped(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data") as daemon, daemon.session() as session:
        ids = [submit(session, max_tokens=40) for _ in range(5)]
        daemon.signal(signal.SIGSTOP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(3)
        daemon.signal(signal.SIGCONT)
        for task_id in ids:
            wait_for(lambda task_id=task_id: session.get(f"/v1/tasks/{task_id}").json()["state"] == "ended", "ends", 30)
        return "stopped for 3 s with 5 tasks: each ends once, by itself"


@row("K1 the wall clock jumps")
def wall_clock(folder: Path, _: argparse.Namespace) -> str:
    del folder
    app = LiveApp(mock_settings())
    assert app.clock is not None
    with app, app.session() as session:
        app.call(app.engine().hold)
        ids = [submit(session, deadline_ms=60_000) for _ in range(4)]
        wall = app.clock.wall_ms
        for jump in (86_400_000, -86_400_000):
            app.call(lambda jump=jump: setattr(app.clock, "wall_ms", lambda: wall() + jump))
            app.advance(5)
            states = {session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in ids}
            assert states <= {"queued", "starting", "running"}, states
        app.call(app.engine().release_hold)
        app.advance(1)
        assert {session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in ids} == {"ended"}
        return "a day forwards and two back: no deadline moves, every task ends"


@row("I6 SIGTERM with open streams")
def sigterm(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data", grace_ms=1500) as daemon, daemon.session() as session:
        running = submit(session, max_tokens=400)
        waiting = [submit(session) for _ in range(3)]
        streams = [RawConnection(daemon.url) for _ in range(20)]
        for connection in streams:
            connection.get(f"/v1/tasks/{running}/stream")
            connection.until(b"event: token")
        began = time.monotonic()
        daemon.signal()
        ends = [connection.rest() for connection in streams]
        assert daemon.ended() == 0
        took = since(began)
        assert all(b"event: error" in end or b"event: end" in end for end in ends), ends[0][-300:]
        assert all(end.endswith(b"0\r\n\r\n") for end in ends), "a stream without its proper end"
    with DaemonProcess(daemon.config) as again, again.up().session() as session:
        for task_id in waiting:
            wait_for(lambda task_id=task_id: session.get(f"/v1/tasks/{task_id}").json()["state"] == "ended", "ends", 30)
    return f"grace 1.5 s, exit 0 after {took}; 20 streams got a terminal event; 3 queued tasks ran after the restart"


@row("I6 a second SIGTERM")
def second_signal(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data", grace_ms=60_000) as daemon, daemon.session() as session:
        task_id = submit(session, max_tokens=4000, ctx=4096, on_disconnect="continue")
        wait_for(lambda: session.get(f"/v1/tasks/{task_id}").json()["state"] == "running", "it runs")
        daemon.signal()
        wait_for(lambda: session.get("/readyz").status_code == 503, "it drains")
        began = time.monotonic()
        daemon.signal()
        assert daemon.ended() == 0
        return f"grace 60 s, exit 0 {since(began)} after the second signal"


@row("I8 a storm of signals")
def storm(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data", grace_ms=500) as daemon:
        for number in range(200):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon.process.pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
        assert daemon.ended() == 0
        assert "Traceback" not in daemon.output()
        return "200 SIGTERM and SIGINT: one orderly exit, code 0"


# -- load ----------------------------------------------------------------------------------------------------
@row("A9 a storm of submissions")
def submissions(folder: Path, _: argparse.Namespace) -> str:
    with daemon_on(folder, folder / "data") as daemon, daemon.session() as session:
        refused, health = [], []
        for number in range(1500):
            began = time.monotonic()
            answer = session.post("/v1/tasks", json=task(max_tokens=50))
            if answer.status_code != 202:
                assert answer.status_code == 429, answer.text
                assert int(answer.headers["Retry-After"]) >= 1
                refused.append(time.monotonic() - began)
            if number % 10 == 0:
                began = time.monotonic()
                assert session.get("/healthz").status_code == 200
                health.append(time.monotonic() - began)
        worst = [sorted(times)[int(len(times) * 0.99)] * 1000 for times in (refused, health)]
        return f"{len(refused)} of 1500 refused with Retry-After, p99 {worst[0]:.0f} ms; /healthz p99 {worst[1]:.0f} ms"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"beginnings of: {', '.join(ROWS)}")
    parser.add_argument("--readers", type=int, default=200, help="stalled readers (default 200)")
    arguments = parser.parse_args(argv)
    broken = 0
    for name, run in ROWS.items():
        if arguments.rows and not any(name.startswith(wanted) for wanted in arguments.rows):
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                seen = run(Path(folder), arguments)
        except Skipped as why:
            seen = f"left out: {why}"
        except Exception as error:
            broken += 1
            seen = f"BROKEN: {type(error).__name__}: {str(error)[:400]}"
        sys.stdout.write(f"| {name} | {seen} | {time.monotonic() - began:.1f} s |\n")
        sys.stdout.flush()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
