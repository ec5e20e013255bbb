"""Half of what a case is about exists: its ids are exchanged for live ones just before it is sent.

Without that nearly every generated request would end in a 404 or at a model nobody serves, and the deeper half of the
daemon would never be reached.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

from schemathesis.generation.meta import TestPhase

from orchestratord import contract
from tests.fuzz.door import Live

OPERATIONS = {(operation.method, operation.path): operation for operation in contract.operations()}
KNOBS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop")  # the mock takes these


class Exchange:
    """Changes cases in place. Repeatable for one seed and one order of cases."""

    def __init__(self, live: Live, seed: int) -> None:
        self._live = live
        self._random = random.Random(seed)

    def half(self) -> bool:
        return self._random.random() < 0.5

    def apply(self, case: Any) -> None:
        """Components that were made to be wrong stay as they are."""
        operation = OPERATIONS.get((case.method.upper(), case.operation.path))
        if operation is None:
            return
        modes = {location.value: info.mode.value for location, info in case.meta.components.items()}
        good = {name for name, mode in modes.items() if mode == "positive"} | ({"header"} - modes.keys())
        ids = self._ids(operation.operation_id, operation.path)
        linked = case.meta.phase.name is TestPhase.STATEFUL  # its id may be of what it has just made
        if "path" in good and ids and not linked and self.half():
            case.path_parameters["id"] = self._random.choice(ids)
        self._headers_and_query(operation.operation_id, case, good)
        if "body" in good and isinstance(case.body, dict):
            self._body(operation.operation_id, case.body)

    def _ids(self, name: str, path: str) -> list[str]:
        live = self._live
        if path.startswith("/v1/tasks/{id}"):
            recent = list(live.tasks)
            return (list(live.ends)[-20:] or recent) if name == "streamTask" and self.half() else recent
        if path.startswith("/v1/sessions/{id}"):
            return list(live.sessions)
        if path.startswith("/v1/artifacts/{id}"):
            return list(live.artifacts)
        if path.startswith("/v1/catalog/models/{id}"):
            return list(live.models)
        return [pool["id"] for pool in live.pools] if "{id}" in path else []

    def _headers_and_query(self, name: str, case: Any, good: set[str]) -> None:
        target = (case.path_parameters or {}).get("id")
        live = self._live
        if name == "streamTask" and target in live.ends and "header" in good and self.half():
            case.headers = {**dict(case.headers or {}), "Last-Event-ID": str(live.ends[target])}
        if name == "getArtifact" and target in live.etags and "header" in good and self.half():
            case.headers = {**dict(case.headers or {}), "If-None-Match": live.etags[target]}
        if name == "createTask" and "header" in good and self._random.random() < 0.9:  # nothing here is to be trusted
            case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "x-trust-policy"}
        if name in live.cursors and "query" in good and self.half():
            case.query = {**dict(case.query or {}), "cursor": self._random.choice(live.cursors[name])}

    def _body(self, name: str, body: dict[str, Any]) -> None:
        if name == "createTask" and self._live.pools:
            if self._random.random() < 0.9:  # else told again, or in conflict with what was told
                body["task_id"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            if self._live.sessions and self.half():
                body["session_id"] = self._random.choice(self._live.sessions)
            if self.half():
                self._served(body)
            elif self.half():
                self._inputs(body)
        elif name == "reloadPool" and self.half():
            body["new_model_ref"] = self._random.choice(self._live.files)
        elif name == "createArtifact" and "parent" in body and self._live.artifacts and self.half():
            body["parent"] = self._random.choice(self._live.artifacts)
        elif name == "createArtifact" and self.half():
            body.pop("parent", None)

    def _served(self, body: dict[str, Any]) -> None:
        """A model that is there, on its engine, with numbers and inputs it can do; the rest stays as drawn."""
        pool = self._random.choice(self._live.pools)
        body.update(model_ref=pool["model_ref"], engine=pool["engine"])
        body["ctx"] = self._random.randint(1024, 4096)
        body["max_tokens"] = self._random.randint(1, 60)
        body["deadline_ms"] = max(body.get("deadline_ms", 0), 20_000)
        body.pop("determinism", None) if self._random.random() < 0.8 else None
        for name in ("sampler_profile_version", "expected_tokens"):
            body.pop(name, None)
        if "placement" in body:
            body["placement"] = self._random.choice([{}, {"mode": "auto"}, {"prefer_pools": [pool["id"]]}])
        if body["workload"] != "completion":
            body.pop("sampling", None)  # nothing is sampled there
        elif isinstance(body.get("sampling"), dict):
            body["sampling"] = {knob: value for knob, value in body["sampling"].items() if knob in KNOBS}
        self._inputs(body)

    def _inputs(self, body: dict[str, Any]) -> None:
        texts = [text[:200] for text in body.get("inputs", []) or ["one", "two"]][:8]
        prompt = str(body.get("prompt", "say something"))[:300]
        messages = [{**message, "content": message["content"][:100]} for message in body.get("messages", [])][:4]
        for name in ("prompt", "messages", "inputs"):
            body.pop(name, None)
        if body["workload"] == "embedding":
            body["inputs"] = texts
        elif body["workload"] == "rerank":
            body.update(prompt=prompt, inputs=texts)
        elif messages:
            body["messages"] = messages
        else:
            body["prompt"] = prompt
