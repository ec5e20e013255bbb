"""Every command against a live daemon: what it prints for people and for scripts, and its exit code."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord import cli, contract
from orchestratord.cli import build_parser
from orchestratord.cli.settings import in_force
from orchestratord.client import Client, Event, Unreachable
from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.daemon import ROOT, free_port, write_config
from tests.http.support import wait_for


@pytest.fixture(scope="module")
def app() -> Iterator[LiveApp]:
    small = mock_pool("small", ctx=512, engine="vllm", aliases=["home-latest"])
    pools = [mock_pool(), mock_pool("away"), small]
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
    assert [pool["id"] for pool in command.json("pools")] == ["away", "home", "small"]
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


def test_what_a_model_writes_cannot_steer_the_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal escapes are shown; a file or a pipe gets the text as it is."""
    evil = "a\tb\n\x1b]52;c;cm0gLXJm\x07\x9b31m"
    end = {"tokens_out": 1, "finish_reason": "stop"}
    monkeypatch.setattr(Client, "stream", lambda *_: iter([Event(1, "token", {"t": evil}), Event(2, "end", end)]))
    assert command("run", "hello")[1] == f"{evil}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command("run", "hello")[1] == "a\tb\n\\x1b]52;c;cm0gLXJm\\x07\\x9b31m\n"


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
        (["run", "x", "--model", "nowhere"], 1, "POOL_UNREADY"),
        (["drain", "my pool"], 1, "INVALID_PARAMS"),
        (["resume", "p\u00f6ol"], 1, "INVALID_PARAMS"),
        (["pools", "../../healthz?x="], 1, "NOT_FOUND"),
        (["models", "show", "a/b"], 1, "NOT_FOUND"),
        (["artifacts", "show", "no such"], 1, "INVALID_PARAMS"),
    ],
)
def test_what_fails_says_why(command: Command, argv: list[str], code: int, says: str) -> None:
    got, _, err = command(*argv)
    assert (got, says in err) == (code, True), err


def test_a_model_may_be_named_by_its_alias_and_gets_no_more_room_than_it_has(command: Command) -> None:
    """`home-latest` is an alias of the third pool, on another engine and with 512 tokens; the prompt has 600 bytes."""
    code, _, err = command("run", "word " * 120, "--model", "home-latest", "--max-tokens", "4")
    assert (code, "4 tokens, length" in err) == (0, True), err
    code, _, err = command("run", "word " * 900, "--model", "home-latest", "--max-tokens", "4")
    assert (code, "INVALID_PARAMS" in err) == (1, True)


def test_one_task_that_cannot_be_canceled_keeps_no_other(command: Command, app: LiveApp) -> None:
    app.call(app.engine().hold)
    client = Client(app.url)
    fields = {"workload": "completion", "model_ref": "home", "engine": "llamacpp", "ctx": 64, "max_tokens": 5}
    task_id = client.submit(**fields, priority="batch", deadline_ms=60_000, prompt="hi")["task_id"]
    code, out, err = command("cancel", "nonsense", task_id)
    assert (code, out, "INVALID_PARAMS" in err) == (1, f"{task_id} canceled\n", True)
    app.call(app.engine().release_hold)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1e300", "soon"])
def test_times_are_numbers_of_seconds(command: Command, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "x", "--deadline-s"], ["drain", "home", "--deadline-s"], ["status", "--interval-s"]):
        with pytest.raises(SystemExit) as left:
            command(*words, given)
        assert left.value.code == 2
        assert "seconds" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["pools"], ["verify"]])
def test_a_token_that_cannot_be_sent_is_not_shown(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe a canary")
    where = ["--url"] if words != ["verify"] else []
    assert cli.main([*words, *where, "http://127.0.0.1:1", "--token", str(file)]) == 2
    said = capsys.readouterr().err
    assert ("it is not text" in said, "canary" in said) == (True, False)
    assert cli.main([*words, *where, "http://127.0.0.1:1", "--token", str(tmp_path / "none")]) == 2
    monkeypatch.setenv("AUTH_TOKEN", "canary\nof a token")
    assert cli.main([*words, *where, "http://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert ("line break" in said, "canary" in said) == (True, False)


@pytest.mark.parametrize("token", ["p\u00e4ssw\u00f6rd-\u20ac", "two words"])
def test_a_token_is_read_as_the_daemon_reads_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    """Blanks around it do not count, and it may have any letters."""
    monkeypatch.setenv("AUTH_TOKEN", f" {token}\n")
    with LiveApp(msgspec.structs.replace(mock_settings(), token=token), manual=False) as closed:
        command.url = closed.url
        assert command("pools")[0] == 0
        assert cli.main(["verify", closed.url]) == 0, capsys.readouterr().out


class Stranger(socketserver.BaseRequestHandler):
    """Answers anything with what the server was given to say."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(self.server.says)  # type: ignore[attr-defined]


OTHERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "a page": b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "other JSON": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"detail": 1}',
}


@pytest.mark.parametrize("says", OTHERS.values(), ids=OTHERS)
def test_somebody_else_at_the_address_is_no_daemon(command: Command, says: bytes) -> None:
    """69, whatever it is, and the address."""
    with socketserver.TCPServer(("127.0.0.1", 0), Stranger) as server:
        server.says = says  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            command.url = f"http://127.0.0.1:{server.server_address[1]}"
            code, out, err = command("status")
        finally:
            server.shutdown()
            thread.join()
    assert (code, out, "no daemon answers at " + command.url in err) == (69, "", True), err


def test_a_stream_is_resumed_while_the_daemon_restarts(monkeypatch: pytest.MonkeyPatch, app: LiveApp) -> None:
    """Five times, each after a longer pause; one who has everything is not told that it broke."""
    client, waits = Client(app.url), list[float]()
    fields = {"workload": "completion", "model_ref": "home", "engine": "llamacpp", "ctx": 64, "max_tokens": 2}
    task_id = client.submit(**fields, priority="batch", deadline_ms=60_000, prompt="hi")["task_id"]
    *_, last = client.stream(task_id)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", lambda _, seconds: waits.append(seconds))
        assert list(client.stream(task_id, after=last.id or 0)) == []
        assert waits == []
        with pytest.raises(Unreachable):
            list(Client(f"http://127.0.0.1:{free_port()}").stream(task_id))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2]


def run_here(*words: str, stdout: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "orchestratord", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("words", [("config", "schema"), ("config", "check"), ("status",), ("run", "hi")])
def test_output_that_cannot_be_written_is_told_as_that(app: LiveApp, words: tuple[str, ...], tmp_path: Path) -> None:
    """A full disk is a failure of the command, not of the daemon, and a reader that has had enough is none."""
    with open("/dev/full", "w") as full:
        done = run_here(*words, stdout=full, ORCHD_URL=app.url, XDG_STATE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr.splitlines()[-1].partition(": ")[2]) == (
        1,
        "the output cannot be written: No space left on device",
    )
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken:
        done = run_here(*words, stdout=broken, ORCHD_URL=app.url, XDG_STATE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_lacks_a_letter(tmp_path: Path) -> None:
    file = tmp_path / "caf\u00e9.toml"
    file.write_text("")
    done = run_here("config", "check", str(file), stdout=subprocess.PIPE, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, "caf\\xe9.toml" in done.stdout) == (0, True), done.stderr


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


def test_no_secret_is_shown(tmp_path: Path) -> None:
    rows = in_force(None, {"AUTH_TOKEN": "secret-of-the-test"})
    assert ("token", "set", "environment AUTH_TOKEN") in rows
    file = tmp_path / "token"
    file.write_text("secret-of-the-test")
    from_file = in_force(None, {"AUTH_TOKEN_FILE": str(file), "AUTH_TOKEN": "another"})
    assert ("token", "set", "environment AUTH_TOKEN_FILE") in from_file
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
