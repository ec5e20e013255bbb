"""Every example of both contracts is real: what is shown as a request is accepted, what is shown as an answer is given.

One row for each example; one that has no row, and a row that has no example, is a failure. Requests are sent as they
are shown. An answer is brought about for real, and has the keys and kinds of value the example shows, no more and no
less. That examples fit their schemas is the contract lint's (`examples_fit`).
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestratord import contract, crowd
from orchestratord.domain.kv import KvLayout
from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.http.support import RawConnection, submit, task, wait_for
from tests.ports import signed_samples as samples

CODER, NEXT = "hf:acme/coder-7b/q4.gguf", "hf:acme/coder-8b/q4.gguf"
TOKEN = "example-token"
SOME_ID = "6f1d2c3b-4a59-4e68-8777-86958493a2b1"
FETCH = {"schemes": ["hf", "oci"], "hub": "https://127.0.0.1:9", "allow_private": ["127.0.0.1:9"]}  # nobody is there
HOME = {"mode": "pin", "pin_pool_id": "home"}
Key = tuple[str, str, str]  # operationId or shared response, status ("" of shared ones, "body" of requests), example


class Stage:
    """A daemon as the examples have it in mind: two pools of one model, and one for each other workload."""

    def __init__(self, folder: Path) -> None:
        (folder / "acme.pem").write_bytes(samples.ECDSA)
        (folder / "m.gguf").write_bytes(samples.MODEL)
        (folder / "bad.sig").write_bytes(samples.ECDSA_SIGNATURE[::-1])
        (folder / "next.gguf").write_bytes(b"GGUF")
        home = mock_pool("home", model=CODER, ctx=8192, capacity=3)
        home["replicas"][0] |= {"device_mask": "gpu0", "memory_bytes": 10}
        settings = mock_settings(
            pools=[
                home,
                mock_pool("spare", model=CODER),
                mock_pool("ranker", engine="vllm"),
                mock_pool("embedder", engine="tgi"),
            ],
            token=TOKEN,
            sessions={"budgets": {"tokens": 20_000, "time_ms": 80_000_000, "cost": 10.0}},
            auth={"rate_limit": {"per_s": 2, "burst": 100}},
            models={"roots": [str(folder)], "memory_bytes": 100, "fetch": FETCH},
            trust={"roots": {"acme-root": str(folder / "acme.pem"), "acme": str(folder / "acme.pem")}},
        )
        self.app = LiveApp(settings)
        self.http: VerifyingSession

    def __enter__(self) -> Stage:
        self.http = self.app.start().session(TOKEN)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.app.stop()

    def get(self, path: str, **options: Any) -> requests.Response:
        answer = self.http.get(path, **options)
        self.app.settle()
        return answer

    def post(self, path: str, json: Any = None, **options: Any) -> requests.Response:
        answer = self.http.post(path, json=json, **options)
        self.app.settle()
        return answer

    def submit(self, **fields: Any) -> str:
        found = submit(self.http, **{"model_ref": CODER, "placement": HOME, **fields})
        self.app.settle()
        return found

    def hold(self) -> None:
        self.app.call(self.app.engine().hold)

    def busy(self, tasks: int) -> list[str]:
        """So many tasks on `home`, of which two run and none ends."""
        self.hold()
        return [self.submit(on_disconnect="continue") for _ in range(tasks)]

    def play(self, **script: Any) -> None:
        self.app.call(lambda: self.app.engine().play(MockScript(**script)))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as running:
        yield running


# -- the examples there are ------------------------------------------------------------------------------------
def examples() -> dict[Key, Any]:
    """Every example of a body, in a request or an answer."""
    found: dict[Key, Any] = {}
    for name in contract.CONTRACTS:
        document = contract.load(name)
        for operation in contract.read_operations({name: document}):
            raw = document["paths"][operation.path][operation.method.lower()]
            holders = {"body": raw.get("requestBody", {})}
            holders |= {status: response for status, response in raw["responses"].items() if "$ref" not in response}
            for status, holder in holders.items():
                found |= {(operation.operation_id, status, key): value for key, value in _values(holder)}
        for shared, response in document["components"].get("responses", {}).items():
            found |= {(shared, "", key): value for key, value in _values(response)}
    return found


def _values(holder: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for media in holder.get("content", {}).values():
        if "example" in media:
            yield "example", media["example"]
        yield from ((key, each["value"]) for key, each in media.get("examples", {}).items())


EXAMPLES = examples()
REQUESTS = [key for key in EXAMPLES if key[1] == "body"]
ANSWERS = [key for key in EXAMPLES if key[1] != "body"]


# -- requests --------------------------------------------------------------------------------------------------
def entered(stage: Stage) -> None:
    assert stage.post("/v1/catalog/models", {"id": "coder-7b", "source_url": CODER}).status_code == 201


SENT: dict[tuple[str, str], tuple[str, int]] = {  # where to, and the status that comes back
    ("createTask", "completion"): ("/v1/tasks", 202),
    ("createTask", "chat"): ("/v1/tasks", 202),
    ("createTask", "embedding"): ("/v1/tasks", 202),
    ("createTask", "rerank"): ("/v1/tasks", 202),
    ("drainPool", "minute"): ("/v1/pools/home/drain", 202),
    ("reloadPool", "next"): ("/v1/pools/home/reload", 202),
    ("createCatalogModel", "short"): ("/v1/catalog/models", 201),
    ("createCatalogModel", "full"): ("/v1/catalog/models", 201),
    ("setCatalogModelState", "retire"): ("/v1/catalog/models/coder-7b/state", 202),
    ("createArtifact", "text"): ("/v1/artifacts", 201),
    ("createArtifact", "object"): ("/v1/artifacts", 201),
}


@pytest.mark.parametrize("key", REQUESTS, ids="-".join)
def test_every_request_shown_is_accepted(stage: Stage, key: Key) -> None:
    """As it is shown, letter by letter; the session also judges the answer."""
    operation, _, example = key
    path, status = SENT[operation, example]
    if operation == "setCatalogModelState":
        entered(stage)
    answer = stage.post(path, EXAMPLES[key])
    assert answer.status_code == status, answer.text
    if operation == "createTask":
        stage.app.advance(1)
        told = stage.get(f"/v1/tasks/{EXAMPLES[key]['task_id']}").json()
        assert (told["state"], told["model_ref"]) == ("ended", EXAMPLES[key]["model_ref"])


# -- parameters ------------------------------------------------------------------------------------------------
SHOWN = [
    (operation, parameter)
    for operation in contract.operations()
    for parameter in operation.parameters
    if "example" in parameter
]
REFUSED = {("createTask", "X-Trust-Policy"): "trust"}  # rightly: no model here is signed


@pytest.mark.parametrize(
    ("operation", "parameter"), SHOWN, ids=[f"{operation.operation_id}-{each['name']}" for operation, each in SHOWN]
)
def test_every_parameter_shown_is_accepted(stage: Stage, operation: contract.Operation, parameter: Any) -> None:
    """Where the example names something that is not there, it is not found; it is never malformed."""
    first = stage.post("/v1/tasks", EXAMPLES["createTask", "body", "completion"])
    assert (first.status_code, EXAMPLES["createTask", "body", "completion"]["task_id"]) == (202, SOME_ID)
    stage.app.advance(1)
    path = operation.path
    for each in operation.parameters:
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", each["example"])
    sent = {"query": {}, "header": {}, "path": {}}
    sent[parameter["in"]][parameter["name"]] = str(parameter["example"])
    bodies = [value for key, value in EXAMPLES.items() if key[:2] == (operation.operation_id, "body")]
    answer = stage.http.request(
        operation.method, path, params=sent["query"], headers=sent["header"], json=bodies[-1] if bodies else None
    )
    stage.app.settle()
    rule = REFUSED.get((operation.operation_id, parameter["name"]))
    if rule is not None:
        assert answer.json()["details"]["rule"] == rule
    else:
        assert answer.status_code in (200, 201, 202, 204, 404, 409), answer.text


@pytest.mark.parametrize(("workload", "schema"), [("embedding", "EmbeddingResult"), ("rerank", "RerankResult")])
def test_every_result_shown_is_streamed(stage: Stage, workload: str, schema: str) -> None:
    body = EXAMPLES["createTask", "body", workload]
    assert stage.post("/v1/tasks", body).status_code == 202
    stage.app.advance(1)
    with stage.http.events(body["task_id"]) as events:
        results = [event.data for event in events if event.name == "result"]
    shown = contract.load("data")["components"]["schemas"][schema]["example"]
    assert list(differences(shown, results[0])) == []


# -- answers ---------------------------------------------------------------------------------------------------
def admitted(stage: Stage) -> requests.Response:
    return stage.post("/v1/tasks", EXAMPLES["createTask", "body", "completion"])


def queued(stage: Stage) -> requests.Response:
    stage.busy(2)
    stage.app.call(stage.app.engine("spare").hold)
    for _ in range(3):
        stage.submit(placement=None)
    return stage.get("/v1/tasks")


def ended(stage: Stage) -> requests.Response:
    done = stage.submit(placement={"mode": "prefer", "prefer_pools": ["home"], "avoid_pools": ["spare"]})
    stage.app.advance(1)
    return stage.get(f"/v1/tasks/{done}")


def failed(stage: Stage) -> requests.Response:
    stage.play(hang_after=1)
    done = stage.submit()
    stage.app.advance(100)
    return stage.get(f"/v1/tasks/{done}")


def warm(stage: Stage) -> requests.Response:
    session, replicas = str(uuid.uuid4()), stage.app.daemon.core.pools["home"].replicas
    stage.app.call(lambda: [setattr(each, "kv", KvLayout(40_960)) for each in replicas.values()])
    stage.submit(session_id=session)
    stage.app.advance(1)
    return stage.get(f"/v1/sessions/{session}")


def down(stage: Stage) -> requests.Response:
    stage.app.call(lambda: setattr(stage.app.engine(), "down", True))
    stage.app.advance(30)
    return stage.get("/v1/pools/home/health")


def draining(stage: Stage) -> requests.Response:
    stage.busy(1)
    return stage.post("/v1/pools/home/drain", {"deadline_ms": 60_000})


def resumed(stage: Stage) -> requests.Response:
    stage.post("/v1/pools/home/drain", {"deadline_ms": 60_000})
    stage.app.advance(1)
    return stage.post("/v1/pools/home/resume")


def reloaded(stage: Stage) -> requests.Response:
    return stage.post("/v1/pools/home/reload", {"new_model_ref": NEXT})


def rolled_back(stage: Stage) -> requests.Response:
    assert stage.app.clock is not None
    fresh = stage.app.daemon.mocks["home", "r0@file:next.gguf"] = MockEngine(clock=stage.app.clock)
    fresh.play(MockScript(jobs=math.inf, error_after=0))
    assert stage.post("/v1/pools/home/reload", {"new_model_ref": "file:next.gguf"}).status_code == 202
    return stage.get("/v1/pools/home/health")


def models(stage: Stage) -> requests.Response:
    for name in ("first", "m"):
        entry = {"id": name, "source_url": f"file:{'m' if name == 'm' else 'next'}.gguf", "tags": ["code"]}
        assert stage.post("/v1/catalog/models", entry).status_code == 201
    verified(stage)
    return stage.get("/v1/catalog/models", params={"limit": 1})


def verified(stage: Stage, status: str = "passed") -> requests.Response:
    stage.post("/v1/catalog/models/m/verify")
    path = "/v1/catalog/models/m"
    wait_for(lambda: stage.get(path).json()["verification"]["status"] == status, f"the check {status}")
    return stage.get(path)


def forged(stage: Stage) -> requests.Response:
    entry = {
        "id": "m",
        "source_url": "file:m.gguf",
        "digest": f"sha256:{hashlib.sha256(samples.MODEL).hexdigest()}",
        "tags": ["code"],
    }
    entry["signature_refs"] = [{"uri": "file:bad.sig", "signer": "acme"}]
    assert stage.post("/v1/catalog/models", entry).status_code == 201
    stage.post("/v1/catalog/models/m/state", {"state": "Retired", "deadline_ms": 1000})
    return verified(stage, "failed")


def started(stage: Stage) -> requests.Response:
    entered(stage)
    return stage.post("/v1/catalog/models/coder-7b/verify")


def retired(stage: Stage) -> requests.Response:
    entered(stage)
    return stage.post("/v1/catalog/models/coder-7b/state", {"state": "Retired", "deadline_ms": 60_000})


def stored(stage: Stage) -> requests.Response:
    return stage.post("/v1/artifacts", EXAMPLES["createArtifact", "body", "text"])


def break_journal(stage: Stage) -> None:
    stage.app.call(lambda: setattr(stage.app.daemon.journal, "broken", "no space left"))


def not_ready(stage: Stage) -> requests.Response:
    break_journal(stage)
    return stage.get("/readyz")


def after(act: Callable[[Stage], object], path: str) -> Callable[[Stage], requests.Response]:
    def made(stage: Stage) -> requests.Response:
        act(stage)
        return stage.get(path)

    return made


def plain(path: str, **options: Any) -> Callable[[Stage], requests.Response]:
    return lambda stage: stage.get(path, **options)


def asked(path: str = "/v1/tasks", **options: Any) -> Callable[[Stage], requests.Response]:
    return lambda stage: stage.post(path, **options)


def told(**fields: Any) -> Callable[[Stage], requests.Response]:
    """The answer to a task that is not admitted."""
    return lambda stage: stage.post("/v1/tasks", task(**{"model_ref": CODER, "placement": HOME, **fields}))


def without_token(stage: Stage) -> requests.Response:
    with stage.app.session() as stranger:
        return stranger.get("/v1/pools")


def with_bad_token(stage: Stage) -> requests.Response:
    with stage.app.session("x" * 20) as stranger:
        return stranger.get("/v1/pools")


def hopeless(stage: Stage) -> requests.Response:
    stage.busy(3)
    return told(deadline_ms=150, max_tokens=400)(stage)


def full(stage: Stage) -> requests.Response:
    stage.busy(5)
    return told()(stage)


def spent(stage: Stage) -> requests.Response:
    session = str(uuid.uuid4())
    stage.busy(0)
    for _ in range(2):
        stage.submit(session_id=session, max_tokens=8000, ctx=8192)
    return told(session_id=session, max_tokens=8000, ctx=8192)(stage)


def reused(stage: Stage) -> requests.Response:
    return told(task_id=stage.submit(), prompt="another one")(stage)


def deprecated(stage: Stage) -> requests.Response:
    retired(stage)
    return told()(stage)


def busy(stage: Stage) -> requests.Response:
    stage.busy(1)
    stage.post("/v1/pools/home/drain", {"deadline_ms": 60_000})
    return reloaded(stage)


def drained(stage: Stage) -> requests.Response:
    stage.post("/v1/pools/home/drain", {"deadline_ms": 60_000})
    return told()(stage)


def not_stored(stage: Stage) -> requests.Response:
    break_journal(stage)
    return told()(stage)


def faulty(stage: Stage) -> requests.Response:
    def explode() -> None:
        raise RuntimeError

    stage.app.daemon.pools.capabilities = explode  # type: ignore[assignment,method-assign]
    return stage.get("/v1/capabilities")


MADE: dict[Key, Callable[[Stage], requests.Response]] = {
    ("createTask", "202", "admitted"): admitted,
    ("listTasks", "200", "page"): queued,
    ("getTask", "200", "ended"): ended,
    ("getTask", "200", "failed"): failed,
    ("getSession", "200", "warm"): warm,
    ("getCapabilities", "200", "one"): plain("/v1/capabilities"),
    ("listPools", "200", "page"): plain("/v1/pools"),
    ("getPoolHealth", "200", "well"): after(ended, "/v1/pools/home/health"),
    ("getPoolHealth", "200", "down"): down,
    ("drainPool", "202", "pending"): draining,
    ("reloadPool", "202", "pending"): reloaded,
    ("getPoolHealth", "200", "rolled_back"): rolled_back,
    ("resumePool", "202", "pending"): resumed,
    ("createCatalogModel", "201", "entered"): asked(
        "/v1/catalog/models", json=EXAMPLES["createCatalogModel", "body", "short"]
    ),
    ("listCatalogModels", "200", "page"): models,
    ("getCatalogModel", "200", "failed"): forged,
    ("verifyCatalogModel", "202", "started"): started,
    ("setCatalogModelState", "202", "retired"): retired,
    ("createArtifact", "201", "stored"): stored,
    ("listArtifacts", "200", "page"): after(stored, "/v1/artifacts"),
    ("getArtifact", "200", "plan"): lambda stage: stage.get(f"/v1/artifacts/{stored(stage).json()['id']}"),
    ("getHealth", "200", "ok"): plain("/healthz"),
    ("getReadiness", "200", "ready"): plain("/readyz"),
    ("getReadiness", "503", "storage"): not_ready,
    ("getContract", "200", "start"): plain("/openapi/data.json"),
    ("Unauthorized", "", "missing"): without_token,
    ("Unauthorized", "", "bad"): with_bad_token,
    ("Forbidden", "", "host"): plain("/v1/pools", headers={"Host": "elsewhere.example"}),
    ("InternalError", "", "fault"): faulty,
    ("BadRequest", "", "schema"): told(modelref="x"),
    ("BadRequest", "", "rule"): told(max_tokens=9000, ctx=8192),
    ("BadRequest", "", "deadline"): hopeless,
    ("NotFound", "", "unknown"): plain(f"/v1/tasks/{SOME_ID}"),
    ("Conflict", "", "reuse"): reused,
    ("Conflict", "", "retired"): deprecated,
    ("Conflict", "", "busy"): busy,
    ("PayloadTooLarge", "", "large"): asked(data=b" " * (1 << 20) + b" ", headers={"Content-Type": "application/json"}),
    ("UnsupportedMediaType", "", "type"): asked(data=b"{}", headers={"Content-Type": "text/plain"}),
    ("TooManyRequests", "", "full"): full,
    ("TooManyRequests", "", "budget"): spent,
    ("ServiceUnavailable", "", "unready"): drained,
    ("ServiceUnavailable", "", "nowhere"): told(model_ref="nowhere", engine="vllm", placement=None),
    ("ServiceUnavailable", "", "storage"): not_stored,
    ("MethodNotAllowed", "", "method"): lambda stage: stage.http.patch("/v1/tasks"),
    ("UriTooLong", "", "uri"): plain("/" + "a" * 9000),
    ("HeadersTooLarge", "", "headers"): plain("/healthz", headers={"X-Much": "a" * 20_000}),
}


RAW = {("RequestTimeout", "", "slow"), ("ConnectionLimit", "", "cap")}  # given below HTTP clients: tests of their own
SAME = ("code", "retriable", "policy_label", "state", "status", "ready", "draining", "live")
ABRIDGED = {("getContract", "200", "start")}  # the example is its beginning
FINER = ("log_tail", "last_error/code")  # what the log of an engine's process tells (tests/services/test_deaths.py)


def differences(shown: Any, real: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values are not of one kind, or words that mean something are not the same.

    Of lists the first items stand for all.
    """
    if isinstance(shown, dict) and isinstance(real, dict):
        yield from (f"{at}/{key} is only in the example" for key in shown.keys() - real.keys())
        yield from (f"{at}/{key} is only in the answer" for key in real.keys() - shown.keys())
        for key in shown.keys() & real.keys():
            yield from differences(shown[key], real[key], f"{at}/{key}")
    elif isinstance(shown, list) and isinstance(real, list):
        if shown and not real and not at.endswith(FINER):
            yield f"{at} has items in the example only"
        elif shown and real:
            yield from differences(shown[0], real[0], f"{at}/0")
    elif kind(shown) != kind(real):
        yield f"{at} is a {kind(shown)} in the example and a {kind(real)} in the answer"
    elif at.rpartition("/")[2] in SAME and not at.endswith(FINER) and shown != real:
        yield f"{at} is {shown!r} in the example and {real!r} in the answer"


def kind(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def test_every_example_has_its_row_and_every_row_its_example() -> None:
    assert {(operation, "body", example) for operation, example in SENT} == set(REQUESTS)
    assert MADE.keys() | RAW == set(ANSWERS)


@pytest.mark.parametrize("key", MADE, ids="-".join)
def test_every_answer_shown_is_given(stage: Stage, key: Key) -> None:
    answer = MADE[key](stage)
    shown = EXAMPLES[key]
    if key[1]:
        assert str(answer.status_code) == key[1], answer.text
    if key in ABRIDGED:
        assert [line for line in differences(shown, answer.json()) if "only in the answer" not in line] == []
    else:
        assert list(differences(shown, answer.json())) == []


def test_the_answer_to_a_slow_request_is_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestratord.connection.HEAD_S", 0.1)
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(b"GET /heal")
        assert list(differences(EXAMPLES["RequestTimeout", "", "slow"], connection.answer().json())) == []


def test_the_answer_to_one_connection_too_many_is_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "EVICT_S", math.inf)
    settings = mock_settings(server={"connections": 1})
    with LiveApp(settings) as app, RawConnection(app.url), RawConnection(app.url) as second:
        assert list(differences(EXAMPLES["ConnectionLimit", "", "cap"], second.answer().json())) == []


@pytest.mark.parametrize(
    ("shown", "real", "place"),
    [
        ({"a": 1}, {}, "/a is only in the example"),
        ({}, {"a": 1}, "/a is only in the answer"),
        ({"a": {"b": 1}}, {"a": {"b": "1"}}, "/a/b is a number"),
        ({"a": [{"b": 1}]}, {"a": [{}]}, "/a/0/b is only in the example"),
        ({"a": ["b"]}, {"a": []}, "/a has items"),
        ({"a": None}, {"a": "b"}, "/a is a NoneType"),
        ({"a": 1}, {"a": True}, "/a is a number"),
        ({"state": "ended"}, {"state": "failed"}, "/state is 'ended'"),
    ],
)
def test_a_difference_is_seen(shown: Any, real: Any, place: str) -> None:
    (found,) = differences(shown, real)
    assert found.startswith(place)
