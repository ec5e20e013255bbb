"""A change that breaks clients cannot slip in: the contracts are compared with those that were released last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from orchestratord import contract
from tests import breaking

Doc = dict[str, Any]
Edit = Callable[[Doc], Any]


def schema(doc: Doc, name: str) -> Doc:
    found: Doc = doc["components"]["schemas"][name]
    return found


def operation(doc: Doc, path: str = "/v1/tasks", method: str = "post") -> Doc:
    found: Doc = doc["paths"][path][method]
    return found


def field(doc: Doc, name: str, key: str) -> Doc:
    found: Doc = schema(doc, name)["properties"][key]
    return found


STREAM = "/v1/tasks/{id}/stream"
SPARE = {"name": "spare", "in": "query", "schema": {"type": "string"}}
EDITS: dict[str, tuple[str, str, Edit]] = {
    "an operation goes": ("major", "the operation is gone", lambda d: d["paths"]["/v1/tasks"].pop("get")),
    "an operation comes": (
        "minor",
        "a new operation",
        lambda d: d["paths"].update({"/v1/new": d["paths"]["/v1/tasks"]}),
    ),
    "an operationId changes": ("major", "is now addTask", lambda d: operation(d).update(operationId="addTask")),
    "a parameter goes": ("major", "the parameter is gone", lambda d: operation(d, method="get")["parameters"].pop(0)),
    "a parameter comes": ("minor", "a new parameter", lambda d: operation(d, method="get")["parameters"].append(SPARE)),
    "a demanded parameter comes": (
        "major",
        "a new required parameter",
        lambda d: operation(d, method="get")["parameters"].append({**SPARE, "required": True}),
    ),
    "a field is demanded": ("major", "required now", lambda d: schema(d, "TaskRequest")["required"].append("seed")),
    "a field is no longer demanded": (
        "minor",
        "may be missing",
        lambda d: schema(d, "TaskRequest")["required"].remove("ctx"),
    ),
    "a request field goes": (
        "major",
        "/seed: the field is gone",
        lambda d: schema(d, "TaskRequest")["properties"].pop("seed"),
    ),
    "a request field comes": (
        "minor",
        "/note: a new field",
        lambda d: schema(d, "TaskRequest")["properties"].update(note={"type": "string"}),
    ),
    "a type changes": ("major", "type integer/int32 is now string", lambda d: _retype(field(d, "TaskRequest", "ctx"))),
    "a request bound falls": ("major", "maximum", lambda d: field(d, "TaskRequest", "seed").update(maximum=9)),
    "a request bound rises": ("minor", "minimum", lambda d: field(d, "TaskRequest", "ctx").update(minimum=0)),
    "a request length falls": ("major", "maxLength", lambda d: field(d, "TaskRequest", "prompt").update(maxLength=9)),
    "a request value goes": ("major", "'batch' is no longer", lambda d: schema(d, "Priority")["enum"].remove("batch")),
    "a value comes": ("minor", "'urgent' is a new value", lambda d: schema(d, "Priority")["enum"].append("urgent")),
    "a pattern changes": ("major", "another pattern", lambda d: schema(d, "ModelRef").update(pattern="a")),
    "a default changes": (
        "major",
        "default",
        lambda d: field(d, "TaskRequest", "on_disconnect").update(default="continue"),
    ),
    "an answer's field goes": (
        "major",
        "/backoff_ms: the field is gone",
        lambda d: schema(d, "AdmissionResponse")["properties"].pop("backoff_ms"),
    ),
    "an answer's field may be missing": (
        "major",
        "may be missing now",
        lambda d: schema(d, "AdmissionResponse")["required"].remove("queue_position"),
    ),
    "an answer's field comes": (
        "minor",
        "a new field",
        lambda d: schema(d, "AdmissionResponse")["properties"].update(note={"type": "string"}),
    ),
    "an answer's field may be null": (
        "major",
        "null",
        lambda d: field(d, "SessionInfo", "turns").update(nullable=True),
    ),
    "a good answer goes": (
        "major",
        "204: the answer is gone",
        lambda d: operation(d, STREAM, "get")["responses"].pop("204"),
    ),
    "a good answer comes": (
        "major",
        "201: a new answer",
        lambda d: operation(d)["responses"].update({"201": operation(d)["responses"]["202"]}),
    ),
    "an error goes": ("minor", "409: the answer is gone", lambda d: operation(d)["responses"].pop("409")),
    "a header goes": (
        "major",
        "Location: the header is gone",
        lambda d: operation(d)["responses"]["202"]["headers"].pop("Location"),
    ),
    "a header may be missing": (
        "major",
        "may be missing",
        lambda d: d["components"]["headers"]["Location"].pop("required"),
    ),
    "an event goes": (
        "major",
        "event result: the event is gone",
        lambda d: operation(d, STREAM, "get")["x-sse-events"].pop("result"),
    ),
    "an event's field goes": (
        "major",
        "event token/i: the field is gone",
        lambda d: schema(d, "SSEToken")["properties"].pop("i"),
    ),
    "the order changes": (
        "major",
        "the order of events",
        lambda d: operation(d, STREAM, "get").update({"x-sse-order": "started (end|error)"}),
    ),
    "prose": ("patch", "", lambda d: operation(d).update(description="Said otherwise.")),
}


def _retype(node: Doc) -> None:
    node.clear()
    node["type"] = "string"


def changed(edit: Edit) -> tuple[Doc, Doc]:
    """The data contract as it was and as it is after an edit, both of version 1.4.2."""
    document = contract.bundle("data")
    for path in list(document["paths"]):  # operations that are shared by name would change together
        document["paths"][path] = copy.deepcopy(document["paths"][path])
    document["info"]["version"] = "1.4.2"
    new = copy.deepcopy(document)
    edit(new)
    return document, new


@pytest.mark.parametrize("name", contract.CONTRACTS)
def test_the_version_is_high_enough_for_what_changed(name: str) -> None:
    """Since the last release. When this fails: undo what breaks, or raise info.version of both contracts as it says."""
    told = breaking.judge(name, breaking.released(name), contract.load(name))
    assert not told, "\n".join(told)


@pytest.mark.parametrize("name", contract.CONTRACTS)
def test_nothing_changed_without_a_change(name: str) -> None:
    assert breaking.compare(contract.load(name), contract.bundle(name)) == []


@pytest.mark.parametrize("case", EDITS)
def test_each_change_is_seen_and_weighed(case: str) -> None:
    """It takes the version it should, and the message says where and what."""
    level, text, edit = EDITS[case]
    old, new = changed(edit)
    lowest = {"major": "2.0.0", "minor": "1.5.0", "patch": "1.4.2"}[level]
    assert breaking.needed("1.4.2", breaking.compare(old, new)) == lowest
    told = "\n".join(breaking.judge("data", old, new))
    if level == "patch":
        assert told == ""
        return
    assert told.startswith(f"data: since 1.4.2 this needs version {lowest}, and info.version is 1.4.2")
    assert text in told


@pytest.mark.parametrize(("version", "enough"), [("1.4.3", False), ("1.5.0", False), ("1.9.9", False), ("2.0.0", True)])
def test_a_breaking_change_takes_a_major_version(version: str, enough: bool) -> None:
    """A new answer field may pass as 1.5.0; a missing one never."""
    old, new = changed(lambda d: schema(d, "SSEToken")["properties"].pop("i"))
    new["info"]["version"] = version
    assert (breaking.judge("data", old, new) == []) is enough


def test_an_addition_takes_a_minor_version() -> None:
    old, new = changed(lambda d: schema(d, "Priority")["enum"].append("urgent"))
    new["info"]["version"] = "1.4.3"
    assert breaking.judge("data", old, new)
    new["info"]["version"] = "1.5.0"
    assert breaking.judge("data", old, new) == []
