"""Engine servers as child processes, each behind a `warden` that makes sure it never outlives the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from orchestratord.infra.engines import registry
from orchestratord.infra.secrets import Secrets
from orchestratord.ports import Clock, ProcessSpec, Startable

WARDEN = Path(__file__).with_name("warden.py")
TAIL_LINES, TAIL_CHARS = 200, 500
LAST_LINES_S = 1.0  # for what is left of the output when all who could write to it should be gone


def _free_port() -> int:
    """A loopback port nobody uses now. Another program may take it before the engine does: then that start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """A running engine server. See `ports.ReplicaProcess`."""

    def __init__(
        self,
        warden: asyncio.subprocess.Process,
        lifeline: socket.socket,
        output: IO[bytes],
        port: int,
        clock: Clock,
        secrets: Secrets,
    ) -> None:
        self._warden = warden
        self._lifeline = lifeline
        self._port = port
        self._clock = clock
        self._secrets = secrets
        self._pid = 0
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._reading = asyncio.create_task(self._read(output))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the engine itself, not of its warden."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        return self._warden.returncode

    async def greet(self) -> None:
        """Wait for the warden's word on the engine. Raises OSError when it could not be started."""
        self._lifeline.setblocking(False)
        word = await asyncio.get_running_loop().sock_recv(self._lifeline, 4096)
        if word.isdigit():
            self._pid = int(word)
            return
        await self.wait()
        raise OSError(word.decode("utf-8", "replace").lstrip("!") or "\n".join(self.tail()) or "the warden died")

    async def _read(self, output: IO[bytes]) -> None:
        said, rest = asyncio.StreamReader(), b""
        protocol = asyncio.StreamReaderProtocol(said)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, output)
        try:
            while data := await said.read(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._keep(line)
                rest = rest[: 4 * TAIL_CHARS]  # of a line without end only the beginning is kept
            if rest:
                self._keep(rest)
        finally:
            pipe.close()

    def _keep(self, line: bytes) -> None:
        text = line[: 4 * TAIL_CHARS].decode("utf-8", "replace").rstrip("\r")
        self._lines.append(self._secrets.hide(text)[:TAIL_CHARS])

    async def wait(self) -> int:
        code = await self._warden.wait()
        try:
            async with self._clock.limit(LAST_LINES_S):
                await asyncio.wait({self._reading})
        except TimeoutError:  # somebody still holds the output: the warden was killed before it could see to that
            self._reading.cancel()
            if self._pid:  # 0 would be our own group
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
        self._lifeline.close()
        return code

    async def stop(self, grace: float) -> None:
        if self._warden.returncode is None:
            with suppress(ProcessLookupError):
                # Not the transport's own send_signal: it polls first, and a poll that reaps the warden takes its exit
                # code from the loop's watcher, which then makes one up.
                os.kill(self._warden.pid, signal.SIGTERM)
            try:
                async with self._clock.limit(grace):
                    await self.wait()
            except TimeoutError:
                self.kill()
        await self.wait()

    def kill(self) -> None:
        """Let go of the lifeline: the warden kills all that is left. Idempotent."""
        self._lifeline.close()

    def tail(self) -> list[str]:
        return list(self._lines)


class ProcessHost:
    """See `ports.ReplicaHost`. find: the driver of a name; raises DriverError for one that starts nothing."""

    def __init__(
        self,
        clock: Clock,
        find: Callable[[str], Startable] = registry.startable,
        secrets: Secrets | None = None,
    ) -> None:
        self._clock = clock
        self._find = find
        self._secrets = secrets or Secrets()

    async def start(self, spec: ProcessSpec) -> Child:
        try:
            driver = self._find(spec.driver)
        except registry.DriverError as error:
            raise OSError(str(error)) from None
        port = _free_port()
        words, environment = driver.command(spec, port), driver.environment(spec)
        ours, theirs = socket.socketpair()
        # A pipe of our own: where asyncio has one, a process ends for it only when nobody holds its output any more.
        output, written = (os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        child: Child | None = None
        try:
            with theirs, written:
                warden = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(WARDEN), str(theirs.fileno())),
                    *words,
                    env=self._secrets.withhold(environment, (*spec.env, spec.api_key_env or "")),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=written,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in a terminal is for the daemon alone
                )
            child = Child(warden, ours, output, port, self._clock, self._secrets)
            await child.greet()
        except BaseException:
            ours.close()  # whatever runs already ends
            if child is None:
                output.close()
            else:
                await child.wait()
            raise
        return child
