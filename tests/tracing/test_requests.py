"""Spans of requests, and the headers of a trace on their way in and out (OD-23)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from orchestratord.infra.tracing.requests import RequestSpans
from orchestratord.infra.tracing.spans import PROPAGATOR
from orchestratord.wire.responses import watched
from tests.tracing.support import Kept
from tests.tracing.vectors import GOOD, PARENT, TRACE, VECTORS, Vector

PATHS = ["/v1/tasks", "/v1/tasks/{id}", "/v1/tasks/{id}/stream"]


def ask(kept: Kept, headers: tuple[tuple[str, str], ...] = (), path: str = "/v1/tasks", status: int = 200) -> Any:
    """One request through the layer: what an engine would be sent from within it, and the status that came out."""
    carrier: dict[str, str] = {}
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        PROPAGATOR.inject(carrier)
        if status == 0:
            raise RuntimeError("boom")
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.lower().encode(), value.encode()) for name, value in headers]  # as uvicorn gives them
    scope = {"type": "http", "method": "GET", "path": path, "headers": fields, "query_string": b"secret=1"}
    asyncio.run(RequestSpans(app, spans=kept.spans, paths=PATHS, watched=watched)(scope, None, send))
    return carrier, sent[0]["status"]


def ids(carrier: dict[str, str]) -> tuple[str, str]:
    version, trace_id, span_id, flags = carrier["traceparent"].split("-")
    assert version == "00"
    assert int(flags, 16) & 1  # sampled; whether the id is random is another flag
    assert set(trace_id) != {"0"}
    assert (len(trace_id), len(span_id)) == (32, 16)
    return trace_id, span_id


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_trace_context(vector: Vector) -> None:
    """OD-23: what is right is gone on with, what is wrong begins anew, and the request succeeds in any case."""
    kept = Kept()
    carrier, status = ask(kept, vector.headers)
    assert status == 200
    trace_id, span_id = ids(carrier)
    assert (trace_id == TRACE) == vector.goes_on
    assert span_id != PARENT
    assert carrier.get("tracestate") == vector.state
    (span,) = kept.finished()
    assert (span.parent is not None) == vector.goes_on


def test_requests_do_not_mix() -> None:
    """Several with one trace, without any, and with a bad one: each has its own span, those without their own trace."""
    kept = Kept()
    same = [ids(ask(kept, (("traceparent", GOOD),))[0]) for _ in range(3)]
    assert {trace_id for trace_id, _ in same} == {TRACE}
    bad = [(("traceparent", GOOD[cut:]),) for cut in (1, 2)]
    fresh = [ids(ask(kept, headers)[0]) for headers in ((), (), *bad)]
    assert len({trace_id for trace_id, _ in fresh} | {TRACE}) == 5
    assert len({span_id for _, span_id in same + fresh}) == 7
    assert not trace.get_current_span().get_span_context().is_valid  # nothing is left behind


def test_an_unsampled_trace_stays_unsampled() -> None:
    """Whoever began it has decided."""
    kept = Kept()
    carrier, _ = ask(kept, (("traceparent", GOOD[:-2] + "00"),))
    assert carrier["traceparent"].startswith(f"00-{TRACE}-")
    assert carrier["traceparent"].endswith("-00")
    assert kept.finished() == []


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [
        ("/v1/tasks", "GET /v1/tasks", "/v1/tasks"),
        ("/v1/tasks/6f1d2c3b", "GET /v1/tasks/{id}", "/v1/tasks/{id}"),
        ("/v1/tasks/a/stream", "GET /v1/tasks/{id}/stream", "/v1/tasks/{id}/stream"),
        ("/v1/tasks/a/b/stream", "GET", None),
        ("/nowhere", "GET", None),
    ],
)
def test_a_span_is_named_by_its_route(path: str, name: str, route: str | None) -> None:
    """Names have few values, whatever clients ask for; of a query nothing is kept."""
    kept = Kept()
    ask(kept, path=path)
    (span,) = kept.finished()
    assert (span.name, span.kind, span.attributes.get("http.route")) == (name, SpanKind.SERVER, route)
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["url.path"] == path
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(("status", "failed"), [(404, False), (429, False), (500, True), (503, True)])
def test_only_our_own_errors_are_errors(status: int, failed: bool) -> None:
    kept = Kept()
    ask(kept, status=status)
    (span,) = kept.finished()
    assert (span.status.status_code is StatusCode.ERROR) == failed
    assert span.attributes.get("error.type") == (str(status) if failed else None)


def test_what_breaks_off_is_an_error_without_its_words() -> None:
    kept = Kept()
    with pytest.raises(RuntimeError):
        ask(kept, status=0)
    (span,) = kept.finished()
    assert span.attributes["error.type"] == "RuntimeError"
    assert "boom" not in span.to_json()


def test_probes_make_no_spans() -> None:
    kept = Kept()
    for path in ("/healthz", "/readyz", "/metrics"):
        ask(kept, path=path)
    assert kept.finished() == []
