"""The log: one valid line for each record whatever stands in it, harmless on a terminal, never in the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord.infra.lines import PENDING_BYTES, Lines
from orchestratord.infra.logs import Format, make_sink, told, trace
from orchestratord.infra.prometheus import Metrics
from orchestratord.infra.secrets import Secrets
from orchestratord.infra.telemetry import StandardTelemetry
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.http.daemon import ROOT
from tests.http.support import RawConnection
from tests.services.support import BreakingJournal, records, running, submit, task

HOSTILE: dict[str, Any] = {
    "newline": "a\nb\r\nc",
    "forged": '"}\n{"event":"forged","level":"info"}',
    "ansi": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "c1": "\x9b31mred\x90x\x9c",
    "nul": "a\x00b",
    "del": "a\x7fb",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "bidi": "\u202egnp.exe\u2066x\u2069\u200fy",
    "zero_width": "pay\u200bpal\ufeff",
    "surrogate": "a\ud800b",
    "huge": "x" * 300_000,
    "huge_int": 2**80,
    "not_a_number": float("nan"),
    "bytes": b"raw\xff\n",
    "object": object(),
    "nested": {"a": [{"b": ["\n"] * 1000}] * 1000, ("odd", "key"): {1, 2}},
    "deep": [[[[[[[["\x1b"]]]]]]]],
    "exception": KeyError("what the client\nwrote"),
    "emoji": "\N{GRINNING FACE}",
}


def telemetry_on(stream: Any, **how: Any) -> StandardTelemetry:
    return StandardTelemetry(Metrics(), make_sink(stream, **how))


def written(form: Format, **fields: Any) -> str:
    stream = io.StringIO()
    human = fields.pop("human", "a sentence")
    telemetry_on(stream, form=form).event("it_happened", human, **fields)
    return stream.getvalue()


def harmless(text: str) -> bool:
    """No character that ends a line, steers a terminal or hides what comes after it."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") for c in text)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["field", "human", "key"])
@pytest.mark.parametrize("form", ["json", "console"])
def test_one_record_is_one_harmless_line(form: Format, place: str, value: Any) -> None:
    """H8: newlines, escapes, NUL, U+2028, huge values, in what is told and in names; on both formats."""
    if place == "key":
        fields = {str(value)[:100] if isinstance(value, str) else "field": value}
    else:
        fields = {place: str(value) if place == "human" else value}
    line = written(form, **fields)
    assert line.endswith("\n")
    assert harmless(line[:-1])
    assert line.splitlines() == line.split("\n")[:-1] == [line[:-1]]
    assert len(line) < 200_000
    if form == "json":
        record = json.loads(line)
        assert (record["event"], record["level"]) == ("it_happened", "info")
        assert isinstance(record["human"], str)


def test_common_text_of_any_language_stays_readable() -> None:
    """Only what does harm is written out."""
    said = "Grüße, 你好, café \N{GRINNING FACE}"
    assert said in written("json", field=said)
    assert said in written("console", field=said)
    assert json.loads(written("json", field="a\u2028\x7fb"))["field"] == "a\u2028\x7fb"


def test_an_exception_is_told_without_what_it_quotes() -> None:
    """Messages of data errors quote the data; the place they came from is told all the same."""

    def inner(text: str) -> None:
        try:
            {}[text]
        except KeyError as error:
            raise RuntimeError("while looking it up") from error

    secret = "the client's own words"
    shown = []
    for fail in (lambda: inner(secret), lambda: int(secret), lambda: (secret + "\ud800").encode()):
        try:
            fail()
        except Exception as error:
            shown += [*trace(error), told(error)]
            for form in ("json", "console"):
                shown.append(written(form, error=error, exc_info=error))  # type: ignore[arg-type]
    text = "\n".join(shown)
    assert secret not in text
    assert all(word in text for word in ("KeyError", "RuntimeError: while looking it up", "ValueError", "in inner"[3:]))
    line = written("json", exc_info=RuntimeError("x"))
    assert json.loads(line)["exception"] == ["RuntimeError: x"]


def test_a_trace_on_the_console_cannot_forge_a_line() -> None:
    text = written("console", exc_info=RuntimeError("x\n2026-01-01 [info] forged \x1b[31m"))
    assert harmless(text.replace("\n", ""))
    first, *rest = text.splitlines()
    assert "a sentence" in first
    assert all(line.startswith("    ") for line in rest)


def test_levels() -> None:
    stream = io.StringIO()
    telemetry = StandardTelemetry(Metrics(), make_sink(stream, form="json", level="warning"))
    for name in ("task_started", "replica_down", "run_failed", "operation_broke"):
        telemetry.event(name, "x")
    told_of = [(record["event"], record["level"]) for record in map(json.loads, stream.getvalue().splitlines())]
    assert told_of == [("replica_down", "warning"), ("run_failed", "error"), ("operation_broke", "error")]


# -- which format ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "terminal", "readable"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("json", True, False),
        ("console", False, True),
    ],
)
def test_people_get_sentences_and_programs_get_json(form: Format, terminal: bool, readable: bool) -> None:
    """A terminal is told from a pipe; a setting beats both. Without a terminal there are no colours."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with os.fdopen(theirs, "w") as stream:
        telemetry_on(stream, form=form).event("it_happened", "the sentence", field=1)
        text = os.read(ours, 65536).decode()
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert ("\x1b" in text) is (readable and terminal)
    if readable:
        assert plain.index("the sentence") < plain.index("field") < plain.index("it_happened")
    else:
        assert json.loads(plain)["human"] == "the sentence"


# -- never in the way ------------------------------------------------------------------------------------------
class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Broken(), closed):
        telemetry_on(stream, form="json").event("it_happened")


def test_a_reader_that_stalls_does_not_stall_the_daemon_and_is_told_what_it_missed() -> None:
    """A full pipe: writing returns at once; no line is torn; the number of lost ones stands in their place."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as stream:
        logger = telemetry_on(stream, form="json")
        count = 2000
        for number in range(count):
            logger.event("it_happened", number=number, filling="x" * 500)
        os.set_blocking(ours, False)
        text = b""
        for _ in range(8):  # each line that is logged sends what was pending, as far as there is room
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(ours, 1 << 16):
                    text += chunk
            logger.event("on_and_on")
        records = [json.loads(line) for line in text.decode().splitlines()]
    os.close(ours)
    kept = [record["number"] for record in records if record["event"] == "it_happened"]
    (lost,) = [record["count"] for record in records if record["event"] == "log_lines_dropped"]
    assert kept == list(range(len(kept)))
    assert lost > 0
    assert PENDING_BYTES / 1000 < len(kept) == count - lost


def test_a_terminal_that_was_stopped_does_not_stop_the_daemon() -> None:
    """Ctrl-S, or a session that hangs: nobody empties it, and writing returns at once all the same."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        lines = Lines(stream, lambda count: b"%d" % count)
        writing = threading.Thread(target=lambda: [lines.write(b"x" * 500) for _ in range(2000)], daemon=True)
        writing.start()
        writing.join(10)
        stuck = writing.is_alive()
        assert os.get_blocking(stream.fileno())
        os.close(ours)
    assert not stuck


def test_a_log_on_a_full_disk_tears_no_line_and_tells_how_many_it_lost(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk. What fitted in part is completed when there is room again."""
    program = """
import resource, signal, sys
from orchestratord.infra.logs import make_sink, stamp
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = make_sink(form="json")
def log(**fields):
    sink({"event": "it_happened", "level": "info", "timestamp": stamp(), **fields})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
for number in range(2000):
    log(number=number, filling="x" * 500)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log(number=-1)
log(number=-2)
"""
    with (tmp_path / "log").open("w") as file:
        subprocess.run([sys.executable, "-c", program], stderr=file, env={"PYTHONPATH": str(ROOT)}, check=True)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    kept = [record["number"] for record in records if record["event"] == "it_happened"]
    (lost,) = [record["count"] for record in records if record["event"] == "log_lines_dropped"]
    assert kept == [*range(2000 - lost), -1, -2]
    assert lost > 0


def test_a_shared_description_stays_as_it_was() -> None:
    """A shell that has the same standard error must not find it non-blocking."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as stream:
        Lines(stream, str).write(b"x")
        assert os.get_blocking(stream.fileno())
    os.close(ours)


# -- with a daemon ---------------------------------------------------------------------------------------------
def test_a_long_stream_is_four_lines() -> None:
    """2,000 tokens, read by somebody: not one line for any of them."""
    with LiveApp(mock_settings(pools=[mock_pool(ctx=8192)])) as app, app.session() as session:
        before = len(app.log.getvalue().splitlines())
        task_id = submit(session, max_tokens=2000, ctx=4096)
        app.settle()
        with session.events(task_id) as events:
            assert sum(1 for event in events if event.name == "token") >= 100
        lines = [json.loads(line) for line in app.log.getvalue().splitlines()[before:]]
        assert [line["event"] for line in lines] == ["task_placed", "task_admitted", "task_started", "task_ended"]
        assert lines[-1]["tokens_out"] == 2000


TEXTS = [text for text in HOSTILE.values() if isinstance(text, str) and len(text) < 1000 and "\ud800" not in text]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_text_of_a_client_breaks_the_log_of_a_daemon(form: Format) -> None:
    """Hostile text in every field that is free text, in paths, queries and headers, in correlation ids, to the end of
    tasks; also with an exception that nobody foresaw."""
    log = io.StringIO()
    with LiveApp(log=make_sink(log, form=form)) as app, app.session() as session:
        for text in TEXTS:
            for fields in (
                {"prompt": text},
                {"prompt": None, "messages": [{"role": "user", "content": text}]},
                {"sampler_profile_version": text},
                {"output_mode": text},
                {"model_ref": text},
                {"sampling": {"stop": [text]}},
                {"sampling": {"grammar": text}},
                {"placement": {"mode": "pin", "pin_pool_id": text}},
                {"placement": {"avoid_pools": [text]}},
                {"session_id": text},
                {text: text},
            ):
                session.post("/v1/tasks", json=task(**fields))
            session.post("/v1/artifacts", json={"kind": "other", "content": {text: text}, "tags": [], "metadata": {}})
            app.settle()
            raw = "".join(f"%{byte:02x}" for byte in text.encode())
            for path in (f"/{raw}", f"/v1/tasks/{raw}", f"/v1/tasks?{raw}={raw}", f"/v1/pools/{raw}/health"):
                with RawConnection(app.url) as connection:
                    connection.get(path)
                    connection.answer()
            for name in ("X-Correlation-Id", "User-Agent", "Last-Event-ID", "X-Trust-Policy", "Authorization"):
                with RawConnection(app.url) as connection:
                    head = f"GET /v1/pools HTTP/1.1\r\nHost: {connection.host}\r\n{name}: ".encode()
                    connection.send(head + text.encode() + b"\r\n\r\n")
                    connection.answer()
        app.daemon.pools.capabilities = explode  # type: ignore[method-assign]
        assert session.get("/v1/capabilities").status_code == 500
    for line in log.getvalue().split("\n")[:-1]:
        assert harmless(line), ascii(line)
        if form == "json":
            assert json.loads(line)["event"] != "forged"
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT|    ", line), line
    assert len(log.getvalue()) > 1000


def explode() -> Any:
    raise RuntimeError("\n{}\x1b[31m forged \u2028 " + "x" * 100_000)


def test_who_changed_what_is_told_and_what_was_refused_is_not() -> None:
    """AUTH-1008: cancels, drains and the catalog as well as tasks; nothing for looking, nothing for refusals."""
    token = "a-token-for-this-test"
    digest = hashlib.sha256(token.encode()).hexdigest()[:6]
    settings = msgspec.structs.replace(mock_settings(), token=token)
    with LiveApp(settings) as app, app.session(token) as session:
        session.headers["X-Correlation-Id"] = "follow-me"
        task_id = submit(session)
        entry = {"id": "m", "source_url": "file:other.gguf", "tags": [], "digest": f"sha256:{'0' * 64}"}
        for method, path, body in (
            ("POST", f"/v1/tasks/{task_id}/cancel", None),
            ("POST", "/v1/pools/home/drain", {"deadline_ms": 1}),
            ("POST", "/v1/catalog/models", entry),
            ("DELETE", "/v1/catalog/models/m", None),
            ("GET", "/v1/pools", None),
            ("POST", "/v1/pools/nowhere/drain", {"deadline_ms": 1}),
            ("POST", "/v1/pools/home/drain", {"deadline_ms": 0}),
            ("POST", "/nowhere", None),
            ("PUT", "/v1/pools", None),
        ):
            session.request(method, path, json=body)
        app.session("wrong").post("/v1/pools/home/resume")
        lines = [json.loads(line) for line in app.log.getvalue().splitlines()]
        told = [(line["method"], line["path"]) for line in lines if line["event"] == "change_granted"]
        assert told == [
            ("POST", f"/v1/tasks/{task_id}/cancel"),
            ("POST", "/v1/pools/home/drain"),
            ("POST", "/v1/catalog/models"),
            ("DELETE", "/v1/catalog/models/m"),
        ]
        named = [line for line in lines if line["event"] in ("change_granted", "task_admitted", "task_ended")]
        assert {(line["identity"], line["correlation_id"]) for line in named} == {(f"token:{digest}", "follow-me")}


def test_what_could_not_be_journaled_was_not_granted() -> None:
    """AUTH-1008: a drain and a cancel that end in 503 are no changes that anybody was granted."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        task_id = running(app, session)
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        for path, body in ((f"/v1/tasks/{task_id}/cancel", None), ("/v1/pools/home/drain", {"deadline_ms": 1})):
            assert session.post(path, json=body).status_code == 503
        assert not list(records(app, "change_granted"))
        app.call(journal.mend)
        assert session.post("/v1/pools/home/drain", json={"deadline_ms": 1}).status_code == 202
        assert [record["status"] for record in records(app, "change_granted")] == [202]


# -- secrets ---------------------------------------------------------------------------------------------------
def test_a_known_secret_is_hidden_in_every_guise() -> None:
    secret = 'pa"ss\\wörd'
    secrets = Secrets(values=[secret, "short", ""])
    for form in ("json", "console"):
        stream = io.StringIO()
        telemetry_on(stream, form=form, secrets=secrets).event(
            "it_happened", f"with {secret}", field={"deep": [secret]}, exc_info=RuntimeError(secret)
        )
        text = stream.getvalue()
        assert "ss\\" not in text.replace("[redacted]", "")
        assert text.count("[redacted]") == 3
    assert secrets.hide("short") == "short"


def test_a_child_gets_what_is_its_own_and_nothing_else_that_is_secret() -> None:
    environ = {"PATH": "/bin", "AUTH_TOKEN": "a", "AUTH_TOKEN_FILE": "f", "ORCHD_DATA_DIR": "d", "K1": "1", "K2": "2"}
    hold: Callable[..., dict[str, str]] = Secrets({"K1", "K2"}).withhold
    assert hold(environ, ["K2"]) == {"PATH": "/bin", "K2": "2"}
