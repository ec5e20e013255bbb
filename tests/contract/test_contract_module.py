"""`orchestratord.contract`: bundling, operations, and what schemas mean to a validator."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestratord import contract

UUID = "6f1d2c3b-4a59-4e68-8777-86958493a2b1"
SHARED: dict[str, Any] = {
    "components": {
        "schemas": {
            "Used": {"properties": {"deep": {"$ref": "#/components/schemas/Deep"}}},
            "Deep": {"type": "string"},
            "Idle": {"type": "string"},
            "Tree": {"properties": {"child": {"$ref": "#/components/schemas/Tree"}}},
        }
    }
}


def document(ref: str, **more: Any) -> dict[str, Any]:
    return {"paths": {"/x": {"get": {"x": {"$ref": ref}}}}, **more}


def operation_document(*paths: str, operation_id: str = "getIt") -> dict[str, Any]:
    return {"paths": {path: {"get": {"operationId": operation_id, "responses": {}}} for path in paths}}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    return contract.compile_schema(schema).is_valid(value)


# -- bundling
@pytest.mark.parametrize("name", contract.CONTRACTS)
def test_bundle_needs_no_other_file(name: str) -> None:
    """Every reference of a loaded contract is local and leads somewhere."""
    doc = contract.load(name)
    assert "components.yaml" not in json.dumps(doc)
    assert "$ref" not in json.dumps(contract.dereference(doc, doc))


def test_bundle_pulls_in_only_what_is_reached() -> None:
    """A part behind a part comes too; an idle one does not."""
    doc = contract.bundle_document(document("components.yaml#/components/schemas/Used"), SHARED)
    assert doc["paths"]["/x"]["get"]["x"] == {"$ref": "#/components/schemas/Used"}
    assert set(doc["components"]["schemas"]) == {"Used", "Deep"}


def test_bundle_keeps_aliases() -> None:
    """An alias among a contract's own components pulls in what no operation uses."""
    alias = {"schemas": {"Idle": {"$ref": "components.yaml#/components/schemas/Idle"}}}
    doc = contract.bundle_document(document("components.yaml#/components/schemas/Deep", components=alias), SHARED)
    assert doc["components"] == {"schemas": {"Deep": {"type": "string"}, "Idle": {"type": "string"}}}


def test_bundle_ends_when_a_part_reaches_itself() -> None:
    """A recursive part is pulled in once."""
    doc = contract.bundle_document(document("components.yaml#/components/schemas/Tree"), SHARED)
    assert doc["components"] == {"schemas": {"Tree": SHARED["components"]["schemas"]["Tree"]}}


@pytest.mark.parametrize(
    "ref",
    [
        "components.yaml#/components/schemas/Nothing",
        "components.yaml#/components/schemas/Used/properties/deep",
        "other.yaml#/components/schemas/Used",
        "https://example.com/schema",
    ],
)
def test_bundle_refuses_other_references(ref: str) -> None:
    """A reference that names no shared part is an error at start."""
    with pytest.raises(ValueError):
        contract.bundle_document(document(ref), SHARED)


def test_load_knows_only_the_contracts() -> None:
    """The shared file is not a contract."""
    with pytest.raises(ValueError, match="no contract"):
        contract.load("components")


def test_bundle_is_a_copy() -> None:
    """What a caller does to a bundle does not reach the next one."""
    contract.bundle("data")["paths"].clear()
    assert contract.bundle("data")["paths"]
    assert contract.load("data") is contract.load("data")


def test_api_version_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both contracts carry the version, and a difference is an error."""
    assert contract.api_version() == contract.load("data")["info"]["version"] == "1.1.0"
    monkeypatch.setattr(contract, "load", lambda name: {"info": {"version": name}})
    with pytest.raises(ValueError, match="differ in version"):
        contract.api_version()


# -- references
def test_resolve_follows_to_the_end() -> None:
    """A reference to a reference is followed; anything else is returned as it is."""
    doc = {"components": {"a": {"$ref": "#/components/b"}, "b": {"type": "string"}}}
    assert contract.resolve(doc, {"$ref": "#/components/a"}) is doc["components"]["b"]
    assert contract.resolve(doc, 7) == 7


def test_endless_references_are_errors() -> None:
    """Following never hangs."""
    doc: dict[str, Any] = {"components": {"a": {"$ref": "#/components/a"}, "t": {"items": {"$ref": "#/components/t"}}}}
    with pytest.raises(ValueError, match="itself"):
        contract.resolve(doc, {"$ref": "#/components/a"})
    with pytest.raises(ValueError, match="itself"):
        contract.dereference(doc, {"$ref": "#/components/t"})


def test_dereference_copies() -> None:
    """The same part used twice is not shared, and the source stays as it was."""
    doc = {"components": {"s": {"type": "string"}}}
    first, second = contract.dereference(doc, [{"$ref": "#/components/s"}, {"$ref": "#/components/s"}])
    first["type"] = "number"
    assert second == {"type": "string"} == doc["components"]["s"]


def test_what_references_lead_to_can_be_shared() -> None:
    """Asked for, it is one object wherever it is used, still a copy, and equal to what is not shared."""
    doc = {"components": {"s": {"type": "string"}, "o": {"properties": {"a": {"$ref": "#/components/s"}}}}}
    schema = [{"$ref": "#/components/s"}, {"$ref": "#/components/o"}]
    first, second = contract.dereference(doc, schema, shared={})
    assert first is second["properties"]["a"]
    assert first is not doc["components"]["s"]
    assert [first, second] == contract.dereference(doc, schema)


def test_sharing_hides_no_endless_reference() -> None:
    doc: dict[str, Any] = {"components": {"t": {"items": {"$ref": "#/components/t"}}}}
    with pytest.raises(ValueError, match="itself"):
        contract.dereference(doc, {"$ref": "#/components/t"}, shared={})


@pytest.mark.parametrize("name", contract.CONTRACTS)
def test_operations_are_what_their_contract_says(name: str) -> None:
    """Sharing what references lead to changes nothing of it."""
    doc = contract.load(name)
    for operation in contract.operations():
        if operation.contract == name:
            item = doc["paths"][operation.path][operation.method.lower()]
            assert operation.responses == contract.dereference(doc, item["responses"])


# -- operations
def test_operations_are_complete() -> None:
    """An operation carries what a server and a verifier need."""
    by_id = {o.operation_id: o for o in contract.operations()}
    create = by_id["createTask"]
    assert (create.contract, create.method, create.path) == ("data", "POST", "/v1/tasks")
    assert create.body_required
    assert create.body_schema is not None
    assert "task_id" in create.body_schema["properties"]
    assert create.responses["429"]["headers"]["Retry-After"]["required"] is True
    assert "deadline" in create.rules
    assert (create.until, create.sse_events, create.sse_order) == (None, None, None)
    stream = by_id["streamTask"]
    assert [p["name"] for p in stream.parameters] == ["id", "after", "Last-Event-ID"]
    assert stream.sse_events is not None
    assert stream.sse_events["end"]["required"] == ["tokens_out", "decode_ms", "finish_reason"]
    assert stream.sse_order == "started (metrics|token|result)* (end|error)"
    assert stream.body_schema is None
    assert not stream.body_required
    assert [o.operation_id for o in by_id.values() if o.until is not None] == []
    assert by_id["cancelTask"].req_ids == ("ORCH-3026",)


def test_an_operation_id_comes_once() -> None:
    """The same operationId in two contracts is an error."""
    with pytest.raises(ValueError, match="getIt"):
        contract.read_operations({"a": operation_document("/a"), "b": operation_document("/b")})


def test_a_route_comes_once() -> None:
    """The same method and path in two contracts is an error."""
    other = operation_document("/a", operation_id="getOther")
    with pytest.raises(ValueError, match="GET /a"):
        contract.read_operations({"a": operation_document("/a"), "b": other})


def test_rules_are_the_closed_list() -> None:
    """RULES is what the contract lists."""
    assert {"deadline", "cursor", "last_event_id", "body_syntax"} <= contract.RULES


# -- schemas
@pytest.mark.parametrize("value", [UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000"])
def test_uuid(value: str) -> None:
    """The canonical form is accepted."""
    assert contract.is_uuid(value)
    assert accepts({"type": "string", "format": "uuid"}, value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        UUID + "\n",
        "{" + UUID + "}",
        UUID.replace("-", ""),
        "urn:uuid:" + UUID,
        UUID[:-1] + "g",
        UUID[:-1] + "\u0661",
    ],
)
def test_not_a_uuid(value: str) -> None:
    """Other ways to write one, and what only looks like one, are not."""
    assert not contract.is_uuid(value)
    assert not accepts({"type": "string", "format": "uuid"}, value)


@pytest.mark.parametrize(("name", "bits"), [("int32", 31), ("int64", 63)])
def test_integer_formats_are_bounds(name: str, bits: int) -> None:
    """A format bounds an integer that has no bounds of its own."""
    schema = {"type": "integer", "format": name}
    assert accepts(schema, 2**bits - 1)
    assert accepts(schema, -(2**bits))
    assert not accepts(schema, 2**bits)
    assert not accepts(schema, -(2**bits) - 1)


def test_bounds_are_tightened_never_loosened() -> None:
    """A narrower bound stays, with its exclusiveness; a wider one gives way."""
    narrow = {"type": "integer", "format": "int32", "minimum": 1, "exclusiveMinimum": True, "maximum": 9}
    assert [value for value in range(-1, 12) if accepts(narrow, value)] == list(range(2, 10))
    wide = {"type": "integer", "format": "int32", "minimum": -(2**40), "maximum": 2**31, "exclusiveMaximum": True}
    assert accepts(wide, 2**31 - 1)
    assert accepts(wide, -(2**31))
    assert not accepts(wide, 2**31)
    assert not accepts(wide, -(2**31) - 1)


@pytest.mark.parametrize("value", [True, 1.5, "1", None])
def test_only_integers_are_integers(value: Any) -> None:
    """JSON's other values do not pass for integers."""
    assert not accepts({"type": "integer", "format": "int32"}, value)


def test_nullable() -> None:
    """null passes where the contract says so, also past an enum, and nowhere else."""
    assert accepts({"type": "string", "nullable": True}, None)
    assert accepts({"type": "string", "nullable": True, "enum": ["a"]}, None)
    assert not accepts({"type": "string", "nullable": True, "enum": ["a"]}, "b")
    assert not accepts({"type": "string"}, None)
    assert not accepts({"type": "string", "nullable": False}, None)


def test_only_what_constrains_is_kept() -> None:
    """Prose, examples and extensions go; properties that are named like keywords stay."""
    schema = {
        "type": "object",
        "description": "d",
        "example": {},
        "x-note": 1,
        "discriminator": {"propertyName": "k"},
        "additionalProperties": {"type": "string", "nullable": True},
        "properties": {"example": {"type": "integer", "title": "t"}, "x-y": {"type": "string", "default": "z"}},
        "allOf": [{"description": "d", "required": ["example"]}],
    }
    once = contract.to_json_schema(schema)
    assert once == {
        "type": "object",
        "additionalProperties": {"type": ["string", "null"]},
        "properties": {"example": {"type": "integer"}, "x-y": {"type": "string"}},
        "allOf": [{"required": ["example"]}],
    }
    assert contract.to_json_schema(once) == once
    assert schema["description"] == "d"


def component(name: str) -> dict[str, Any]:
    doc = contract.load("data" if name in contract.load("data")["components"]["schemas"] else "control")
    schema: dict[str, Any] = contract.dereference(doc, {"$ref": f"#/components/schemas/{name}"})
    return schema


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Name", ["home", "A.b_c-9", "x" * 64], ["", "-a", "a/b", "a\n", "x" * 65, "\u00e9", "a b"]),
        (
            "ModelRef",
            ["alias", "hf:a/b/c.gguf", "file:/m/caf\u00e9.gguf"],
            ["", "a b", "a\n", "a\x00", "a\u00a0b", "a\u2028"],
        ),
        ("SourceUrl", ["hf:a/b", "s3://b/k", "file:x"], ["alias", "http://a/b", "hf:", "ftp://x", "hf:a b"]),
        ("ArtifactId", ["0a" * 32], ["0A" * 32, "0a" * 31, "0a" * 32 + "\n"]),
        ("Digest", ["sha256:" + "0a" * 32], ["0a" * 32, "sha256:" + "0a" * 32 + "\n"]),
        ("DeviceMask", ["cpu", "gpu0,gpu1"], ["", "gpu0,", "gpu 0", "gpu0\n"]),
        ("DeadlineMs", [1, 86_400_000], [0, 86_400_001, 1.5]),
        ("Priority", ["interactive"], ["urgent", None]),
        ("NextCursor", [None, "abc"], ["", 7]),
        ("SSEResult", [{"index": 0, "embedding": [0.5]}, {"index": 1, "relevance_score": -3, "scale": "logit"}], [{}]),
        ("SSEMetrics", [{"queue_depth": 0, "on_time_probability": 1, "new": True}], [{"queue_depth": 0}]),
        ("ArtifactContent", ["", {"a": [1]}], [7, None, []]),
    ],
)
def test_shared_schema(name: str, good: list[Any], bad: list[Any]) -> None:
    """Shared schemas accept what they should and nothing near it."""
    validator = contract.compile_schema(component(name))
    assert [value for value in good if not validator.is_valid(value)] == []
    assert [value for value in bad if validator.is_valid(value)] == []
