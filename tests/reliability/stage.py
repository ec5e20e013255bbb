"""What rows begin with: a daemon that is ready, in this process or in one of its own; and how long things took."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import submit, task, wait_for
from tests.reliability.clients import at_once
from tests.reliability.rows import Skipped


@contextlib.contextmanager
def still(**settings: Any) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    """A daemon of this process on virtual time, and a session with it."""
    with LiveApp(mock_settings(**settings)) as app, app.session() as session:
        yield app, session


@contextlib.contextmanager
def live(**settings: Any) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    """The same on real time."""
    with LiveApp(mock_settings(**settings), manual=False) as app, app.session() as session:
        wait_for(lambda: not app.call(app.daemon.pools.not_ready), "it is ready")
        yield app, session


def configure(
    folder: Path,
    *,
    data: Path | None,
    connections: int | None = None,
    streams: str | None = None,
    ctx: int = 4096,
    **more: Any,
) -> Path:
    """A configuration file with one mock pool; `more` is for `write_config`."""
    file = write_config(folder, data=data, **more)
    text = file.read_text().replace("mock = {", f"mock = {{ ctx = {ctx},")
    if connections is not None:
        text = text.replace("server = {", f"server = {{ connections = {connections},")
    if streams is not None:
        text = f"streams = {streams}\n{text}"
    file.write_text(text)
    return file


@contextlib.contextmanager
def daemon(*, journal: bool = False, data: Path | None = None, **more: Any) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own, ready; in memory, or with a journal in `data` or a folder of its own."""
    with TemporaryDirectory() as folder:
        where = data or (Path(folder) / "data" if journal else None)
        with DaemonProcess(configure(Path(folder), data=where, **more)) as process:
            yield process.up()


def said(process: DaemonProcess, event: str) -> int:
    """How many log records of that kind there are by now."""
    log = process._log.fileno()
    return os.pread(log, os.fstat(log).st_size, 0).count(f'"event":"{event}"'.encode())


def held(app: LiveApp, running: int, waiting: int) -> tuple[list[str], list[str]]:
    """Ids of tasks that run on an engine that gives nothing, and of tasks that wait behind them."""
    app.call(app.engine().hold)
    bodies = [task() for _ in range(running + waiting)]
    for some in (bodies[:running], bodies[running:]):
        answers = at_once(app.url, "POST", (("/v1/tasks", body) for body in some))
        assert {answer.status for answer in answers} <= {202}, answers
        app.settle()
    ids = [str(body["task_id"]) for body in bodies]
    return ids[:running], ids[running:]


def all_end(session: VerifyingSession, ids: Collection[str], seconds: float = 60) -> None:
    """Wait until each of them has ended well."""
    for task_id in ids:
        wait_for(
            lambda task_id=task_id: session.get(f"/v1/tasks/{task_id}").json()["state"] == "ended", "it ends", seconds
        )


def works(session: VerifyingSession) -> None:
    """A new task is taken and ends well."""
    all_end(session, [submit(session)], 30)


def many_descriptors() -> None:
    """As many as may be, for this process and its children."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, most), most))


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


def installed(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise Skipped(f"{program} is not installed")
    return found


# -- how long it took ----------------------------------------------------------------------------------------
def p99(seconds: Collection[float]) -> float:
    """In milliseconds: 99 of 100 took no longer."""
    return sorted(seconds)[max(0, -(-len(seconds) * 99 // 100) - 1)] * 1000


@dataclass(slots=True)
class Others:
    """What programs besides this one and its children did to the processors since."""

    _busy: float = field(init=False)
    _own: float = field(init=False)
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._busy, self._own, self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), os.times()
        busy = times.user + times.nice + times.system + getattr(times, "steal", 0.0)
        return busy, own.user + own.system + own.children_user + own.children_system, own.elapsed

    def __str__(self) -> str:
        busy, own, now = self._now()
        took = max(0.0, busy - self._busy - (own - self._own)) / max(0.01, now - self._began)
        return f"other programs took {took:.1f} of {os.cpu_count()} cores"
