"""Loads the contracts and says what is in them; knows nothing of HTTP servers or handlers.

The contracts travel in the wheel; in a checkout they are read from `contracts/openapi`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

CONTRACTS = ("data", "control")
_SHARED = "components.yaml"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_NOT_CHECKED = {"nullable", "discriminator", "example", "examples", "title", "description", "default"}
_NOT_CHECKED |= {"deprecated", "readOnly", "writeOnly", "xml", "externalDocs"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with every reference followed. Users must not change what it holds."""

    operation_id: str
    method: str
    path: str
    contract: str
    parameters: tuple[dict[str, Any], ...]
    body_schema: dict[str, Any] | None
    body_required: bool
    responses: dict[str, dict[str, Any]]
    until: str | None
    req_ids: tuple[str, ...]
    rules: tuple[str, ...]
    sse_events: dict[str, dict[str, Any]] | None
    sse_order: str | None


def _read(name: str) -> dict[str, Any]:
    directory: Traversable = files("orchestratord") / "_contracts"
    if not directory.is_dir():
        directory = Path(__file__).resolve().parent.parent / "contracts" / "openapi"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load((directory / name).read_text("utf-8"), loader)  # noqa: S506 - safe either way
    return document


def bundle_document(document: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with all it reaches in `shared` pulled in, every reference local."""
    found: dict[str, dict[str, Any]] = {}

    def local(node: Any) -> Any:
        if isinstance(node, list):
            return [local(item) for item in node]
        if isinstance(node, dict):
            return {key: target(value) if key == "$ref" else local(value) for key, value in node.items()}
        return node

    def target(ref: str) -> str:
        ref = ref.removeprefix(_SHARED)
        _, _, kind, name = ref.split("/")  # ValueError: refers to something inside a component
        if name not in found.setdefault(kind, {}):
            found[kind][name] = None  # ends a component that reaches itself
            found[kind][name] = local(_lookup(shared, ref))
        return ref

    bundled = {key: local(value) for key, value in document.items() if key != "components"}
    local(document.get("components"))  # only aliases: names to pull in though no operation uses them
    return {**bundled, "components": found}


@cache
def _documents() -> dict[str, dict[str, Any]]:
    shared = _read(_SHARED)
    return {name: bundle_document(_read(f"{name}.yaml"), shared) for name in CONTRACTS}


def load(name: str) -> dict[str, Any]:
    """One contract as a self-contained document. Callers must not change it: see `bundle`."""
    if name not in CONTRACTS:
        raise ValueError(f"there is no contract {name!r}")
    return _documents()[name]


@cache
def as_yaml(name: str) -> bytes:
    """One contract as a self-contained YAML document, UTF-8."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return bytes(yaml.dump(load(name), Dumper=dumper, sort_keys=False, allow_unicode=True, encoding="utf-8"))


def bundle(name: str) -> dict[str, Any]:
    """A copy of one contract that the caller may change."""
    return copy.deepcopy(load(name))


def api_version() -> str:
    """`info.version` of the contracts. Raises ValueError when they differ."""
    versions = {load(name)["info"]["version"] for name in CONTRACTS}
    if len(versions) != 1:
        raise ValueError(f"the contracts differ in version: {sorted(versions)}")
    return str(versions.pop())


def _lookup(doc: Mapping[str, Any], ref: str) -> Any:
    node: Any = doc
    for part in ref.removeprefix("#/").split("/"):
        if not isinstance(node, dict) or part not in node:
            raise ValueError(f"nothing is at {ref}")
        node = node[part]
    return node


def resolve(doc: Mapping[str, Any], node: Any, _open: tuple[str, ...] = ()) -> Any:
    """What a node refers to, or the node. Raises ValueError when it only refers to itself."""
    if not isinstance(node, dict) or "$ref" not in node:
        return node
    if node["$ref"] in _open:
        raise ValueError(f"{node['$ref']} refers to itself")
    return resolve(doc, _lookup(doc, node["$ref"]), (*_open, node["$ref"]))


def dereference(
    doc: Mapping[str, Any], schema: Any, _open: tuple[str, ...] = (), *, shared: dict[str, Any] | None = None
) -> Any:
    """A deep copy without references. Raises ValueError when it would never end.

    With `shared`, what a reference leads to is copied once, into it, and is the same object wherever it is used.
    """
    if isinstance(schema, list):
        return [dereference(doc, item, _open, shared=shared) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" not in schema:
        return {key: dereference(doc, value, _open, shared=shared) for key, value in schema.items()}
    ref = schema["$ref"]
    if ref in _open:
        raise ValueError(f"{ref} contains itself")
    if shared is None:
        return dereference(doc, _lookup(doc, ref), (*_open, ref))
    if ref not in shared:
        shared[ref] = dereference(doc, _lookup(doc, ref), (*_open, ref), shared=shared)
    return shared[ref]


def read_operations(documents: Mapping[str, Mapping[str, Any]]) -> tuple[Operation, ...]:
    """Every operation. Raises ValueError when an operationId, or a method on a path, comes twice."""
    shared: dict[str, dict[str, Any]] = {contract: {} for contract in documents}
    found = [
        _operation(contract, path, method, dereference(doc, item, shared=shared[contract]))
        for contract, doc in documents.items()
        for path, item in doc["paths"].items()
        for method in _METHODS
        if method in item
    ]
    keys = [key for operation in found for key in (operation.operation_id, f"{operation.method} {operation.path}")]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"declared more than once: {', '.join(twice)}")
    return tuple(found)


def _operation(contract: str, path: str, method: str, item: Mapping[str, Any]) -> Operation:
    raw = item[method]
    body = raw.get("requestBody", {})
    return Operation(
        operation_id=raw["operationId"],
        method=method.upper(),
        path=path,
        contract=contract,
        parameters=(*item.get("parameters", ()), *raw.get("parameters", ())),
        body_schema=body.get("content", {}).get("application/json", {}).get("schema"),
        body_required=bool(body.get("required", False)),
        responses=raw["responses"],
        until=raw.get("x-until"),
        req_ids=tuple(raw.get("x-req-id", ())),
        rules=tuple(raw.get("x-rules", ())),
        sse_events=raw.get("x-sse-events"),
        sse_order=raw.get("x-sse-order"),
    )


@cache
def operations() -> tuple[Operation, ...]:
    """Every operation of every contract."""
    return read_operations({name: load(name) for name in CONTRACTS})


def to_json_schema(schema: Any) -> Any:
    """A schema without references as JSON Schema draft 4."""
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if key not in _NOT_CHECKED and not key.startswith("x-")}
    for key in out.keys() & {"items", "not", "additionalProperties"}:
        out[key] = to_json_schema(out[key])
    for key in out.keys() & {"allOf", "anyOf", "oneOf"}:
        out[key] = [to_json_schema(part) for part in out[key]]
    if "properties" in out:
        out["properties"] = {name: to_json_schema(part) for name, part in out["properties"].items()}
    if out.get("format") in _BOUNDS:
        low, high = _BOUNDS[out.pop("format")]
        if out.get("minimum", low - 1) < low:
            out = {**out, "minimum": low, "exclusiveMinimum": False}
        if out.get("maximum", high + 1) > high:
            out = {**out, "maximum": high, "exclusiveMaximum": False}
    if schema.get("nullable") is True and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
        if None not in out.get("enum", [None]):
            out["enum"] = [*out["enum"], None]
    return out


def is_uuid(value: str) -> bool:
    """Whether this is a UUID in its 8-4-4-4-12 form and nothing else."""
    return _UUID.fullmatch(value) is not None


FORMATS: dict[str, Callable[[str], bool]] = {"uuid": is_uuid}


def compile_schema(schema: Mapping[str, Any]) -> jsonschema_rs.Draft4Validator:
    """A fast validator of an OpenAPI schema without references. Its messages never quote a value: a prompt is one."""
    return jsonschema_rs.Draft4Validator(
        to_json_schema(schema), validate_formats=True, formats=FORMATS, mask="the value"
    )


def compile_quick(schema: Mapping[str, Any]) -> jsonschema_rs.Draft4Validator:
    """Says whether a value is valid in half the time `compile_schema` takes, and has no good word for why it is not.

    What Python would be asked for each time, whether a text is a UUID, is a pattern here.
    """

    def patterned(node: Any) -> Any:
        if isinstance(node, list):
            return [patterned(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("format") == "uuid" and "pattern" not in node:
            return {**{key: value for key, value in node.items() if key != "format"}, "pattern": f"^{_UUID.pattern}$"}
        return {key: patterned(value) for key, value in node.items()}

    return jsonschema_rs.Draft4Validator(patterned(to_json_schema(schema)), validate_formats=True, formats=FORMATS)


RULES: frozenset[str] = frozenset(load("data")["components"]["schemas"]["Rule"]["enum"])
