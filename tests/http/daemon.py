"""A real daemon in a process of its own, as an operator starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import requests

from orchestratord.testing.session import VerifyingSession

ROOT = Path(__file__).resolve().parents[2]
START_S = 20.0
PATIENCE_S = 60.0  # after which a daemon that should end hangs; machines are shared, so no test asserts less


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(
    folder: Path, *, data: Path | None, slots: int = 1, token_ms: float = 20, grace_ms: int = 1000, **pool: Any
) -> Path:
    """A TOML file with one mock pool `home`; without `data` everything is in memory."""
    where = f'data_dir = "{data}"' if data is not None else ""
    journal, store = ("sqlite", "filesystem") if data is not None else ("memory", "memory")
    extra = "\n".join(f"{name} = {value}" for name, value in pool.items())
    file = folder / "orchestratord.toml"
    file.write_text(
        f"""
allow_mock = true
{where}
server = {{ shutdown_grace_ms = {grace_ms} }}
journal = {{ kind = "{journal}" }}
artifacts = {{ kind = "{store}" }}
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:home.gguf"
{extra}
replicas = [{{ id = "r0", mock = {{ slots = {slots}, token_ms = {token_ms} }} }}]
"""
    )
    return file


class DaemonProcess:
    """`python -m orchestratord serve`. Ends at the latest with the `with` block."""

    def __init__(
        self,
        config: Path | None,
        *,
        port: int | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        module: Sequence[str] = ("orchestratord",),
    ) -> None:
        self.config = config
        self.port = free_port() if port is None else port
        command = [sys.executable, "-W", "ignore", "-m", *module, "serve", "--port", str(self.port)]
        if config is not None:
            command += ["-c", str(config)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ORCHD_", "AUTH_"))}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `output`
        self.process = subprocess.Popen(
            command,
            cwd=cwd or (config.parent if config else None),
            env={**clean, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=self._log,  # a file: nobody reads a pipe while it runs, and a full one would stop it
            stderr=subprocess.STDOUT,
        )
        self._output: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def session(self, token: str | None = None) -> VerifyingSession:
        return VerifyingSession(self.url, token=token)

    def up(self, path: str = "/readyz") -> DaemonProcess:
        """Return once it answers 200."""
        with requests.Session() as asking:
            asking.trust_env = False
            for _ in range(int(START_S / 0.05)):
                with contextlib.suppress(requests.RequestException):
                    if asking.get(self.url + path, timeout=2).status_code == 200:
                        return self
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.05)
                    raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.output()}")
        self.kill()
        raise AssertionError(f"the daemon did not come up:\n{self.output()}")

    def says(self, event: str) -> dict[str, Any]:
        """Its first log record of that event, as soon as there is one."""
        for _ in range(int(START_S / 0.05)):
            written = os.pread(self._log.fileno(), 1 << 20, 0)  # its own offset: the child writes to the same file
            for line in written.splitlines(keepends=True):
                if line.endswith(b"\n") and (record := json.loads(line))["event"] == event:
                    return cast(dict[str, Any], record)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                break
        self.kill()
        raise AssertionError(f"the daemon never said {event}:\n{self.output()}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """The exit code, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end within {PATIENCE_S} s:\n{self.output()}") from None

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        """All it wrote; only once it has ended."""
        if self._output is None:
            with self._log:
                self._log.seek(0)
                self._output = self._log.read().decode()
        return self._output

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        self.output()
