"""`testing.verifier`: what keeps the contract passes, and every rule fires on an exchange that breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
from requests.structures import CaseInsensitiveDict

from orchestratord import contract
from orchestratord.testing import frames
from orchestratord.testing.oracle import layer_response
from orchestratord.testing.verifier import ContractViolation, Verified, Verifier

TASK = "6f1d2c3b-4a59-4e68-8777-86958493a2b1"
HOST = "http://daemon.test:8080"
STREAM = f"/v1/tasks/{TASK}/stream"
REQUEST = {
    "task_id": TASK,
    "session_id": "0b8e7d6c-5f4a-4392-8170-6f5e4d3c2b1a",
    "workload": "completion",
    "model_ref": "home",
    "engine": "llamacpp",
    "ctx": 100,
    "priority": "batch",
    "max_tokens": 8,
    "deadline_ms": 1000,
    "prompt": "Hello",
}
ADMISSION = {"task_id": TASK, "queue_position": 0, "predicted_start_ms": 1, "backoff_ms": 0}
SSE = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
LOCATION = {"Location": f"/v1/tasks/{TASK}"}


def exchange(
    method: str,
    path: str,
    status: int,
    body: Any = b"",
    headers: Mapping[str, str | None] | None = None,
    *,
    sent: dict[str, Any] | None = None,
    ask: Any = None,
    complete: bool = True,
) -> Verified:
    """Judge one exchange. A body that is no bytes goes as JSON; a header of None is left out."""
    data = ask if isinstance(ask, bytes) else None if ask is None else json.dumps(ask)
    typed = {} if data is None else {"Content-Type": "application/json"}
    request = requests.Request(method, HOST + path, headers={**typed, **(sent or {})}, data=data).prepare()
    response = requests.Response()
    response.status_code = status
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"X-Correlation-Id": "c-1", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    given |= {"Content-Type": "application/json"} if raw else {}
    merged = {**given, **(headers or {})}
    response.headers = CaseInsensitiveDict({name: value for name, value in merged.items() if value is not None})
    return Verifier().check(request, response, raw, complete=complete)


def error(code: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "message": "Try again.", **more}


def frame(event_id: int | None, name: str, data: Any) -> bytes:
    head = b"" if event_id is None else b"id: %d\n" % event_id
    return head + f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


STARTED = frame(1, "started", {"queue_position": 0, "predicted_start_ms": 1})
METRICS = frame(None, "metrics", {"queue_depth": 0, "on_time_probability": 1})


def token(event_id: int, index: int) -> bytes:
    return frame(event_id, "token", {"t": "a", "i": index})


def end(event_id: int) -> bytes:
    return frame(event_id, "end", {"tokens_out": 2, "decode_ms": 1, "finish_reason": "stop"})


def failed(event_id: int, code: str) -> bytes:
    return frame(event_id, "error", {"code": code, "message": "Gone.", "engine": "llamacpp", "retriable": True})


WHOLE = b"retry: 3000\n\n" + STARTED + token(2, 0) + METRICS + b": keep-alive\n\n" + token(3, 1) + METRICS + end(4)


# -- what is allowed
def declared_examples() -> Iterator[Any]:
    """Every example of every declared answer, with an example request of its operation; without the 400s."""
    for operation in contract.operations():
        for status, response in operation.responses.items():
            for media_type, media in response.get("content", {}).items():
                for name, example in media.get("examples", {}).items():
                    if status != "400":
                        label = f"{operation.operation_id}-{status}-{name}"
                        yield pytest.param(operation, int(status), media_type, example["value"], id=label)


def example_request(operation: contract.Operation) -> tuple[str, Any]:
    path = operation.path
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            value = parameter.get("example", "data.json")
            path = path.replace(f"{{{parameter['name']}}}", value)
    raw = contract.load(operation.contract)["paths"][operation.path][operation.method.lower()]
    examples = raw.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
    return path, next((example["value"] for example in examples.values()), None)


def example_headers(path: str, body: Any, response: dict[str, Any], media_type: str) -> dict[str, str | None]:
    headers: dict[str, str | None] = {"Content-Type": media_type}
    if "Location" in response["headers"]:
        headers["Location"] = f"{path}/{body.get('task_id') or body['id']}"
    if "ETag" in response["headers"]:
        headers["ETag"] = '"abc"'
    if "WWW-Authenticate" in response["headers"]:
        headers["WWW-Authenticate"] = "Bearer"
    wait = body.get("retry_after_ms") if isinstance(body, dict) else None
    if wait is not None:
        headers |= {"Retry-After": str(-(-wait // 1000)), "X-Backoff-Ms": str(wait)}
    return headers


@pytest.mark.parametrize(("operation", "status", "media_type", "body"), list(declared_examples()))
def test_contract_examples_pass(operation: contract.Operation, status: int, media_type: str, body: Any) -> None:
    """Every example answer is accepted and attributed to its operation."""
    path, ask = example_request(operation)
    headers = example_headers(path, body, operation.responses[str(status)], media_type)
    verified = exchange(operation.method, path, status, body, headers, ask=ask)
    assert (verified.name, verified.status) == (operation.operation_id, status)


def test_what_passed_is_described() -> None:
    """The verdict names the declared headers that were present, and the correlation id."""
    verified = exchange("POST", "/v1/tasks", 202, ADMISSION, {**LOCATION, "X-Idempotent-Replay": "true"}, ask=REQUEST)
    assert verified.headers == {"X-Correlation-Id", "Location", "X-Idempotent-Replay"}
    assert verified.correlation_id == "c-1"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "headers", "name"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND", {}, "NotFound"),
        ("GET", "/v1/tasks/", 404, "NOT_FOUND", {}, "NotFound"),
        ("GET", "/nowhere", 401, "MISSING_TOKEN", {"WWW-Authenticate": "Bearer"}, "Unauthorized"),
        ("GET", "/nowhere", 403, "FORBIDDEN", {}, "Forbidden"),
        ("PUT", "/v1/tasks", 405, "METHOD_NOT_ALLOWED", {"Allow": "POST, GET"}, "MethodNotAllowed"),
        ("GET", "/healthz", 408, "REQUEST_TIMEOUT", {}, "RequestTimeout"),
        ("GET", "/healthz", 413, "PAYLOAD_TOO_LARGE", {}, "PayloadTooLarge"),
        ("GET", "/v1/tasks", 414, "URI_TOO_LONG", {}, "UriTooLong"),
        ("GET", "/nowhere", 431, "HEADERS_TOO_LARGE", {}, "HeadersTooLarge"),
        ("GET", "/readyz", 503, "OVERLOADED", {}, "ConnectionLimit"),
    ],
)
def test_answers_before_any_operation_pass_by_name(
    method: str, path: str, status: int, code: str, headers: dict[str, str | None], name: str
) -> None:
    """An answer of a layer is judged by the shared response of its name."""
    assert exchange(method, path, status, error(code), headers).name == name


def test_head_is_judged_by_its_headers() -> None:
    """The 405 to a HEAD has the headers of the 405 and no body."""
    verified = exchange("HEAD", "/v1/tasks", 405, b"", {"Content-Type": "application/json", "Allow": "GET, POST"})
    assert verified.name == "MethodNotAllowed"
    with pytest.raises(ContractViolation, match="Allow"):
        exchange("HEAD", "/v1/tasks", 405, b"", {"Content-Type": "application/json"})
    with pytest.raises(ContractViolation, match="answer to HEAD"):
        exchange("HEAD", "/v1/tasks", 405, error("METHOD_NOT_ALLOWED"), {"Allow": "GET, POST"})


def test_an_answer_cut_short_is_judged_by_its_headers() -> None:
    """Half a JSON body is no fault when the client left; a wrong header still is."""
    assert exchange("GET", "/healthz", 200, b'{"sta', complete=False).name == "getHealth"
    with pytest.raises(ContractViolation, match="X-More"):
        exchange("GET", "/healthz", 200, b'{"sta', {"X-More": "1"}, complete=False)


def test_a_valid_id_sent_as_bytes_or_with_spaces_around_is_still_that_id() -> None:
    """HTTP strips the spaces around a value."""
    for sent in ("z ", b"z"):
        assert exchange(*HEALTH, OK, {"X-Correlation-Id": "z"}, sent={"X-Correlation-Id": sent}).correlation_id == "z"


def test_the_message_names_operation_status_and_place() -> None:
    """A reader finds the fault without a debugger; several faults are all told."""
    with pytest.raises(ContractViolation) as caught:
        exchange("POST", "/v1/tasks", 202, {**ADMISSION, "backoff_ms": -1, "more": 1}, LOCATION, ask=REQUEST)
    assert re.search(r"^createTask 202 at /backoff_ms: -1 is less", str(caught.value), re.MULTILINE)
    assert "'more' was unexpected" in str(caught.value)


# -- what is not
CREATE = ("POST", "/v1/tasks")
HEALTH = ("GET", "/healthz", 200)
OK = {"status": "ok"}
WAIT: dict[str, str | None] = {"Retry-After": "2", "X-Backoff-Ms": "1500"}
FULL = error("ADMISSION_REJECT", retriable=True, retry_after_ms=1500)
UNREADY = error("POOL_UNREADY", retriable=True, retry_after_ms=1500)
LISTED = {
    "items": [
        {
            "id": "home",
            "engine": "vllm",
            "driver": "mock",
            "model_ref": "m",
            "load": "always",
            "live": True,
            "ready": True,
            "draining": False,
            "slots_total": 1,
            "slots_busy": 0,
            "queue": {"interactive": 0, "batch": 0, "capacity": 1, "more": 1},
        }
    ],
    "next_cursor": None,
}
CANCEL = ("POST", f"/v1/tasks/{TASK}/cancel", 204)
REPLACE = ("PUT", "/v1/tasks", 405, error("METHOD_NOT_ALLOWED"))
TRACE = {**error("INTERNAL"), "message": "Traceback (most recent call last)"}
FOREIGN_RULE = error("INVALID_PARAMS", details={"rule": "cursor"})
UNKNOWN_RULE = error("INVALID_PARAMS", details={"rule": "made_up"})
CROWDED = ("GET", "/healthz", 503, error("OVERLOADED", retriable=True))
BROKEN: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("status: 418 is not declared", {}, ("GET", "/healthz", 418, OK)),
    ("status: 404 is not declared", {}, ("GET", "/healthz", 404, error("NOT_FOUND"))),
    ("status: 500 is not declared for unknown path", {}, ("GET", "/nowhere", 500, error("INTERNAL"))),
    ("status: 200 is not declared for unknown path", {}, ("GET", "/v1/replicasets", 200, OK)),
    ("status: 404 is not declared for wrong method", {}, ("PUT", "/healthz", 404, error("NOT_FOUND"))),
    ("status: 405 is not declared", {}, ("GET", "/healthz", 405, error("METHOD_NOT_ALLOWED"), {"Allow": "GET"})),
    ("status: 503 is not declared", {}, ("GET", "/healthz", 503, error("POOL_UNREADY", retriable=False))),
    ("header Content-Type: 'text/plain' is not", {}, (*HEALTH, OK, {"Content-Type": "text/plain"})),
    ("header Content-Type: '' is not", {}, (*HEALTH, OK, {"Content-Type": None})),
    ("header Location: is declared as required", {"ask": REQUEST}, (*CREATE, 202, ADMISSION)),
    ("header X-Correlation-Id: None is not", {}, (*HEALTH, OK, {"X-Correlation-Id": None})),
    ("'a b' is not a correlation id", {}, (*HEALTH, OK, {"X-Correlation-Id": "a b"})),
    ("'c-1' came back for 'mine'", {"sent": {"X-Correlation-Id": "mine"}}, (*HEALTH, OK)),
    ("header X-More: is not declared", {}, (*HEALTH, OK, {"X-More": "1"})),
    ("header Vary: is not declared", {}, (*HEALTH, OK, {"Vary": "Accept"})),
    ("body: is not declared, yet has 2 bytes", {}, (*CANCEL, b"{}", {"X-Last-Event-Id": "4"})),
    ("X-Last-Event-Id", {}, (*CANCEL, b"", {"X-Last-Event-Id": "four"})),
    ("header Content-Length: a 204 has none", {}, (*CANCEL, b"", {"Content-Length": "0"})),
    ("at body: MissingData", {}, (*HEALTH, b"", {"Content-Type": "application/json"})),
    ("body: not strict JSON", {}, (*HEALTH, b"{")),
    ("NaN is not JSON", {}, (*HEALTH, b'{"status": NaN}')),
    ("a name comes twice", {}, (*HEALTH, b'{"status": "ok", "status": "ok"}')),
    ("'utf-8' codec", {}, (*HEALTH, b'{"status": "\xff"}')),
    ("/status: 'fine' is not one of", {}, (*HEALTH, {"status": "fine"})),
    ("/items/0/queue: Additional properties", {}, ("GET", "/v1/pools", 200, LISTED)),
    ("'message' is a required property", {}, ("GET", "/nowhere", 404, {"code": "NOT_FOUND"})),
    ("'hint' was unexpected", {}, ("GET", "/nowhere", 404, error("NOT_FOUND", hint="x"))),
    ("/code: 'CONFLICT' does not belong to 404", {}, ("GET", "/nowhere", 404, error("CONFLICT"))),
    ("/code: 'WORKER_RESET' does not belong", {}, ("GET", "/healthz", 500, error("WORKER_RESET"))),
    ("/message: shows a trace", {}, ("GET", "/healthz", 500, TRACE)),
    ("header WWW-Authenticate: is declared", {}, ("GET", "/healthz", 401, error("BAD_TOKEN"))),
    ("header Allow: is declared", {}, REPLACE),
    ("instead of ['GET', 'POST']", {}, (*REPLACE, {"Allow": "GET"})),
    ("instead of ['GET', 'POST']", {}, (*REPLACE, {"Allow": "GET, HEAD, POST"})),
    ("header Retry-After: is declared", {"ask": REQUEST}, (*CREATE, 429, FULL, {"X-Backoff-Ms": "1500"})),
    ("header X-Backoff-Ms: is declared", {"ask": REQUEST}, (*CREATE, 429, FULL, {"Retry-After": "2"})),
    ("'0' is not a whole number", {"ask": REQUEST}, (*CREATE, 429, FULL, {**WAIT, "Retry-After": "0"})),
    ("'soon' is not a whole number", {"ask": REQUEST}, (*CREATE, 429, FULL, {**WAIT, "Retry-After": "soon"})),
    ("1 s is not 1500 ms rounded up", {"ask": REQUEST}, (*CREATE, 429, FULL, {**WAIT, "Retry-After": "1"})),
    ("but retry_after_ms is 1500", {"ask": REQUEST}, (*CREATE, 429, FULL, {**WAIT, "X-Backoff-Ms": "1600"})),
    ("but retry_after_ms is None", {"ask": REQUEST}, (*CREATE, 429, error("ADMISSION_REJECT"), WAIT)),
    ("header Retry-After: is missing on a 503", {"ask": REQUEST}, (*CREATE, 503, UNREADY)),
    ("header X-Backoff-Ms: is missing on a 503", {}, (*CROWDED, {"Retry-After": "1"})),
    ("'cursor' is not one of", {"ask": REQUEST}, (*CREATE, 400, FOREIGN_RULE)),
    ("/details/rule: 'made_up' is not", {"ask": REQUEST}, (*CREATE, 400, UNKNOWN_RULE)),
    ("/details/rule: is missing, though", {"ask": REQUEST}, (*CREATE, 400, error("INVALID_PARAMS"))),
    ("header Location: only a 201 or 202", {}, (*HEALTH, OK, LOCATION)),
    ("leads to another host", {"ask": REQUEST}, (*CREATE, 202, ADMISSION, {"Location": "//evil.test/v1/tasks"})),
    ("leads to another host", {"ask": REQUEST}, (*CREATE, 202, ADMISSION, {"Location": f"https://evil.test{CREATE[1]}"})),
    ("nothing is served at", {"ask": REQUEST}, (*CREATE, 202, ADMISSION, {"Location": "/v1/jobs/1"})),
    ("at request: accepted an invalid request: 'prompt' is", {"ask": "prompt"}, (*CREATE, 202, ADMISSION, LOCATION)),
    ("accepted an invalid request: Additional", {"ask": {**REQUEST, "more": 1}}, (*CREATE, 202, ADMISSION, LOCATION)),
    ("request /seed: accepted an invalid", {"ask": {**REQUEST, "seed": -1}}, (*CREATE, 202, ADMISSION, LOCATION)),
    ("accepted an invalid request", {"ask": b'{"seed": NaN}'}, (*CREATE, 202, ADMISSION, LOCATION)),
    ("accepted an invalid request", {}, (*CREATE, 202, ADMISSION, LOCATION)),
    ("request limit: accepted", {}, ("GET", "/v1/pools?limit=0", 200, {"items": [], "next_cursor": None})),
    ("request cursor: accepted", {}, ("GET", "/v1/pools?cursor=", 200, {"items": [], "next_cursor": None})),
    ("request limt: accepted", {}, ("GET", "/v1/pools?limt=5", 200, {"items": [], "next_cursor": None})),
    ("request limit: accepted", {}, ("GET", "/v1/pools?limit=1&limit=2", 200, {"items": [], "next_cursor": None})),
    ("request id: accepted", {}, ("DELETE", "/v1/sessions/abc", 204)),
    ("header ETag", {}, ("GET", f"/v1/artifacts/{'a' * 64}", 304, b"", {"ETag": "abc"})),
    ("X-Idempotent-Replay", {"ask": REQUEST}, (*CREATE, 202, ADMISSION, {**LOCATION, "X-Idempotent-Replay": "yes"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "options", "given"), BROKEN, ids=[f"{n}-{case[0][:40]}" for n, case in enumerate(BROKEN)]
)
def test_rule_fires(reason: str, options: dict[str, Any], given: tuple[Any, ...]) -> None:
    """Each of these exchanges breaks a rule, and the message says which."""
    with pytest.raises(ContractViolation, match=re.escape(reason)):
        exchange(*given, **options)


def test_a_request_body_nobody_can_read_again_is_not_waved_through() -> None:
    """An accepted request with a streamed body cannot be judged, so it does not pass."""
    request = requests.Request("POST", HOST + "/v1/tasks", data=iter([b"{}"])).prepare()
    response = requests.Response()
    response.status_code = 202
    response.headers = CaseInsensitiveDict({"X-Correlation-Id": "c", "Content-Type": "application/json", **LOCATION})
    with pytest.raises(ContractViolation, match="body is a stream"):
        Verifier().check(request, response, json.dumps(ADMISSION).encode())


def test_refusals_of_invalid_requests_need_no_rule() -> None:
    """A 400 to a request that does not fit its schema may come without `details.rule`."""
    for query in ("limit=0", "limt=5", "limit=1&limit=2"):
        assert exchange("GET", f"/v1/pools?{query}", 400, error("INVALID_PARAMS")).name == "listPools"


def test_an_open_daemon_may_accept_without_a_token() -> None:
    """Whether a token is wanted is configuration; the verifier takes no side."""
    assert exchange("GET", "/v1/pools", 200, {"items": [], "next_cursor": None}).name == "listPools"


def test_shared_responses_are_those_of_the_contract() -> None:
    """The layer answers are judged by the contract's own components."""
    assert layer_response("MethodNotAllowed")["headers"]["Allow"]["required"] is True


# -- streams
def stream(body: bytes, *, sent: dict[str, str] | None = None, query: str = "", complete: bool = True) -> Verified:
    return exchange("GET", STREAM + query, 200, body, {**SSE}, sent=sent, complete=complete)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (WHOLE, {}),
        (STARTED + end(2), {}),
        (STARTED + METRICS + failed(2, "DEADLINE_UNMET"), {}),
        (STARTED + token(2, 0) + failed(900, "WORKER_RESET"), {}),
        (token(3, 1) + end(4), {"query": "?after=2"}),
        (METRICS + token(3, 1) + end(4), {"sent": {"Last-Event-ID": "2"}}),
        (token(3, 1) + end(4), {"sent": {"Last-Event-ID": "2"}, "query": "?after=9"}),
        (end(4), {"query": "?after=3"}),
        (failed(900, "WORKER_RESET"), {"query": "?after=3"}),
        (WHOLE, {"query": "?after=0"}),
        (b"", {"complete": False}),
        (STARTED + token(2, 0), {"complete": False}),
        (STARTED + token(2, 0)[:-9], {"complete": False}),
        (WHOLE, {"complete": False}),
        (token(3, 1), {"query": "?after=2", "complete": False}),
    ],
)
def test_streams_that_keep_the_rules_pass(body: bytes, options: dict[str, Any]) -> None:
    """Whole streams, resumed ones and beginnings of streams."""
    assert stream(body, **options).name == "streamTask"


def test_events_that_passed_are_named() -> None:
    """The verdict knows which events the stream had."""
    assert stream(WHOLE).events == {"started", "token", "metrics", "end"}


RESULT = frame(2, "result", {"index": 0, "relevance_score": 1, "scale": "logit"})
BROKEN_STREAMS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("event /2: the stream ends without end or error", STARTED + token(2, 0), {}),
    ("event /0: the stream ends without end or error", b"", {}),
    ("'token' after 'nothing' breaks the order", token(1, 0) + end(2), {}),
    ("'metrics' after 'nothing' breaks the order", METRICS + STARTED + end(2), {}),
    ("'metrics' after 'end' breaks the order", STARTED + end(2) + METRICS, {"complete": False}),
    ("'token' after 'end' breaks the order", STARTED + end(2) + token(3, 0), {}),
    ("'end' after 'end' breaks the order", STARTED + end(2) + end(3), {}),
    ("'started' after 'token' breaks the order", STARTED + token(2, 0) + STARTED + end(4), {}),
    ("'started' after 'nothing' breaks the order", STARTED.replace(b"1", b"3", 1) + end(4), {"query": "?after=2"}),
    ("token has id 3, expected 2", STARTED + token(3, 0) + end(4), {}),
    ("token has id 2, expected 3", STARTED + token(2, 0) + token(2, 1) + end(3), {}),
    ("started has id 2, expected 1", STARTED.replace(b"1", b"2", 1) + end(3), {}),
    ("token has id 4, expected 3", token(4, 1) + end(5), {"query": "?after=2"}),
    ("token has id 2, expected 3", token(2, 0) + token(3, 1) + end(4), {"sent": {"Last-Event-ID": "2"}}),
    ("end has id 9, expected 2", STARTED + end(9), {}),
    ("error has id 9, expected 2", STARTED + failed(9, "INTERNAL"), {}),
    ("error has id 1, expected 2", STARTED + failed(1, "WORKER_RESET"), {}),
    ("metrics has an id", STARTED + b"id: 2\n" + METRICS + end(3), {}),
    ("token has no id", STARTED + frame(None, "token", {"t": "a", "i": 0}) + end(2), {}),
    ("token index 1, expected 0", STARTED + token(2, 1) + end(3), {}),
    ("token index 0, expected 1", STARTED + token(2, 0) + token(3, 0) + end(4), {}),
    ("token index 7, expected 6", token(3, 5) + token(4, 7) + end(5), {"query": "?after=2"}),
    ("event /1/data/t: token:", STARTED + frame(2, "token", {"t": 1, "i": 0}) + end(3), {}),
    ("event /1/data: token: Additional", STARTED + frame(2, "token", {"t": "", "i": 0, "x": 1}) + end(3), {}),
    ("event /1/data: result:", STARTED + frame(2, "result", {"index": 0}) + end(3), {}),
    ("'log' is not declared in x-sse-events", STARTED + frame(2, "log", {}) + end(3), {}),
    ("the stream ends inside a frame", WHOLE + b"id: 5\n", {}),
    ("the stream ends inside a frame", WHOLE.replace(b"\n", b"\r\n"), {}),
    ("no carriage return", STARTED.replace(b"1\n", b"1\r\n") + end(2), {}),
    ("not a field", STARTED + b"ping: 1\n\n" + end(2), {}),
    ("not a field", STARTED.replace(b"event: ", b"event:") + end(2), {}),
    ("came before", STARTED.replace(b"id: 1\n", b"id: 1\nid: 1\n") + end(2), {}),
    ("not an event id: b'01'", STARTED.replace(b"id: 1", b"id: 01") + end(2), {}),
    ("a frame has event and data", STARTED + b"data: {}\n\n" + end(2), {}),
    ("a frame has event and data", STARTED + b"id: 2\n\n" + end(3), {}),
    ("retry is a decimal", b"retry: soon\n\n" + WHOLE, {}),
    ("not strict JSON", STARTED + b'id: 2\nevent: token\ndata: {"t":"\xff","i":0}\n\n' + end(3), {}),
    ("not strict JSON", STARTED + b'id: 2\nevent: token\ndata: {"t":"\\ud800","i":0}\n\n' + end(3), {}),
    ("NaN is not JSON", STARTED + METRICS.replace(b": 1}", b": NaN}") + end(2), {}),
    ("accepted 'x', which is no event id", WHOLE, {"sent": {"Last-Event-ID": "x"}}),
    ("accepted an invalid request", WHOLE, {"query": "?after=-1"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "body", "options"), BROKEN_STREAMS, ids=[f"{n}-{case[0][:40]}" for n, case in enumerate(BROKEN_STREAMS)]
)
def test_stream_rule_fires(reason: str, body: bytes, options: dict[str, Any]) -> None:
    """Each of these streams breaks a rule, and the message says which and where."""
    with pytest.raises(ContractViolation, match=re.escape(reason)):
        stream(body, **options)


def test_results_stand_in_a_stream_like_tokens() -> None:
    """An embedding or rerank task has `result` where a completion has `token`."""
    assert "result" in stream(STARTED + RESULT + end(3)).events


def test_nothing_more_to_come_needs_a_reader_that_has_something() -> None:
    """204 answers a resume; a reader from the start always gets the log."""
    assert exchange("GET", STREAM, 204, sent={"Last-Event-ID": "4"}).status == 204
    with pytest.raises(ContractViolation, match="204 for a reader that has nothing yet"):
        exchange("GET", STREAM, 204)


@pytest.mark.parametrize("grammar", ["", "a)", "(a", "a | ", "a & b", "* a"])
def test_an_order_that_says_nothing_is_refused(grammar: str) -> None:
    """A grammar is understood completely or not at all."""
    with pytest.raises(ValueError):
        frames.Order(grammar)


@pytest.mark.parametrize(
    ("grammar", "names", "wrong"),
    [
        ("a+ b", "a a b", None),
        ("a+ b", "b", 0),
        ("a? b", "b", None),
        ("a? b", "a a", 1),
        ("(a b)* c", "a b a b c", None),
        ("(a b)* c", "a c", 1),
        ("(a|b c)+ d", "a b c a d", None),
        ("(a|b c)+ d", "a b d", 2),
        ("(a? b?)* c", "b a c", None),
    ],
)
def test_order_follows_its_grammar(grammar: str, names: str, wrong: int | None) -> None:
    """Every sign of the grammar means what it means in a regular expression."""
    assert frames.Order(grammar).first_wrong(names.split()) == wrong
