"""uvicorn, which drains the daemon before it stops and says why it cannot listen."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from orchestratord.app import Daemon
from orchestratord.connection import Protocol
from orchestratord.crowd import UNACKED_MS, Crowd
from orchestratord.domain.url import authority
from orchestratord.heads import Heads
from orchestratord.infra import strays
from orchestratord.infra.heartbeat import Heartbeat
from orchestratord.wire.limits import CONNECTIONS


class CannotListen(Exception):
    """The address cannot be bound; the message says what to do."""


class Server(uvicorn.Server):
    """Drains the daemon before uvicorn closes connections; a second signal ends the drain at once; exit code 0."""

    def __init__(self, config: uvicorn.Config, daemon: Daemon) -> None:
        super().__init__(config)
        self._daemon = daemon
        self._hurry = asyncio.Event()
        self.up = threading.Event()  # set once connections are accepted
        self._loop: asyncio.AbstractEventLoop | None = None
        lag = partial(daemon.telemetry.observe, "orchestratord_event_loop_lag_ms")
        self._heartbeat = Heartbeat(lag)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, then serve until told to stop. Raises CannotListen."""
        host, port = self.config.host, self.config.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = sockets or [socket.create_server((host, port), family=family, backlog=2048)]
        except OSError as error:
            why = "is in use: is a daemon running already?" if error.errno == errno.EADDRINUSE else error.strerror
            raise CannotListen(f"{host}:{port} {why} Choose another with --port or server.port.") from None
        super().run(bound)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        strays.capture_loop(self._daemon.telemetry, self._loop)
        await super().startup(sockets)
        self._heartbeat.start(self._loop)
        url = f"http://{authority(self.config.host, self.port)}"
        self._daemon.telemetry.event("listening", f"open {url}/docs, or run `orchestratord status`", url=url)
        self.up.set()

    @property
    def port(self) -> int:
        """The port that is really listened on (the configured one may be 0)."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A terminal that goes away ends the daemon as SIGTERM does, unless it was started to outlive it (nohup)."""
        hangup = signal.getsignal(signal.SIGHUP)
        with super().capture_signals():
            ours = hangup == signal.SIG_DFL and threading.current_thread() is threading.main_thread()
            if ours:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                if ours:
                    signal.signal(signal.SIGHUP, hangup)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace = self._daemon.settings.server.shutdown_grace_ms / 1000
        drain = asyncio.ensure_future(self._daemon.drain(grace))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, hurry):
            task.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)
        self._daemon.interrupt()
        await super().shutdown(sockets)
        self._heartbeat.stop()


def make_server(daemon: Daemon, app: Any = None, *, loop: str = "uvloop") -> Server:
    """A server for the daemon's settings. `app` replaces the daemon's own ASGI app (tests wrap it)."""
    settings = daemon.settings.server
    most = settings.connections or CONNECTIONS
    # The kernel must not give up a slow reader before we do.
    unacked_ms = max(UNACKED_MS, daemon.settings.streams.stall_ms + 15_000)
    crowd = Crowd(most, settings.connections_per_client, unacked_ms)
    entry = staticmethod(app or daemon.asgi.requests)
    config = uvicorn.Config(
        app or daemon.asgi,
        host=settings.host,
        port=settings.port,
        http=type("Protocol", (Protocol,), {"crowd": crowd, "heads": Heads(), "entry": entry, "__slots__": ()}),
        loop=loop,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        workers=1,
    )
    return Server(config, daemon)
