"""The files under deploy/ as far as they can be tried here."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestratord import config
from orchestratord.cli import build_parser
from tests.http.daemon import ROOT

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
