"""The real daemon on a free loopback port, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import uvloop

from orchestratord import mapping
from orchestratord.app import Daemon
from orchestratord.config import Settings
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.infra.logs import make_sink
from orchestratord.server import make_server
from orchestratord.testing.clock import ManualClock
from orchestratord.testing.ledger import ServedLedger
from orchestratord.testing.session import VerifyingSession

T = TypeVar("T")
START_S = 20.0
READY_S = 120.0  # of virtual time


def mock_settings(
    data_dir: Path | None = None, *, pools: list[dict[str, Any]] | None = None, **sections: Any
) -> Settings:
    """Settings with one mock pool `home` (two slots) unless told otherwise; everything in memory without a data_dir."""
    raw: dict[str, Any] = {
        "allow_mock": True,
        "server": {"port": 0, "shutdown_grace_ms": 1000},
        "pools": [mock_pool()] if pools is None else pools,
        "journal": {"kind": "memory" if data_dir is None else "sqlite"},
        "artifacts": {"kind": "memory" if data_dir is None else "filesystem"},
        **({"data_dir": str(data_dir)} if data_dir is not None else {}),
    }
    for name, value in sections.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) and name in raw else value
    return msgspec.convert(raw, Settings)


def mock_pool(
    pool_id: str = "home", *, slots: int = 2, capacity: int = 64, ctx: int = 4096, replicas: int = 1, **fields: Any
) -> dict[str, Any]:
    """One pool of the configuration, served by mock replicas r0, r1, ..."""
    mock = {"slots": slots, "ctx": ctx}
    return {
        "id": pool_id,
        "engine": "llamacpp",
        "model": f"file:{pool_id}.gguf",
        "queue": {"capacity": capacity},
        "replicas": [{"id": f"r{i}", "mock": dict(mock)} for i in range(replicas)],
        **fields,
    }


class CountingThreads(ThreadPoolExecutor):
    """The threads of `asyncio.to_thread`, and whether the loop has heard of all they have done.

    A manual clock stands while one works: on a slow machine as on a fast one, no time passes in a file's write.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(thread_name_prefix="live-app")
        self._loop = loop
        self._running = 0

    @property
    def at_rest(self) -> bool:
        return self._running == 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """For `run_in_executor`, on the loop."""
        work = super().submit(fn, *args, **kwargs)
        self._running += 1
        # A turn later, so that the one who waits for it is told first.
        self._loop.call_soon(work.add_done_callback, self._ended)
        return work

    def _ended(self, _: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._told)

    def _told(self) -> None:
        self._running -= 1


class LiveApp:
    """A daemon that listens. With a ManualClock (the default) its time moves only through `advance`."""

    def __init__(self, settings: Settings | None = None, *, manual: bool = True, **parts: Any) -> None:
        self.clock = ManualClock() if manual else None
        self.log = io.StringIO()
        settings = settings or mock_settings()
        secret = mapping.secrets(settings, os.environ)
        parts.setdefault("log", make_sink(self.log, form="json", secrets=secret))
        if self.clock is not None:
            parts["clock"] = self.clock
        self.daemon = Daemon(settings, **parts)
        self.ledger = ServedLedger(self.daemon.asgi)
        self._server = make_server(self.daemon, self.ledger)
        self._loop: asyncio.AbstractEventLoop = asyncio.new_event_loop() if manual else uvloop.new_event_loop()
        self._threads = CountingThreads(self._loop)
        self._thread = threading.Thread(target=self._serve, name="live-app", daemon=True)
        self._failure: BaseException | None = None

    # -- life ------------------------------------------------------------------------------------------------
    def start(self, *, ready: bool = True) -> LiveApp:
        """Listen; with `ready`, return only once every replica has proven itself."""
        self._thread.start()
        while not self._server.up.wait(0.05):
            if self._failure is not None or not self._thread.is_alive():
                raise RuntimeError(f"the app did not start: {self._failure!r}\n{self.log.getvalue()}")
        if self.clock is not None:
            self.clock.attach(self._loop, lambda: self.daemon.journal.backlog == 0, lambda: self._threads.at_rest)
            for _ in range(int(READY_S) if ready else 0):
                self.clock.advance(1.0)
                if not self.call(self.daemon.pools.not_ready):
                    break
        return self

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_default_executor(self._threads)
        try:
            self._loop.run_until_complete(self._server.serve())
        except BaseException as error:
            self._failure = error
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    def stop(self) -> None:
        """Shut down as on SIGTERM and wait until all is down."""
        if self.clock is not None and self._server.up.is_set():
            asyncio.run_coroutine_threadsafe(self._push_time(self.clock), self._loop)
        self._server.handle_exit(15, None)
        self._thread.join()

    @staticmethod
    async def _push_time(clock: ManualClock) -> None:
        """Virtual time has to move for grace periods to pass. Ends with the loop."""
        while True:
            await clock.run(0.5)
            await asyncio.sleep(0.01)  # noqa: TID251 - real time, for what happens in threads and sockets

    def __enter__(self) -> LiveApp:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # -- use -------------------------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def session(self, token: str | None = None) -> VerifyingSession:
        """A verifying session: the only door tests use."""
        return VerifyingSession(self.url, token=token)

    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn` on the app's loop and return what it returns."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(fn())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(5)

    def advance(self, seconds: float) -> None:
        assert self.clock is not None, "this app runs on real time"
        self.clock.advance(seconds)

    def settle(self) -> None:
        self.advance(0)

    def engine(self, pool: str = "home", replica: str = "r0") -> MockEngine:
        return self.daemon.mocks[pool, replica]
