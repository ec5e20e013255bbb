"""Files with secrets that others can read: who tells, and when nobody does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestratord import cli, config
from orchestratord.cli.doctor import examine
from orchestratord.cli.exposure import exposed
from tests.http.daemon import DaemonProcess, write_config

POOL = '[[pools]]\nid = "p"\nengine = "llamacpp"\nmodel = "file:m.gguf"\n[[pools.replicas]]\nid = "r"\n'
HOLDING = {
    "none": ('url = "http://h:1"\n', False),
    "url": ('url = "http://u:canary-password@h:1"\n', True),
    "env": ('process = { model_path = "/m", env = { LLAMA_API_KEY = "canary-key" } }\n', True),
    "harmless env": ('process = { model_path = "/m", env = { OMP_NUM_THREADS = "2" } }\n', False),
    "short option": ('process = { model_path = "/m", extra_args = ["-hft", "canary-key"] }\n', True),
    "option": ('process = { model_path = "/m", extra_args = ["--api-key", "canary-key"] }\n', True),
}


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    path.write_text("a-canary-of-a-token")
    path.chmod(0o600)
    monkeypatch.setenv("AUTH_TOKEN_FILE", str(path))
    return path


@pytest.mark.parametrize(("mode", "open_"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_the_file_of_the_token(
    token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, open_: bool
) -> None:
    """OD-27: `doctor` and `config check` warn of the same, and neither shows what is in it."""
    token.chmod(mode)
    file = tmp_path / "c.toml"
    file.write_text("")
    fixes = [finding.fix for finding in examine(file) if finding.check == "secrets"]
    assert fixes == [f"chmod 600 {token}"] * open_
    assert cli.main(["config", "check", str(file)]) == 0
    said = capsys.readouterr()
    assert (f"warning: others on this machine can read {token}" in said.err, fixes == []) == (open_, not open_)
    assert cli.main(["config", "check", str(file), "--json"]) == 0
    answer = capsys.readouterr()
    assert len(json.loads(answer.out)["warnings"]) == open_
    assert "canary" not in said.out + said.err + answer.out + answer.err


@pytest.mark.parametrize(("replica", "holds"), HOLDING.values(), ids=HOLDING)
def test_a_configuration_with_secrets_of_its_own(tmp_path: Path, replica: str, holds: bool) -> None:
    file = tmp_path / "c.toml"
    file.write_text(POOL + replica)
    file.chmod(0o644)
    settings = config.load(file, {})
    assert [found.path for found in exposed(settings, file, {})] == [file] * holds
    file.chmod(0o600)
    assert list(exposed(settings, file, {})) == []


def test_what_systemd_keeps_is_not_ours_to_judge(token: Path) -> None:
    """Its credentials show the mask of an access list where the group's rights would be."""
    token.chmod(0o440)
    environ = {"AUTH_TOKEN_FILE": str(token)}
    settings = config.load(None, environ)
    assert len(list(exposed(settings, None, environ))) == 1
    assert list(exposed(settings, None, {**environ, "CREDENTIALS_DIRECTORY": str(token.parent)})) == []


def test_a_pipe_has_no_mode_that_counts(tmp_path: Path) -> None:
    """As of `AUTH_TOKEN_FILE=<(pass show orchestratord)`."""
    os.mkfifo(tmp_path / "pipe", 0o666)
    os.chmod(tmp_path / "pipe", 0o666)
    assert list(exposed(config.Settings(), None, {"AUTH_TOKEN_FILE": str(tmp_path / "pipe")})) == []


def test_the_start_tells_once(token: Path, tmp_path: Path) -> None:
    """OD-27: as a warning, before it listens, with the command that mends it."""
    token.chmod(0o644)
    with DaemonProcess(write_config(tmp_path, data=None), env={"AUTH_TOKEN_FILE": str(token)}) as daemon:
        line = daemon.says("secret_exposed")
        daemon.says("listening")
    assert (line["level"], line["path"]) == ("warning", str(token))
    assert line["human"].endswith(f": chmod 600 {token}")
    events = [json.loads(text)["event"] for text in daemon.output().splitlines()]
    assert events.count("secret_exposed") == 1
    assert events.index("secret_exposed") < events.index("listening")
    assert "canary" not in daemon.output()
