"""The independent judge of one exchange: what the daemon answered against what the contracts promise.

openapi-core gives the first opinion (`oracle`), event streams have their own judge (`frames`); the rules here are those
that OpenAPI cannot say or that its validators let pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema_rs
import requests

from orchestratord import contract
from orchestratord.testing.frames import Malformed, StreamJudge, strict_json
from orchestratord.testing.oracle import (
    LAYER,
    Declared,
    Problem,
    layer_response,
    methods,
    request_problems,
    response_problems,
    text,
)
from orchestratord.wire.errors import STATUS

TRANSPORT = frozenset(  # headers of HTTP itself; any other one must be declared
    {"date", "server", "content-length", "content-type", "connection", "transfer-encoding", "keep-alive"}
)
EVERYWHERE = frozenset({408, 413, 414, 431})  # given before anyone looks at the path


class ContractViolation(AssertionError):
    """An exchange the contracts do not allow. The message names operation, status, place and reason."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What an exchange without fault has shown to work."""

    name: str  # operationId, or the name of the shared response
    status: int
    correlation_id: str
    headers: frozenset[str]  # declared ones that were present, spelt as declared
    events: frozenset[str]


@cache
def _correlation_ids() -> jsonschema_rs.Draft4Validator:
    return contract.compile_schema(contract.load("data")["components"]["schemas"]["CorrelationId"])


@cache
def _envelope() -> Any:
    document = contract.load("data")
    return contract.dereference(document, document["components"]["schemas"]["ErrorEnvelope"])


class Verifier:
    """Judges exchanges one by one; holds no state between them and may be shared by threads."""

    def check(
        self, request: requests.PreparedRequest, response: requests.Response, body: bytes, *, complete: bool = True
    ) -> Verified:
        """Raises ContractViolation unless the exchange keeps every promise.

        complete: the body is all the server had to send. Of an incomplete one only what must hold so far is judged.
        """
        exchange = _Exchange(request, response, body, complete)
        problems = list(exchange.problems())
        if problems:
            name = exchange.declared.name if exchange.declared else f"{request.method} {exchange.path}"
            lines = [f"{name} {response.status_code} at {where}: {what}" for where, what in problems]
            raise ContractViolation("\n".join(lines))
        assert exchange.declared is not None
        present = {header for header in exchange.declared.response.get("headers", {}) if header in response.headers}
        return Verified(
            name=exchange.declared.name,
            status=response.status_code,
            correlation_id=response.headers["X-Correlation-Id"],
            headers=frozenset(present),
            events=frozenset(exchange.events),
        )


class _Exchange:
    """One request and its response. Each rule is a method that yields what is wrong."""

    def __init__(
        self, request: requests.PreparedRequest, response: requests.Response, body: bytes, complete: bool
    ) -> None:
        self.request = request
        self.response = response
        self.body = body
        self.complete = complete
        self.status = response.status_code
        url = urlsplit(request.url or "")
        self.path, self.query, self.host = url.path, url.query, url.netloc
        self.methods = methods(self.path)
        self.operation = self.methods.get(request.method or "")
        self.events: set[str] = set()
        self.media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.bodiless = request.method == "HEAD" or not (complete or self.media_type == "text/event-stream")
        self.content: Any = None  # the parsed body, when it is JSON
        self.declared = self._declared()

    def _declared(self) -> Declared | None:
        """The declared response this one must be; None when the contracts have none."""
        operation, status = self.operation, self.status
        if operation and str(status) in operation.responses and not self._overloaded():
            response = operation.responses[str(status)]
            return Declared(operation.operation_id, operation.contract, response, operation)
        layer = (
            status in EVERYWHERE
            or (status == 503 and (self._overloaded() or self.request.method == "HEAD"))
            or (status in (401, 403) and operation is None)
            or (status == 404 and not self.methods)
            or (status == 405 and self.methods and operation is None)
        )
        return Declared(LAYER[status], "layer", layer_response(LAYER[status]), None) if layer else None

    def _overloaded(self) -> bool:
        """The one answer whose status operations declare too; only its code tells it apart."""
        try:
            content = strict_json(self.body)
        except Malformed:
            return False
        return self.status == 503 and isinstance(content, dict) and content.get("code") == "OVERLOADED"

    def problems(self) -> Iterator[Problem]:
        yield from self._correlation_id()
        if self.declared is None:
            known = "wrong method" if self.methods and self.operation is None else "unknown path"
            yield "status", f"{self.status} is not declared" + ("" if self.operation else f" for {known}")
            return
        yield from self._header_names(self.declared)
        yield from self._content(self.declared)
        parsed = None if self.bodiless or self.media_type == "text/event-stream" else self.body
        for where, what in response_problems(self.declared, self.request, self.response, parsed):
            yield where or "body", what
        yield from self._location()
        yield from self._allow()
        yield from self._retry()
        if (
            isinstance(self.content, dict)
            and self.declared.response["content"][self.media_type]["schema"] == _envelope()
        ):
            yield from self._error(self.content)
        if self.operation is not None and self.operation is self.declared.operation:
            yield from self._acceptance(self.operation)
            if self.operation.sse_events is not None and self.status in (200, 204):
                yield from self._stream(self.operation)

    # -- every response ----------------------------------------------------------------------------------------
    def _correlation_id(self) -> Iterator[Problem]:
        given = self.response.headers.get("X-Correlation-Id")
        if given is None or not _correlation_ids().is_valid(given):
            yield "header X-Correlation-Id", f"{given!r} is not a correlation id"
        sent = text(self.request.headers.get("X-Correlation-Id", "")).strip(" \t")
        if _correlation_ids().is_valid(sent) and given != sent:
            yield "header X-Correlation-Id", f"{given!r} came back for {sent!r}"

    def _header_names(self, declared: Declared) -> Iterator[Problem]:
        names = {name.lower() for name in declared.response.get("headers", {})}
        for header in self.response.headers:
            if header.lower() not in names | TRANSPORT:
                yield f"header {header}", "is not declared"
        for name, header in declared.response.get("headers", {}).items():
            if header.get("required") and name not in self.response.headers:
                yield f"header {name}", "is declared as required and missing"
        for name in ("Content-Length", "Transfer-Encoding"):
            if self.status == 204 and name in self.response.headers:
                yield f"header {name}", "a 204 has none"

    def _content(self, declared: Declared) -> Iterator[Problem]:
        content = declared.response.get("content")
        if not content:
            if self.body:
                yield "body", f"is not declared, yet has {len(self.body)} bytes"
            return
        if self.media_type not in content:
            yield "header Content-Type", f"{self.media_type!r} is not one of {sorted(content)}"
        elif self.request.method == "HEAD":
            if self.body:
                yield "body", "an answer to HEAD has none"
        elif self.media_type == "application/json" and not self.bodiless:
            try:
                self.content = strict_json(self.body)
            except Malformed as error:
                yield "body", str(error)

    # -- single headers ----------------------------------------------------------------------------------------
    def _location(self) -> Iterator[Problem]:
        location = self.response.headers.get("Location")
        if location is None:
            return
        target = urlsplit(location)
        if self.status not in (201, 202):
            yield "header Location", "only a 201 or 202 has one"
        elif target.netloc not in ("", self.host) or target.scheme not in ("", "http", "https"):
            yield "header Location", f"{location!r} leads to another host"
        elif "GET" not in methods(target.path):
            yield "header Location", f"nothing is served at {location!r}"

    def _allow(self) -> Iterator[Problem]:
        if self.status != 405:
            return
        given = [method.strip() for method in self.response.headers.get("Allow", "").split(",")]
        if sorted(given) != sorted(self.methods):
            yield "header Allow", f"{given} instead of {sorted(self.methods)}"

    def _retry(self) -> Iterator[Problem]:
        seconds, backoff = (self.response.headers.get(name) for name in ("Retry-After", "X-Backoff-Ms"))
        if seconds is not None and not (seconds.isascii() and seconds.isdecimal() and int(seconds) >= 1):
            yield "header Retry-After", f"{seconds!r} is not a whole number of seconds, 1 or more"
        elif seconds and backoff and backoff.isdecimal() and int(seconds) != max(1, ceil(int(backoff) / 1000)):
            yield "header Retry-After", f"{seconds} s is not {backoff} ms rounded up"

    # -- errors ------------------------------------------------------------------------------------------------
    def _error(self, envelope: dict[str, Any]) -> Iterator[Problem]:
        code = envelope.get("code")
        if STATUS.get(str(code)) != self.status:
            yield "/code", f"{code!r} does not belong to {self.status}"
        backoff = self.response.headers.get("X-Backoff-Ms")
        if backoff is not None and backoff != str(envelope.get("retry_after_ms")):
            yield "header X-Backoff-Ms", f"{backoff!r}, but retry_after_ms is {envelope.get('retry_after_ms')!r}"
        if self.status == 503 and envelope.get("retriable") is True:
            for name in ("Retry-After", "X-Backoff-Ms"):
                if name not in self.response.headers:
                    yield f"header {name}", "is missing on a 503 that may pass"
        if b"Traceback (most recent call last)" in self.body and self.status == 500:
            yield "/message", "shows a trace"
        details = envelope.get("details")
        rule = details.get("rule") if isinstance(details, dict) else None
        if self.status == 400 and self.operation is not None:
            if rule is None and not list(request_problems(self.request, self.operation)):
                yield "/details/rule", "is missing, though the request fits its schema"
            if rule is not None and rule not in self.operation.rules:
                yield "/details/rule", f"{rule!r} is not one of {self.operation.rules}"

    # -- successes ---------------------------------------------------------------------------------------------
    def _acceptance(self, operation: contract.Operation) -> Iterator[Problem]:
        if 200 <= self.status < 300:
            for where, what in request_problems(self.request, operation):
                yield f"request {where}".rstrip(), f"accepted an invalid request: {what}"

    def _stream(self, operation: contract.Operation) -> Iterator[Problem]:
        resumed = self.request.headers.get("Last-Event-ID")
        given = text(resumed) if resumed is not None else parse_qs(self.query).get("after", ["0"])[-1]
        if not (given.isascii() and given.isdecimal()):
            yield "request header Last-Event-ID", f"accepted {given!r}, which is no event id"
        elif self.status == 204:
            if int(given) == 0:
                yield "status", "204 for a reader that has nothing yet"
        else:
            judge = StreamJudge(operation, int(given))
            for where, what in judge.problems(self.body, complete=self.complete):
                yield f"event {where}", what
            self.events = {frame.name for frame in judge.frames}
