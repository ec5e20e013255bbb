"""One trace from the client through the daemon to the engine (OD-23)."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind, StatusCode

from orchestratord import cli, mapping
from orchestratord.app import Daemon
from orchestratord.config import ConfigError
from orchestratord.infra.engines.mock import MockScript
from orchestratord.infra.tracing import spans
from orchestratord.testing.live import LiveApp, mock_settings
from tests.engines.fake import FakeServer, fake_server
from tests.engines.wires import ALL
from tests.http.support import submit, task, wait_for
from tests.tracing.support import Kept
from tests.tracing.vectors import GOOD, TRACE

PROMPT = "a secret that nobody may see"


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def app(kept: Kept) -> Iterator[LiveApp]:
    with LiveApp(tracing=kept.spans) as running:
        yield running


def run_one(app: LiveApp, *, traceparent: str | None = GOOD, **fields: Any) -> list[Any]:
    """Submit a task with a trace, and read its stream to the end."""
    body = task(prompt=PROMPT, **fields)
    with app.session() as session:
        headers = {"traceparent": traceparent, "tracestate": "vendor=1"} if traceparent else {}
        assert session.post("/v1/tasks", json=body, headers=headers).status_code == 202
        app.settle()
        with session.events(body["task_id"]) as events:
            seen = list(events)
        app.settle()  # a client has its answer before the request's span has ended
        return seen


def one(kept: Kept, name: str) -> Any:
    (span,) = kept.named(name)
    return span


def child_of(span: Any, parent: Any) -> bool:
    return bool(span.parent.span_id == parent.context.span_id and span.context.trace_id == parent.context.trace_id)


def test_a_task_is_one_trace(app: LiveApp, kept: Kept) -> None:
    """OD-23: the request, within it the task, within it its wait and the engine's work, with figures; and no text."""
    events = run_one(app, max_tokens=3, seed=11, sampling={"temperature": 0.5, "top_k": 7, "stop": ["never there"]})
    text = "".join(event.data["t"] for event in events if event.name == "token")
    request, whole, queue = one(kept, "POST /v1/tasks"), one(kept, "task completion"), one(kept, "queue")
    call = one(kept, "text_completion home")
    assert f"{request.context.trace_id:032x}" == TRACE
    assert child_of(whole, request)
    assert child_of(queue, whole)
    assert child_of(call, whole)
    assert (request.kind, whole.kind, call.kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT)
    assert call.attributes["gen_ai.operation.name"] == "text_completion"
    assert call.attributes["gen_ai.provider.name"] == "llamacpp"
    assert call.attributes["gen_ai.request.model"] == "home"
    asked = {name: call.attributes[f"gen_ai.request.{name}"] for name in ("max_tokens", "seed", "temperature", "top_k")}
    assert asked == {"max_tokens": 3, "seed": 11, "temperature": 0.5, "top_k": 7}
    for span in (call, whole):
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert span.attributes["gen_ai.usage.input_tokens"] > 0
        assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
        assert span.status.status_code is StatusCode.UNSET
    assert call.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert whole.attributes["orchestratord.task.id"] in app.call(lambda: list(app.daemon.core.tasks))
    everything = "".join(span.to_json() for span in kept.finished())
    for secret in (PROMPT, "secret that", "never there", text.strip()):
        assert secret not in everything


def test_without_a_trace_a_new_one_begins(app: LiveApp, kept: Kept) -> None:
    run_one(app, traceparent=None)
    run_one(app, traceparent=GOOD[1:])
    first, second = kept.named("task completion")
    assert len({f"{span.context.trace_id:032x}" for span in (first, second)} | {TRACE}) == 3
    for span in kept.named("POST /v1/tasks"):
        assert span.parent is None


def test_each_attempt_is_a_span(app: LiveApp, kept: Kept) -> None:
    """Of a task that is tried again: the first ended in the kind of its error, the second well. No engine's words."""
    app.call(lambda: app.engine().play(MockScript(error_after=0)))
    body = task(prompt=PROMPT)
    with app.session() as session:
        session.post("/v1/tasks", json=body)
        app.advance(1)
        with session.events(body["task_id"]) as events:
            assert list(events)[-1].name == "end"
    first, second = kept.named("text_completion home")
    assert (first.attributes["error.type"], first.status.status_code) == ("failed", StatusCode.ERROR)
    assert first.status.description is None
    assert (second.attributes.get("error.type"), second.attributes["orchestratord.task.attempt"]) == (None, 2)
    whole = one(kept, "task completion")
    assert child_of(first, whole)
    assert child_of(second, whole)
    assert whole.attributes["orchestratord.task.attempts"] == 2
    assert "exploded" not in "".join(span.to_json() for span in kept.finished())


def test_a_failed_and_a_cancelled_task(app: LiveApp, kept: Kept) -> None:
    """What failed has the code of its error, what was cancelled has not; and no span stays open."""
    app.call(lambda: app.engine().play(MockScript(refuse="no")))
    run_one(app)
    failed = one(kept, "task completion")
    assert (failed.attributes["error.type"], failed.status.status_code) == ("INVALID_PARAMS", StatusCode.ERROR)
    app.call(app.engine().hold)
    with app.session() as session:
        tasks = [submit(session, prompt=PROMPT) for _ in range(3)]  # two run, one waits
        app.settle()
        for task_id in reversed(tasks):
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
    app.settle()
    cancelled = kept.named("task completion")[1:]
    assert [span.attributes["gen_ai.response.finish_reasons"] for span in cancelled] == [("canceled",)] * 3
    assert {span.status.status_code for span in cancelled} == {StatusCode.UNSET}
    assert len(kept.named("queue")) == 4
    assert len(kept.named("text_completion home")) == 3
    assert app.call(lambda: app.daemon.tracing._open) == {}


def test_a_refused_task_leaves_its_request(app: LiveApp, kept: Kept) -> None:
    with app.session() as session:
        assert session.post("/v1/tasks", json=task(ctx=2_000_000)).status_code == 400
        app.settle()
    request = one(kept, "POST /v1/tasks")
    assert request.attributes["http.response.status_code"] == 400
    assert kept.named("task completion") == []


def test_a_stream_is_one_span_however_many_tokens_it_has(app: LiveApp, kept: Kept) -> None:
    """Nothing is made per token, and the span lasts until the stream is over."""
    run_one(app, max_tokens=2)
    few = len(kept.finished())
    run_one(app, max_tokens=200)
    assert len(kept.finished()) == 2 * few
    assert [span.events for span in kept.finished() if span.events] == []
    assert len(kept.named("GET /v1/tasks/{id}/stream")) == 2
    app.call(app.engine().hold)
    body = task(prompt=PROMPT, max_tokens=2)
    with app.session() as session:
        session.post("/v1/tasks", json=body)
        app.settle()
        with session.events(body["task_id"]) as events:
            assert next(events).name == "started"
            app.settle()
            assert len(kept.named("GET /v1/tasks/{id}/stream")) == 2, "a span of a stream that goes on"
            app.call(app.engine().release_hold)
            list(events)
    app.settle()
    assert len(kept.named("GET /v1/tasks/{id}/stream")) == 3


# -- to the engine -------------------------------------------------------------------------------------------
@contextmanager
def served(name: str) -> Iterator[FakeServer]:
    """A fake engine in a thread of its own."""
    loop, made = asyncio.new_event_loop(), threading.Event()
    found: list[FakeServer] = []
    over: list[Callable[[], object]] = []

    async def body() -> None:
        stop = asyncio.Event()
        over.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with fake_server(ALL[name]) as fake:
            found.append(fake)
            made.set()
            await stop.wait()

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends what still serves a connection, too
            runner.run(body())

    thread = threading.Thread(target=serve)
    thread.start()
    made.wait()
    try:
        yield found[0]
    finally:
        over[0]()
        thread.join()


@pytest.mark.parametrize("name", ["llamacpp", "vllm", "tgi"])
def test_the_engine_gets_the_trace(name: str, kept: Kept) -> None:
    """OD-23: the header of its call carries the client's trace under the call's own span; health checks carry none."""
    with served(name) as fake:
        pool = {"id": "home", "engine": name, "model": "any", "replicas": [{"id": "r0", "url": fake.url}]}
        with LiveApp(mock_settings(pools=[pool]), manual=False, tracing=kept.spans) as app, app.session() as session:
            wait_for(lambda: session.get("/readyz").status_code == 200, "the pool is ready")
            fake.requests.clear()
            body = task(engine=name, prompt=PROMPT, max_tokens=4)
            headers = {"traceparent": GOOD, "tracestate": "vendor=1"}
            assert session.post("/v1/tasks", json=body, headers=headers).status_code == 202
            with session.events(body["task_id"]) as events:
                assert list(events)[-1].name == "end"
            wait_for(lambda: kept.named("text_completion home"), "the call's span")
        (sent,) = [got for _, path, got, _ in fake.requests if path == fake.wire.stream_path]
        others = [got for _, path, got, _ in fake.requests if path != fake.wire.stream_path]
    call = one(kept, "text_completion home")
    assert sent["traceparent"] == f"00-{TRACE}-{call.context.span_id:016x}-01"
    assert sent["tracestate"] == "vendor=1"
    assert not [got for got in others if "traceparent" in got]


# -- off, and what it takes to be on -------------------------------------------------------------------------
def test_off_nothing_of_it_is_imported() -> None:
    """OD-23: the default; a daemon is made and nothing knows that OpenTelemetry is installed."""
    script = (
        "import sys\nfrom orchestratord.testing.live import mock_settings\nfrom orchestratord.app import Daemon\n"
        "daemon = Daemon(mock_settings())\ndaemon.asgi\nassert daemon.tracing is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'orchestratord.infra.tracing'))])"
    )
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_off_headers_of_a_trace_mean_nothing() -> None:
    with LiveApp() as app, app.session() as session:
        assert session.post("/v1/tasks", json=task(), headers={"traceparent": "rubbish"}).status_code == 202


def test_on_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    for name in [name for name in sys.modules if name.startswith("orchestratord.infra.tracing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install orchestratord\[tracing\]"):
        Daemon(mock_settings(tracing={"enabled": True}))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}, "no exporter 'carrier-pigeon'. Installed: console, none, otlp"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "semaphore"}, "no exporter 'semaphore'"),
    ],
)
def test_an_exporter_nobody_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str], said: str
) -> None:
    """It is named when the daemon is made, and by `config check` before that."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        mapping.tracing(mock_settings(tracing={"enabled": True}))
    monkeypatch.setenv("ORCHD_TRACING__ENABLED", "true")
    assert cli.main(["config", "check"]) != 0
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization Bearer canary"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
        ("OTEL_TRACES_SAMPLER", "canary"),
        ("OTEL_RESOURCE_ATTRIBUTES", "canary"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
    ],
)
def test_a_variable_that_means_nothing_is_told_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    """78, and not past our log in words of the library's, which would show a key."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("ORCHD_TRACING__ENABLED", "true")
    for words in (["config", "check"], ["serve", "--port", "0"]):
        assert cli.main(words) == 78
        said = capfd.readouterr()
        assert said.err.startswith("orchestratord: tracing: a variable OTEL_* is wrong: ")
        assert "canary" not in said.err + said.out


def test_a_collector_that_does_not_answer_holds_up_no_stop(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is handed over, as long as that takes no longer than a stop may wait for it."""
    monkeypatch.setattr(spans, "CLOSE_S", 0.0)
    answer, left = threading.Event(), threading.Event()
    monkeypatch.setattr(kept.spans._provider, "shutdown", lambda: left.set() if answer.wait() else None)
    asyncio.run(kept.spans.close())
    answer.set()
    assert left.wait(10)


class Collector(BaseHTTPRequestHandler):
    """A collector of spans: keeps what it is sent."""

    came: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.came.append((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_the_environment_says_where_spans_go() -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, in a process of their own: a daemon
    takes a request, stops, and its span has arrived at a collector."""
    script = (
        "from orchestratord.testing.live import LiveApp, mock_settings\n"
        "with LiveApp(mock_settings(tracing={'enabled': True})) as app, app.session() as session:\n"
        "    session.get('/v1/capabilities')\n"
    )
    Collector.came.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever).start()
        environ = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_SERVICE_NAME": "my-orchestra",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=here",
        }
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, env=environ)
        server.shutdown()
    (path, body), *_ = Collector.came
    assert path == "/v1/traces"
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    about = {attribute.key: attribute.value.string_value for attribute in sent.resource.attributes}
    assert (about["service.name"], about["deployment.environment.name"]) == ("my-orchestra", "here")
    assert [span.name for scope in sent.scope_spans for span in scope.spans] == ["GET /v1/capabilities"]
