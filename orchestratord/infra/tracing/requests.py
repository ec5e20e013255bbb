"""A span for each request: the outermost layer of the onion, and only there while tracing is on.

A trace that comes with a request is gone on with, if its headers are as the W3C recommendation wants them; else a new
one begins. Headers that are wrong never concern the request itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import context, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind

from orchestratord.infra.tracing.spans import PROPAGATOR, Spans, failed
from orchestratord.ports import OVER

Fields = list[tuple[bytes, bytes]]
Watched = Callable[[dict[str, Any], Any, Callable[[int, Fields], None]], Any]  # `wire.responses.watched`
SILENT = frozenset({"/healthz", "/readyz", "/metrics"})  # asked all day long, and of no interest to anybody


class _Fields(Getter[Fields]):
    """Header fields as ASGI has them: names in lower case."""

    def get(self, carrier: Fields, key: str) -> list[str] | None:
        name = key.encode()
        found = [value.decode("latin-1") for field, value in carrier if field == name]
        if key == "traceparent" and len(found) != 1:
            return None  # two of them contradict each other
        return found or None

    def keys(self, carrier: Fields) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER = _Fields()


class RequestSpans:
    """paths: the templates of what is served, by which spans are named. watched: see `Watched`."""

    def __init__(self, app: Any, *, spans: Spans, paths: Iterable[str], watched: Watched) -> None:
        self.app = app
        self._tracer = spans.tracer
        self._watched = watched
        self._routes = [(re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), path) for path in paths]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in SILENT:
            await self.app(scope, receive, send)
            return
        method, route = scope["method"], self._route(scope["path"])
        span = self._tracer.start_span(
            f"{method} {route}" if route else method,
            PROPAGATOR.extract(scope["headers"], context.Context(), _GETTER),
            SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.scheme": scope.get("scheme", "http"),
                "url.path": scope["path"],
                "network.protocol.version": scope.get("http_version", "1.1"),
                **({"http.route": route} if route else {}),
            },
        )

        def told(status: int, headers: Fields) -> None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                failed(span, str(status))

        scope.setdefault("extensions", {})[OVER] = span.end
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self.app(scope, receive, self._watched(scope, send, told))
        except Exception as error:
            failed(span, type(error).__qualname__)
            raise
        finally:
            if scope["extensions"].pop(OVER, None) is not None:
                span.end()

    def _route(self, path: str) -> str | None:
        return next((route for pattern, route in self._routes if pattern.fullmatch(path)), None)
