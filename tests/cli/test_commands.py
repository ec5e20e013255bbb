"""Every command against a live daemon: what it prints for people and for scripts, and its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord import cli, contract
from orchestratord.cli import build_parser
from orchestratord.cli.settings import in_force
from orchestratord.client import Client
from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.daemon import free_port, write_config
from tests.http.support import wait_for


@pytest.fixture(scope="module")
def app() -> Iterator[LiveApp]:
    pools = [mock_pool(), mock_pool("away")]
    with LiveApp(mock_settings(pools=pools), manual=False) as app:
        wait_for(lambda: not app.call(app.daemon.pools.not_ready), "the pools are ready")
        yield app


class Command:
    """Runs commands as a shell would, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys, self.url = capsys, url

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = cli.main([*argv, *(("--url", self.url) if argv[0] not in ("config", "doctor", "completion") else ())])
        out, err = self._capsys.readouterr()
        return code, out, err

    def json(self, *argv: str) -> Any:
        code, out, err = self(*argv, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], app: LiveApp, monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in ("AUTH_TOKEN", "AUTH_TOKEN_FILE", "ORCHD_URL", "ORCHD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return Command(capsys, app.url)


def test_a_prompt_is_answered_and_its_transcript_found(command: Command) -> None:
    code, out, err = command("run", "hello", "--max-tokens", "5", "--seed", "7")
    assert (code, "5 tokens, length" in err) == (0, True)
    (newest, *_) = command.json("status", "--tasks", "1")["tasks"]
    assert (newest["state"], newest["tokens_out"]) == ("ended", 5)
    code, text, _ = command("artifacts", "show", newest["task_id"])
    assert (code, text.strip()) == (0, out.strip())
    found = command.json("artifacts", "list", "--tag", f"task:{newest['task_id']}", "--all")
    assert [artifact["kind"] for artifact in found] == ["trace"]
    assert newest["transcript_id"] in command("artifacts", "list")[1]


def test_events_for_scripts(command: Command) -> None:
    code, out, _ = command("run", "hello", "--max-tokens", "3", "--json")
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert (code, events[0], events[-1], events.count("token")) == (0, "admission", "end", 3)


def test_a_failed_task_is_a_failed_command(command: Command, app: LiveApp) -> None:
    app.call(lambda: app.engine().play(MockScript(refuse="no such words")))
    code, _, err = command("run", "hello", "--model", "home")
    assert (code, "INVALID_PARAMS" in err) == (1, True)


def test_pools_at_a_glance_and_in_full(command: Command) -> None:
    code, out, _ = command("status")
    assert (code, "home" in out, "ready" in out) == (0, True, True)
    assert [pool["id"] for pool in command.json("pools")] == ["away", "home"]
    code, out, _ = command("pools", "home")
    assert (code, "home: ready, llamacpp mock-1" in out, "r0: ready" in out) == (0, True, True)
    assert command.json("pools", "home")["slots_total"] == 2


def test_status_is_shown_again_and_again_until_interrupted(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 130, as after Ctrl-C."""
    looks = []

    def wait(_: threading.Event, seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", wait)
        code, out, _ = command("status", "--watch", "--interval-s", "7", "--tasks", "0")
    assert (code, looks, out.count("\x1b[2J")) == (130, [7.0] * 3, 3)
    assert out.count("ready") >= 3


def test_what_engines_say_cannot_steer_the_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes in an engine's last lines are shown, not obeyed; for scripts they stay as they were."""
    real = Client.call
    evil = "\x1b]0;title\x07\x1b[2J\u202egnp\x9b31m"

    def call(self: Client, method: str, path: str, body: Any = None) -> Any:
        answer = real(self, method, path, body)
        if path.endswith("/health"):
            answer["last_error"] = {"code": "ENGINE_EXITED", "message": evil, "at_ms": 1, "log_tail": [evil]}
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Client, "call", call)
        code, out, _ = command("pools", "home")
        assert (code, "title" in out) == (0, True)
        assert not set(out) & set(evil) & set("\x1b\x07\u202e\x9b")
        assert command.json("pools", "home")["last_error"]["message"] == evil


def test_drain_and_resume_stay_until_it_is_done(command: Command) -> None:
    assert command("drain", "away", "--deadline-s", "1")[:2] == (0, "drain of away: succeeded\n")
    assert "draining" in command("pools")[1]
    assert command.json("resume", "away")["state"] == "succeeded"
    assert command.json("resume", "away", "--no-wait")["kind"] == "resume"


def test_a_reload_that_fails_says_why(command: Command) -> None:
    code, out, err = command("reload", "home", "file:/nowhere/model.gguf")
    assert (code, out) == (1, "")
    assert "models.roots" in err


def test_cancel(command: Command, app: LiveApp) -> None:
    app.call(app.engine().hold)
    task_id = Client(app.url).submit(
        workload="completion",
        model_ref="home",
        engine="llamacpp",
        ctx=64,
        max_tokens=5,
        priority="batch",
        deadline_ms=60_000,
        prompt="hi",
    )["task_id"]
    assert command("cancel", task_id)[:2] == (0, f"{task_id} canceled\n")
    app.call(app.engine().release_hold)


MODEL = {
    "id": "m",
    "state": "Active",
    "source_url": "file:m.gguf",
    "tags": [],
    "verification": {"status": "unverified"},
}


@pytest.mark.parametrize(
    ("argv", "asks", "says"),
    [
        (("list", "--state", "Active"), ("GET", "listCatalogModels"), "file:m.gguf"),
        (("show", "m"), ("GET", "getCatalogModel"), "source_url: file:m.gguf"),
        (("verify", "m"), ("POST", "verifyCatalogModel"), "started"),
        (("delete", "m"), ("DELETE", "deleteCatalogModel"), "deleted"),
        (("retire", "m", "--deadline-s", "3"), ("POST", "setCatalogModelState"), "retired"),
        (("activate", "m"), ("POST", "setCatalogModelState"), "active"),
        (("add", "m", "file:m.gguf", "--digest", f"sha256:{'0' * 64}"), ("POST", "createCatalogModel"), "catalog"),
    ],
)
def test_models_asks_what_the_contract_has(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], asks: tuple[str, str], says: str
) -> None:
    """Each action is one request of the contract, with a body that its schema accepts."""
    asked: list[tuple[str, str, Any]] = []

    def call(_: Client, method: str, path: str, body: Any = None) -> Any:
        asked.append((method, path, body))
        return {"items": [MODEL], "next_cursor": None} if path.partition("?")[0] == "/v1/catalog/models" else MODEL

    monkeypatch.setattr(Client, "call", call)
    code, out, _ = command("models", *argv)
    assert (code, says in out) == (0, True), out
    ((method, path, body),) = asked
    operation = next(o for o in contract.operations() if o.operation_id == asks[1])
    assert (method, operation.method) == (asks[0], asks[0])
    assert re.fullmatch(re.sub(r"{[^}]+}", "[^/]+", operation.path), path.partition("?")[0])
    if operation.body_schema is not None:
        assert list(contract.compile_schema(operation.body_schema).iter_errors(body)) == []


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["cancel", "nonsense"], 1, "INVALID_PARAMS"),
        (["pools", "nowhere"], 1, "NOT_FOUND"),
        (["run", "x", "--model", "nowhere"], 75, "orchestratord status"),
    ],
)
def test_what_fails_says_why(command: Command, argv: list[str], code: int, says: str) -> None:
    got, _, err = command(*argv)
    assert (got, says in err) == (code, True), err


def test_no_daemon_no_token_no_address(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.url = f"http://127.0.0.1:{free_port()}"
    code, _, err = command("status")
    assert (code, "orchestratord serve" in err) == (69, True)
    command.url = "nonsense"
    assert command("status")[0] == 2
    with LiveApp(msgspec.structs.replace(mock_settings(), token="secret-of-the-test"), manual=False) as closed:
        command.url = closed.url
        code, _, err = command("pools")
        assert (code, "AUTH_TOKEN" in err) == (77, True)
        file = tmp_path / "token"
        file.write_text("secret-of-the-test\n")
        assert command("pools", "--token", str(file))[0] == 0
        monkeypatch.setenv("AUTH_TOKEN", "secret-of-the-test")
        assert command("pools")[0] == 0


def test_config_is_checked_and_explained(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path, data=None)
    code, out, _ = command("config", "check", str(file))
    assert (code, out.startswith("ok: ")) == (0, True)
    monkeypatch.setenv("ORCHD_SERVER__PORT", "9000")
    rows = {row["setting"]: row for row in json.loads(command("config", "show", str(file), "--json")[1])}
    assert (rows["server.port"]["value"], rows["server.port"]["origin"]) == (9000, "environment ORCHD_SERVER__PORT")
    assert rows["pools.0.id"]["origin"] == f"file {file}"
    assert rows["server.host"]["origin"] == "default"
    assert "ORIGIN" in command("config", "show", str(file), "--origin")[1]
    file.write_text("[sever]\nport = 1\n")
    code, _, err = command("config", "check", str(file))
    assert (code, "Did you mean 'server'" in err) == (78, True)
    assert json.loads(command("config", "schema")[1])["$ref"].endswith("Settings")


def test_no_secret_is_shown() -> None:
    rows = in_force(None, {"AUTH_TOKEN": "secret-of-the-test"})
    assert ("token", "set", "environment AUTH_TOKEN") in rows
    assert "secret-of-the-test" not in repr(rows)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_a_script(command: Command, shell: str) -> None:
    code, out, _ = command("completion", shell)
    assert (code, "orchestratord" in out, "drain" in out) == (0, True, True)
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)


def test_every_command_has_help_and_the_same_flags() -> None:
    parser = build_parser()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    seen = 0
    for name, sub in commands.choices.items():  # type: ignore[union-attr]
        actions = [a for a in sub._actions if a.dest == "action"]
        leaves = actions[0].choices if actions else {name: sub}
        for leaf in leaves.values():
            flags = {flag for action in leaf._actions for flag in action.option_strings}
            assert leaf.description, name
            assert "--json" in flags or {name} & {"serve", "demo", "completion"} or "schema" in leaf.prog, leaf.prog
            assert ("--url" in flags) is ("--token" in flags) or name == "verify"
            seen += 1
    assert seen >= 20
