"""`orchestratord verify URL`: whether a deployment keeps the contracts, asked from outside through the verified door.

It changes no pool and needs one small task of a model that is ready. What it leaves behind is in `Report.left`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import requests

from orchestratord import contract
from orchestratord.testing.report import Report, Row
from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.verifier import ContractViolation

TIMEOUT_S = (5.0, 60.0)  # to connect, and between two pieces of an answer
EVENTS_AT_MOST = 1000
BODY_AT_MOST = 16 << 20  # the largest body sent to see a 413
NOBODY = "verify-no-such-thing"
# What a deployment may say to a task by its own limits, its policy and the work it has: that breaks no contract.
MAY_SAY = frozenset(
    {"ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU", "OVERLOADED", "UNTRUSTED_ARTIFACT", "DEADLINE_UNMET"}
    | {"ctx_exceeds_model"}
)


class _Unexpected(Exception):
    """The answer is one of the contract's, but not the one that was asked for."""


class Inspection:
    """One walk over a deployment. Raises requests.RequestException only when nothing answers at all."""

    def __init__(self, url: str, token: str | None, model_ref: str | None = None) -> None:
        self._session = VerifyingSession(url, token, timeout=TIMEOUT_S)
        self._stranger = VerifyingSession(url, None, verifier=self._session.verifier, timeout=TIMEOUT_S)
        self._model_ref = model_ref
        self._ids = {"task_id": str(uuid.uuid4()), "session_id": str(uuid.uuid4())}
        self.report = Report(url, contract.api_version())

    def run(self) -> Report:
        with contextlib.suppress(ContractViolation):  # whoever that is will have a row
            self._session.get("/healthz")
        capabilities = self._expect("getCapabilities", 200, "GET", "/v1/capabilities")
        served = capabilities.json()["api_version"] if capabilities else "unknown"
        if served != self.report.api_version:
            self.report.skipped.append(
                f"the server speaks contract {served}; it was judged by {self.report.api_version}"
            )
        self._looking()
        self._refusals(capabilities.json()["limits"]["max_body_bytes"] if capabilities else BODY_AT_MOST + 1)
        self._strangers()
        self._artifacts()
        self._catalog()
        self._task()
        return self.report

    # -- asking -------------------------------------------------------------------------------------------------
    def _expect(
        self, name: str, status: int, method: str, path: str, *, session: VerifyingSession | None = None, **options: Any
    ) -> requests.Response | None:
        """One request and a row for it; None when the answer was not the one."""
        return self._row(name, status, lambda: (session or self._session).request(method, path, **options))

    def _row(self, name: str, status: int, ask: Callable[[], requests.Response]) -> requests.Response | None:
        try:
            response = ask()
            if response.status_code != status:
                raise _Unexpected(f"answered {response.status_code}: {response.text[:200]}")
        except (ContractViolation, _Unexpected, requests.RequestException, ValueError, KeyError) as error:
            self.report.rows.append(Row(name, status, str(error) or repr(error)))
            return None
        self.report.rows.append(Row(name, status))
        return response

    def _offer(self, status: int, task: dict[str, Any]) -> bool:
        """Whether a task got this status. Another one is a row of its own where the deployment may say so."""
        said: list[requests.Response] = []

        def ask() -> requests.Response:
            said.append(self._session.post("/v1/tasks", json=task))
            return said[0]

        if self._row("createTask", status, ask) is not None:
            return True
        if said:
            refusal = said[0].json()
            word = {refusal.get("code"), refusal.get("details", {}).get("rule")} & MAY_SAY
            if word:
                self.report.rows[-1] = Row("createTask", said[0].status_code)
                self.report.skipped.append(f"createTask {status}: {word.pop()}, {refusal['message']}")
        return False

    @staticmethod
    def _status(session: VerifyingSession, method: str, path: str) -> int | None:
        """The status of an answer whose rightness is judged elsewhere."""
        try:
            return session.request(method, path).status_code
        except (ContractViolation, requests.RequestException):
            return None

    # -- what costs nothing -------------------------------------------------------------------------------------
    def _looking(self) -> None:
        """Everything that only reads."""
        for name, path in (("getHealth", "/healthz"), ("getMetrics", "/metrics"), ("getDocs", "/docs")):
            self._expect(name, 200, "GET", path)
        self._expect("getReadiness", 200 if self._ready() else 503, "GET", "/readyz")
        for document in contract.CONTRACTS:
            self._expect("getContract", 200, "GET", f"/openapi/{document}.json")
            self._expect("getContract", 200, "GET", f"/openapi/{document}.yaml")
        for name, path in (("listTasks", "/v1/tasks"), ("listArtifacts", "/v1/artifacts"), ("listPools", "/v1/pools")):
            self._expect(name, 200, "GET", path, params={"limit": "5"})
        for pool in self._pools():
            self._expect("getPoolHealth", 200, "GET", f"/v1/pools/{pool['id']}/health")

    def _ready(self) -> bool:
        """As the pools say: all of them that are not closed are ready, and there is one."""
        wanted = [pool for pool in self._pools() if not pool["draining"]]
        return bool(wanted) and all(pool["ready"] for pool in wanted)

    def _pools(self) -> list[dict[str, Any]]:
        try:
            items: list[dict[str, Any]] = self._session.get("/v1/pools").json()["items"]
        except (ContractViolation, requests.RequestException, ValueError, KeyError):
            return []  # listPools has its row already
        return items

    def _refusals(self, body_limit: int) -> None:
        """Every refusal that depends on the request alone, of every operation that declares it."""
        for operation in contract.operations():
            name, method = operation.operation_id, operation.method
            formed = operation.path.replace("{id}", _unknown(operation)).replace("{name}", "data.json")
            if "{id}" in operation.path:
                self._expect(name, 400, method, operation.path.replace("{id}", "%20"), **_body(operation))
                self._expect(name, 404, method, formed, **_body(operation))
            if operation.body_schema is not None:
                self._expect(name, 400, method, formed, data=b"{", headers={"Content-Type": "application/json"})
                self._expect(name, 415, method, formed, data=b"{}", headers={"Content-Type": "text/plain"})
                if body_limit <= BODY_AT_MOST:
                    large = b" " * (body_limit + 1)
                    self._expect(name, 413, method, formed, data=large, headers={"Content-Type": "application/json"})
            if any(parameter["name"] == "limit" for parameter in operation.parameters):
                self._expect(name, 400, method, formed, params={"limit": "0"})
        self._expect("NotFound", 404, "GET", f"/{NOBODY}")
        self._expect("MethodNotAllowed", 405, "PUT", "/v1/tasks")

    def _strangers(self) -> None:
        """Without the token, where one is needed."""
        if self._status(self._stranger, "GET", "/v1/capabilities") != 401:
            self.report.skipped.append("401 of all operations: the server asks for no token")
            return
        for operation in contract.operations():
            path = operation.path.replace("{id}", _unknown(operation)).replace("{name}", "data.json")
            if self._status(self._stranger, operation.method, path) == 200:
                continue  # made public by its configuration
            self._expect(operation.operation_id, 401, operation.method, path, session=self._stranger)

    # -- what leaves something ----------------------------------------------------------------------------------
    def _artifacts(self) -> None:
        body = {"kind": "other", "content": "orchestratord verify", "tags": ["verify"]}
        stored = self._expect("createArtifact", 201, "POST", "/v1/artifacts", json=body)
        if stored is None:
            return
        path = stored.headers["Location"]
        self.report.left.append(f"artifact {path}")
        read = self._expect("getArtifact", 200, "GET", path)
        if read is not None:
            self._expect("getArtifact", 304, "GET", path, headers={"If-None-Match": read.headers["ETag"]})

    def _catalog(self) -> None:
        later = [op for op in contract.operations() if op.until is not None]
        if any(op.operation_id == "createCatalogModel" for op in later):
            self.report.skipped.append("the model catalog: this contract only announces it")
            return
        entry = {"id": f"verify-{uuid.uuid4().hex[:12]}", "source_url": f"file:/verify/{uuid.uuid4()}.gguf"}
        path = f"/v1/catalog/models/{entry['id']}"
        if self._expect("createCatalogModel", 201, "POST", "/v1/catalog/models", json=entry) is None:
            return
        try:
            self._expect("createCatalogModel", 409, "POST", "/v1/catalog/models", json=entry)
            self._expect("listCatalogModels", 200, "GET", "/v1/catalog/models", params={"limit": "1"})
            self._expect("getCatalogModel", 200, "GET", path)
            self._expect("verifyCatalogModel", 202, "POST", f"{path}/verify")
            self._expect("setCatalogModelState", 202, "POST", f"{path}/state", json={"state": "Retired"})
        finally:
            if self._expect("deleteCatalogModel", 204, "DELETE", path) is None:
                self.report.left.append(f"catalog entry {path}")

    def _task(self) -> None:
        """One task from admission to its transcript, and its session's end."""
        pool = next(
            (
                pool
                for pool in self._pools()
                if pool["ready"] and self._model_ref in (None, pool["model_ref"], pool["id"])
            ),
            None,
        )
        ref = self._model_ref or (pool["model_ref"] if pool else None)
        if ref is None:
            self.report.skipped.append("tasks and streams: no pool is ready; name a model with --model-ref")
            return
        task = {**self._ids, **TASK, "model_ref": ref, "engine": pool["engine"] if pool else "llamacpp"}
        path = f"/v1/tasks/{task['task_id']}"
        self._offer(400, {**task, "workload": "embedding"})
        self._offer(503, {**task, "model_ref": NOBODY})
        if not self._offer(202, task):
            return
        self.report.left.append(f"task {path} and its transcript, until their retention ends")
        try:
            self._expect("createTask", 202, "POST", "/v1/tasks", json=task)
            self._expect("createTask", 409, "POST", "/v1/tasks", json={**task, "max_tokens": 9})
            self._row("streamTask", 200, lambda: self._follow(self._ids["task_id"]))
            status = self._expect("getTask", 200, "GET", path)
            if status is not None:
                seen = {"Last-Event-ID": str(status.json()["last_event_id"])}
                self._expect("streamTask", 204, "GET", f"{path}/stream", headers=seen)
                self._expect("streamTask", 400, "GET", f"{path}/stream", headers={"Last-Event-ID": "-1"})
            self._expect("cancelTask", 204, "POST", f"{path}/cancel")
            self._expect("getSession", 200, "GET", f"/v1/sessions/{task['session_id']}")
        finally:
            if self._expect("deleteSession", 204, "DELETE", f"/v1/sessions/{task['session_id']}") is None:
                self.report.left.append(f"session {task['session_id']}, until its lifetime ends")

    def _follow(self, task_id: str) -> requests.Response:
        with self._session.events(task_id) as events:
            for number, event in enumerate(events):
                if event.name in ("end", "error"):
                    break
                if number > EVENTS_AT_MOST:
                    raise _Unexpected(f"no end after {EVENTS_AT_MOST} events")
            for _ in events:
                pass
        if event.name == "error":
            raise _Unexpected(f"the task failed: {event.data}")
        return events.response


TASK = {
    "workload": "completion",
    "ctx": 256,
    "priority": "interactive",
    "max_tokens": 8,
    "deadline_ms": 60_000,
    "prompt": "Count to three:",
    "on_disconnect": "continue",
}


def _unknown(operation: contract.Operation) -> str:
    """An id of the right form that nobody has."""
    if operation.path.startswith("/v1/artifacts"):
        return "0" * 64
    return NOBODY if operation.path.startswith(("/v1/pools", "/v1/catalog")) else str(uuid.uuid4())


def _body(operation: contract.Operation) -> dict[str, Any]:
    """A well-formed body where the operation takes one, for a request that fails by its path."""
    bodies = {
        "drainPool": {"deadline_ms": 1000},
        "reloadPool": {"new_model_ref": NOBODY},
        "setCatalogModelState": {"state": "Active"},
    }
    return {"json": bodies[operation.operation_id]} if operation.operation_id in bodies else {}


def inspect(url: str, token: str | None = None, model_ref: str | None = None) -> Report:
    """Verify the deployment at `url`. Raises requests.RequestException when nothing answers there."""
    return Inspection(url, token, model_ref).run()
