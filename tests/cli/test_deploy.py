"""The files under deploy/ as far as they can be tried here, and the way of a newcomer from nothing to an answer."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestratord import config
from orchestratord.cli import build_parser
from tests.http.daemon import ROOT, free_port

DEPLOY = ROOT / "deploy"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(DEPLOY / "orchestratord.service")
    return parser


def test_the_example_configuration_is_valid() -> None:
    settings = config.load(DEPLOY / "config.toml", {})
    assert [pool.id for pool in settings.pools] == ["coder"]


def test_the_unit_starts_the_command_there_is_and_stops_it_in_time() -> None:
    service = unit()["Service"]
    program, *argv = service["ExecStart"].split()
    assert Path(program).name == "orchestratord"
    assert build_parser().parse_args(argv).command == "serve"
    grace = config.load(DEPLOY / "config.toml", {}).server.shutdown_grace_ms / 1000
    assert int(service["TimeoutStopSec"]) > grace + 5
    assert set(service["RestartPreventExitStatus"].split()) == {"69", "78"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "orchestratord.service"
    text = (
        (DEPLOY / "orchestratord.service").read_text().replace("/opt/orchestratord/bin/orchestratord", sys.executable)
    )
    copy.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_container_sets_what_the_daemon_reads(tmp_path: Path) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    found = dict(re.findall(r"(ORCHD_\w+)=(\S+)", text))
    file = tmp_path / "config.toml"
    file.write_text("")
    environ = {name: value for name, value in found.items() if name != "ORCHD_CONFIG"}
    with pytest.raises(config.ConfigError, match="AUTH_TOKEN"):
        config.load(file, environ)
    settings = config.load(file, {**environ, "AUTH_TOKEN": "a-long-enough-secret"})
    assert (settings.server.host, str(settings.data_path)) == ("0.0.0.0", "/var/lib/orchestratord")
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


def test_the_way_of_a_newcomer(tmp_path: Path) -> None:
    """Doctor, serve, run, look, break something, read the error, find the cause; a home of one's own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    keep = ("PATH", "LANG", "VIRTUAL_ENV")
    environ = {name: os.environ[name] for name in keep if name in os.environ}
    environ |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "ORCHD_URL": url}
    environ |= {"XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}

    def orchestratord(*argv: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "orchestratord", *argv]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    code, said, _ = orchestratord("doctor")
    assert (code, "no pool is configured" in said) == (0, True)
    code, _, error = orchestratord("status")
    assert (code, "orchestratord serve" in error) == (69, True)

    file = tmp_path / "config" / "orchestratord" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"allow_mok = true\nserver = {{ port = {port} }}\n")
    code, _, error = orchestratord("serve")
    assert (code, "Did you mean 'allow_mock'" in error) == (78, True)
    pool = '[[pools]]\nid = "home"\nengine = "llamacpp"\nmodel = "file:m.gguf"\nreplicas = [{ id = "r0", mock = {} }]\n'
    file.write_text(f"allow_mock = true\nserver = {{ port = {port} }}\n{pool}")
    code, said, _ = orchestratord("config", "check")
    assert (code, "1 pools" in said) == (0, True)

    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "orchestratord", "serve"], env=environ, cwd=tmp_path, stderr=log
        )
        try:
            for _ in range(40):
                code, said, error = orchestratord("run", "hello", "--max-tokens", "4")
                if code not in (69, 75):
                    break
            assert (code, "4 tokens" in error) == (0, True), error
            code, said, _ = orchestratord("status")
            assert (code, "home" in said, "ended" in said) == (0, True, True)
            code, _, error = orchestratord("run", "hello", "--max-tokens", "100000000")
            assert (code, "INVALID_PARAMS" in error, "ctx" in error) == (1, True, True), error
            code, _, error = orchestratord("serve")
            assert (code, "is a daemon running already" in error) == (69, True)
            code, said, _ = orchestratord("doctor")
            assert "a daemon is running" in said
        finally:
            daemon.terminate()
            assert daemon.wait(20) == 0
    assert {json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()} >= {"daemon_stopped"}
    assert (tmp_path / "state" / "orchestratord" / "journal.db").exists()
