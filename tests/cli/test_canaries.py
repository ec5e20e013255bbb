"""Secrets and prompts are put in everywhere one can put them, and everything that comes out is searched for them.

The daemon is a real one in a process of its own, so that its arguments, its environment, its files and what it writes
to standard error are those an operator has.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestratord import cli
from tests.http.daemon import DaemonProcess
from tests.http.support import RawConnection, task, wait_for


def canary(name: str) -> str:
    return f"canary-{name}-5f1e9b"


TOKEN, OLD, KEY, FETCH, PASSWORD, CHILD, OPTION, PROMPT = map(
    canary, ("token", "wrong", "key", "fetch", "password", "child", "option", "prompt")
)
BUCKET = canary("bucket")
SECRETS = (TOKEN, KEY, FETCH, PASSWORD, CHILD, OPTION, BUCKET)
ENVIRONMENT = {"AUTH_TOKEN": TOKEN, "REMOTE_KEY": KEY, "HUB_TOKEN": FETCH, "AWS_SECRET_ACCESS_KEY": BUCKET}


class Telltale(http.server.BaseHTTPRequestHandler):
    """An engine that repeats the credentials it was sent, in every reply."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization", "")
        self.heard.append(sent)
        body = json.dumps({"error": {"message": f"I do not like {sent}, nor {_decoded(sent)}"}}).encode()
        self.send_response(500, sent)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Sent", sent)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name the library looks for

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 - the library's name
        pass


def _decoded(header: str) -> str:
    kind, _, rest = header.partition(" ")
    return base64.b64decode(rest).decode() if kind == "Basic" else ""


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Telltale)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def configuration(folder: Path, engine: str, form: str) -> Path:
    shameless = folder / "shameless"  # an engine that prints its arguments and its environment, and dies
    shameless.write_text(f'#!/bin/sh\necho "args: $@"\nenv | tee {folder}/child-env\necho "key: $MY_API_KEY"\nexit 1\n')
    shameless.chmod(0o755)
    file = folder / "orchestratord.toml"
    file.write_text(f"""
allow_mock = true
data_dir = "{folder}/data"
log = {{ format = "{form}", level = "debug" }}
[models]
roots = ["{folder}"]
[models.fetch]
schemes = ["https", "s3"]
hosts = ["{engine}"]
allow_private = ["{engine}"]
tokens = {{ "{engine}" = "HUB_TOKEN" }}
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:home.gguf"
replicas = [{{ id = "r0", mock = {{ slots = 2 }} }}]
[[pools]]
id = "away"
engine = "vllm"
model = "file:away"
[[pools.replicas]]
id = "r0"
url = "http://{engine}"
api_key_env = "REMOTE_KEY"
[[pools.replicas]]
id = "r1"
url = "http://user:{PASSWORD}@{engine}"
[[pools]]
id = "child"
engine = "llamacpp"
model = "file:child.gguf"
[[pools.replicas]]
id = "r0"
[pools.replicas.process]
model_path = "{shameless}"
binary = "{shameless}"
extra_args = ["--api-key", "{OPTION}"]
env = {{ MY_API_KEY = "{CHILD}" }}
""")
    return file


class Seen:
    """Everything that came out, by where it came from."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def add(self, place: str, text: object) -> None:
        self.places[f"{len(self.places)} {place}"] = str(text)

    def answers(self, place: str, answer: Any) -> Any:
        self.add(place, f"{answer.headers}\n{answer.text}")
        return answer

    def leaks(self, *secrets: str) -> list[str]:
        return [
            f"{s} in {place}: ...{near(text, s)}" for place, text in self.places.items() for s in secrets if s in text
        ]


def near(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 80) : at + 60]


def ended(session: Any, task_id: str) -> bool:
    return "ended_at_ms" in session.get(f"/v1/tasks/{task_id}").json()


def ask(daemon: DaemonProcess, seen: Seen, engine: str) -> None:
    """Prompts and tokens wherever a client can write something."""
    session = daemon.session(TOKEN)
    session.trust_env = False
    ends = [
        task(prompt=PROMPT),
        task(prompt=None, messages=[{"role": "user", "content": PROMPT}]),
        task(prompt=None, workload="embedding", inputs=[PROMPT]),
        task(prompt=PROMPT, workload="rerank", inputs=[PROMPT]),
    ]
    refused = [
        task(prompt=PROMPT, messages=[{"role": "user", "content": PROMPT}]),
        task(prompt=[PROMPT]),
        task(prompt={"text": PROMPT}),
        task(prompt=f"{PROMPT} " * 4000, ctx=50),
        task(prompt=None, inputs=PROMPT),
        task(prompt=None, inputs=[{"text": PROMPT}], workload="embedding"),
        task(prompt=None, inputs=[PROMPT] * 300, workload="embedding"),
        task(prompt=None, messages=PROMPT),
        task(prompt=None, messages=[PROMPT]),
        task(prompt=None, messages=[{"role": PROMPT, "content": "x"}]),
        task(prompt=None, messages=[{"role": "user", "content": [PROMPT]}]),
        task(prompt=None, messages=[{"role": "user", "text": PROMPT, "content": "x"}]),
        task(prompt=PROMPT, model_ref="nobody-has-it"),
        task(prompt=PROMPT, deadline_ms=1, max_tokens=400),
        task(prompt=PROMPT, engine="vllm", model_ref="away"),
        task(prompt=PROMPT, max_tokens="many"),
        {"prompt": PROMPT},
    ]
    for body in ends + refused:
        seen.answers("POST /v1/tasks", session.post("/v1/tasks", json=body))
    for body in ends:
        wait_for(partial(ended, session, body["task_id"]), "the end")
        seen.answers("the same again", session.post("/v1/tasks", json=body))
        seen.answers("another body", session.post("/v1/tasks", json={**body, "max_tokens": 2}))
        with session.events(body["task_id"]) as events:
            seen.add("stream", [frame.raw for frame in events])
    for raw in (f'{{"prompt": "{PROMPT}', f'["{PROMPT}"]', f'"{PROMPT}"', f'{{"prompt": "{PROMPT}\\ud800"}}'):
        with RawConnection(daemon.url) as connection:
            head = f"POST /v1/tasks HTTP/1.1\r\nHost: {connection.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            connection.send((head + raw).encode())
            seen.add("a broken body", connection.answer())
    for credentials in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"Bearer {OLD}"):
        seen.answers("401", session.get("/v1/pools", headers={"Authorization": credentials}))
    for path in (f"/v1/pools?token={TOKEN}", f"/{TOKEN}", f"/v1/tasks/{TOKEN}", f"/v1/tasks/{uuid.uuid4()}/{TOKEN}"):
        for method in ("GET", "POST", "DELETE"):
            with RawConnection(daemon.url) as connection:
                head = f"{method} {path} HTTP/1.1\r\nHost: {connection.host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
                connection.send(head.encode())
                seen.add(f"{method} {path.replace(TOKEN, '...')}", connection.answer())
    for name in ("Host", "Origin", "User-Agent", "Cookie", "Last-Event-ID", "X-Trust-Policy", "Content-Type"):
        with RawConnection(daemon.url) as connection:
            host = "" if name == "Host" else f"Host: {connection.host}\r\n"
            connection.send(f"GET /v1/pools HTTP/1.1\r\n{host}{name}: {TOKEN}\r\n\r\n".encode())
            seen.add(f"header {name}", connection.answer())
    session.get("/v1/pools", headers={"X-Correlation-Id": TOKEN})  # comes back to whoever sent it, and is in no line
    entry = {"id": "m", "source_url": f"https://{engine}/m.gguf", "tags": [], "digest": f"sha256:{'0' * 64}"}
    seen.answers("catalog", session.post("/v1/catalog/models", json=entry))
    seen.answers("verify", session.post("/v1/catalog/models/m/verify"))
    seen.answers("reload", session.post("/v1/pools/child/reload", json={"new_model_ref": "s3://bucket/model.gguf"}))


def look(daemon: DaemonProcess, seen: Seen) -> None:
    """Whatever can be read of a daemon."""
    session = daemon.session(TOKEN)
    for path in (
        *("/metrics", "/docs", "/healthz", "/readyz", "/openapi/data.json", "/openapi/control.yaml"),
        *("/v1/capabilities", "/v1/pools", "/v1/catalog/models", "/v1/catalog/models/m", "/v1/artifacts?limit=200"),
        *("/v1/pools/home/health", "/v1/pools/away/health", "/v1/pools/child/health", "/v1/tasks?limit=200"),
    ):
        seen.answers(path, session.get(path))
    for artifact in session.get("/v1/artifacts?limit=200").json()["items"]:
        seen.answers("transcript", session.get(f"/v1/artifacts/{artifact['id']}"))
    for item in session.get("/v1/tasks?limit=200").json()["items"]:
        seen.answers("task", session.get(f"/v1/tasks/{item['task_id']}"))
    pid = daemon.process.pid
    seen.add("arguments", Path(f"/proc/{pid}/cmdline").read_bytes())
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4] == "0", "a core dump would hold prompts"


def command_lines(daemon: DaemonProcess, seen: Seen, patch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    url, config = ["--url", daemon.url], str(daemon.config)
    for words in (
        *(["config", "show", config, *more] for more in ([], ["--origin"], ["--json"])),
        ["config", "check", config, "--json"],
        *(["doctor", "-c", config, *more] for more in ([], ["--json"])),
        *([*words, "--json", *url] for words in (["pools"], ["pools", "away"], ["status"], ["models", "list"])),
        ["artifacts", "list", "--json", *url],
        ["pools", "child", *url],
    ):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert cli.main(words) in (0, 1), said.getvalue()
        seen.add(" ".join(words[:2]), said.getvalue())


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_secret_stays_so(tmp_path: Path, engine: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I23, H3: the daemon's token, keys of engines, passwords in URLs, credentials for fetching, variables and options
    of children, and prompts: in logs, figures, error bodies, transcripts, files, arguments, CLI and doctor, never."""
    seen = Seen()
    with DaemonProcess(configuration(tmp_path, engine, form), env=ENVIRONMENT) as daemon:
        session = daemon.session(TOKEN)
        wait_for(lambda: _ready(session), "the mock pool is ready", 60)
        said = "the child has died, and its words are shown without what is secret"
        wait_for(lambda: "[redacted]" in session.get("/v1/pools/child/health").text, said, 60)
        wait_for(lambda: any(KEY in heard for heard in Telltale.heard), "the engine has heard its key")
        ask(daemon, seen, engine)
        look(daemon, seen)
        if form == "json":
            command_lines(daemon, seen, monkeypatch)
        daemon.signal()
        assert daemon.ended() == 0
        seen.add("log", daemon.output())
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file():
            seen.add(f"file {file.name}", file.read_bytes().decode("latin-1"))
    leaks = seen.leaks(*SECRETS, PROMPT)
    assert not leaks, "\n".join(leaks)
    assert len(seen.places) > 90
    child = (tmp_path / "child-env").read_text()
    assert f"MY_API_KEY={CHILD}" in child, "a child has what is its own"
    assert not [name for name in ENVIRONMENT if f"\n{name}=" in f"\n{child}"]
    assert "ORCHD_" not in child


def _ready(session: Any) -> bool:
    try:
        return bool(session.get("/v1/pools/home/health").json()["ready"])
    except OSError:
        return False
