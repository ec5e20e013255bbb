"""The contracts keep their own rules, and each check can fail.

A check is a function from a bundled contract to a list of findings. `CHECKS` runs on both contracts; `BROKEN` feeds
every check a contract with one fault and expects a finding.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV30SpecValidator

from orchestratord import contract

Doc = dict[str, Any]
Check = Callable[[Doc], list[str]]

FILES = Path(__file__).resolve().parents[2] / "contracts" / "openapi"
LAYER = {"MethodNotAllowed", "RequestTimeout", "UriTooLong", "HeadersTooLarge", "ConnectionLimit", "NotFound"}
INT_BOUNDS = {"int32": 2**31, "int64": 2**63}

# operationId: (contract, method, path, success statuses, statuses on top of those every such operation has)
SURFACE: dict[str, tuple[str, str, str, str, str]] = {
    "createTask": ("data", "POST", "/v1/tasks", "202", "409 429 503"),
    "listTasks": ("data", "GET", "/v1/tasks", "200", "400"),
    "getTask": ("data", "GET", "/v1/tasks/{id}", "200", ""),
    "streamTask": ("data", "GET", "/v1/tasks/{id}/stream", "200 204", "503"),
    "cancelTask": ("data", "POST", "/v1/tasks/{id}/cancel", "204", "503"),
    "getSession": ("data", "GET", "/v1/sessions/{id}", "200", ""),
    "deleteSession": ("data", "DELETE", "/v1/sessions/{id}", "204", "503"),
    "createCatalogModel": ("control", "POST", "/v1/catalog/models", "201", "409 503"),
    "listCatalogModels": ("control", "GET", "/v1/catalog/models", "200", "400"),
    "getCatalogModel": ("control", "GET", "/v1/catalog/models/{id}", "200", ""),
    "deleteCatalogModel": ("control", "DELETE", "/v1/catalog/models/{id}", "204", "409 503"),
    "verifyCatalogModel": ("control", "POST", "/v1/catalog/models/{id}/verify", "202", "503"),
    "setCatalogModelState": ("control", "POST", "/v1/catalog/models/{id}/state", "202", "503"),
    "drainPool": ("control", "POST", "/v1/pools/{id}/drain", "202", "409 503"),
    "reloadPool": ("control", "POST", "/v1/pools/{id}/reload", "202", "409 503"),
    "resumePool": ("control", "POST", "/v1/pools/{id}/resume", "202", "409 503"),
    "getPoolHealth": ("control", "GET", "/v1/pools/{id}/health", "200", ""),
    "listPools": ("control", "GET", "/v1/pools", "200", "400"),
    "getCapabilities": ("control", "GET", "/v1/capabilities", "200", ""),
    "createArtifact": ("control", "POST", "/v1/artifacts", "201", "503"),
    "listArtifacts": ("control", "GET", "/v1/artifacts", "200", "400 503"),
    "getArtifact": ("control", "GET", "/v1/artifacts/{id}", "200 304", "503"),
    "getMetrics": ("control", "GET", "/metrics", "200", ""),
    "getHealth": ("control", "GET", "/healthz", "200", ""),
    "getReadiness": ("control", "GET", "/readyz", "200", "503"),
    "getDocs": ("control", "GET", "/docs", "200", ""),
    "getContract": ("control", "GET", "/openapi/{name}", "200", ""),
}


# -- walking a contract ------------------------------------------------------------------------------------
def nodes(node: Any, at: str = "#") -> Iterator[tuple[str, Any]]:
    """Every dict outside of examples, with its place."""
    if isinstance(node, dict):
        yield at, node
        for key, value in node.items():
            if key not in {"example", "examples"}:
                yield from nodes(value, f"{at}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, f"{at}/{index}")


def parts(schema: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and every schema inside it."""
    if not isinstance(schema, dict):
        return
    yield at, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, f"{at}/properties/{name}")
    for key in ("items", "not", "additionalProperties"):
        yield from parts(schema.get(key), f"{at}/{key}")
    for key in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(key, [])):
            yield from parts(part, f"{at}/{key}/{index}")


def schemas(doc: Doc) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a contract, however deep."""
    for name, schema in doc["components"].get("schemas", {}).items():
        yield from parts(schema, f"#/components/schemas/{name}")
    for at, node in nodes({key: value for key, value in doc.items() if key != "components"}):
        yield from parts(node.get("schema"), f"{at}/schema")
    for kind in ("parameters", "headers", "responses"):
        for at, node in nodes(doc["components"].get(kind, {}), f"#/components/{kind}"):
            yield from parts(node.get("schema"), f"{at}/schema")


def raw_operations(doc: Doc) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(place, path item, operation), references not followed."""
    for path, item in doc["paths"].items():
        for method in ("get", "put", "post", "delete", "options", "head", "patch", "trace"):
            if method in item:
                yield f"{method} {path}", item, item[method]


def responses(doc: Doc) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(operationId, status, response) of all operations, then (name, "", response) of the shared ones."""
    for _, _, operation in raw_operations(doc):
        for status, response in operation["responses"].items():
            yield operation["operationId"], status, contract.resolve(doc, response)
    for name, response in doc["components"].get("responses", {}).items():
        yield name, "", response


def media_types(doc: Doc) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, node in nodes(doc):
        for media_type, media in node.get("content", {}).items():
            if isinstance(media, dict) and "/" in media_type:
                yield f"{at}/content/{media_type}", media


def example_values(holder: dict[str, Any]) -> list[Any]:
    alone = [holder["example"]] if "example" in holder else []
    return [*alone, *(example["value"] for example in holder.get("examples", {}).values())]


# -- checks ------------------------------------------------------------------------------------------------
def is_openapi(doc: Doc) -> list[str]:
    return [str(error.message) for error in OpenAPIV30SpecValidator(doc).iter_errors()]


def is_on_the_surface(doc: Doc) -> list[str]:
    """Only the operations of the table, each at its place."""
    found = []
    for o in contract.read_operations({"": doc}):
        _, method, path, _, _ = SURFACE.get(o.operation_id, ("", "", "", "", ""))
        if (o.method, o.path) != (method, path):
            found.append(f"{o.operation_id}: {o.method} {o.path} is not on the surface")
        if o.path.startswith("/v1/replicasets"):
            found.append(f"{o.path} must not be served")
    return found


def expected_statuses(o: contract.Operation) -> set[str]:
    _, _, _, success, besides = SURFACE[o.operation_id]
    expected = {"401", "403", "500", *success.split(), *besides.split()}
    places = {p["in"] for p in o.parameters}
    if "{id}" in o.path:
        expected |= {"400", "404"}
    if places & {"path", "query"}:
        expected |= {"400"}
    if o.body_schema is not None:
        expected |= {"400", "413", "415"}
    if o.method != "GET":
        expected |= {"503"}
    if o.until is not None:
        expected |= {"501"}
    return expected


def statuses_follow_the_rules(doc: Doc) -> list[str]:
    return [
        f"{o.operation_id}: declares {sorted(o.responses)}, expected {sorted(expected_statuses(o))}"
        for o in contract.read_operations({"": doc})
        if o.operation_id in SURFACE and set(o.responses) != expected_statuses(o)
    ]


def no_default_response(doc: Doc) -> list[str]:
    return [f"{name}: default response" for name, status, _ in responses(doc) if status == "default"]


def correlation_everywhere(doc: Doc) -> list[str]:
    found = []
    for name, status, response in responses(doc):
        header = contract.resolve(doc, response.get("headers", {}).get("X-Correlation-Id", {}))
        if header.get("required") is not True:
            found.append(f"{name} {status}: X-Correlation-Id is not required")
    return found


def errors_are_envelopes(doc: Doc) -> list[str]:
    found = []
    for name, status, response in responses(doc):
        content = response.get("content", {})
        if status in {"204", "304"} and content:
            found.append(f"{name} {status}: must not have content")
        if status and status < "400":
            continue
        schema = "Readiness" if (name, status) == ("getReadiness", "503") else "ErrorEnvelope"
        if list(content) != ["application/json"]:
            found.append(f"{name} {status}: only application/json is allowed")
        elif content["application/json"].get("schema") != {"$ref": f"#/components/schemas/{schema}"}:
            found.append(f"{name} {status}: not the {schema}")
    return found


def errors_are_shared(doc: Doc) -> list[str]:
    return [
        f"{operation['operationId']} {status}: not a shared response"
        for _, _, operation in raw_operations(doc)
        for status, response in operation["responses"].items()
        if status >= "400" and "$ref" not in response
        if (operation["operationId"], status) != ("getReadiness", "503")
    ]


def everything_is_bounded(doc: Doc) -> list[str]:
    found = []
    for at, schema in schemas(doc):
        kind = schema.get("type")
        if kind == "string":
            ok = bool({"enum", "maxLength"} & set(schema)) or schema.get("format") == "uuid"
        elif kind == "array":
            ok = {"items", "maxItems"} <= set(schema)
        elif kind == "integer":
            bound = INT_BOUNDS.get(schema.get("format", ""), 0)
            ok = {"minimum", "maximum"} <= set(schema) and -bound <= schema["minimum"] <= schema["maximum"] < bound
        elif kind == "object":
            ok = "additionalProperties" in schema and (
                schema["additionalProperties"] is False or "maxProperties" in schema
            )
            ok = ok and set(schema.get("required", [])) <= set(schema.get("properties", {}))
        else:
            ok = kind in {"number", "boolean"} or bool({"$ref", "oneOf", "allOf", "anyOf"} & set(schema))
        if not ok:
            found.append(f"{at}: {kind} without bounds")
    return found


def patterns_are_portable(doc: Doc) -> list[str]:
    found = []
    for at, schema in schemas(doc):
        pattern = schema.get("pattern")
        if pattern is None:
            continue
        if not pattern.startswith("^") or not pattern.endswith(r"(?![\s\S])"):
            found.append(f"{at}: pattern is not anchored at both ends")
        if re.search(r"\\[dDwWbB]", pattern):
            found.append(f"{at}: a short class matches other scripts somewhere")
    return found


def objects_are_not_compared(doc: Doc) -> list[str]:
    found = []
    for at, schema in schemas(doc):
        if schema.get("uniqueItems"):
            item = contract.dereference(doc, schema["items"])
            if item.get("type") not in {"string", "integer", "boolean"}:
                found.append(f"{at}: uniqueItems on objects")
    return found


def requirements_are_named(doc: Doc) -> list[str]:
    shape = re.compile(r"(ORCH|OC-[A-Z]+|HME|AUTH|SSE|ADAPT|HTU|OD)-[0-9]+")
    found = []
    for at, _, operation in raw_operations(doc):
        ids = operation.get("x-req-id")
        if not isinstance(ids, list) or not ids or len(set(ids)) != len(ids):
            found.append(f"{at}: x-req-id is not a list of different ids")
        else:
            found += [f"{at}: {i!r} is not a requirement id" for i in ids if not shape.fullmatch(i)]
    return found


def rules_are_known(doc: Doc) -> list[str]:
    found = []
    for at, _, operation in raw_operations(doc):
        if "x-rules" not in operation:
            found.append(f"{at}: no x-rules")
        rules = set(operation.get("x-rules", ()))
        parameters = {contract.resolve(doc, p)["name"] for p in operation.get("parameters", ())}
        found += [f"{at}: {rule!r} is not in the closed list" for rule in sorted(rules - contract.RULES)]
        for rule, needed in (
            ("body_syntax", "requestBody" in operation),
            ("cursor", "cursor" in parameters),
            ("last_event_id", "Last-Event-ID" in parameters),
        ):
            if (rule in rules) != needed:
                found.append(f"{at}: {rule} is {'missing' if needed else 'out of place'}")
    return found


def streams_say_their_events(doc: Doc) -> list[str]:
    found = []
    for o in contract.read_operations({"": doc}):
        streams = any("text/event-stream" in r.get("content", {}) for r in o.responses.values())
        if streams != (o.sse_events is not None) or streams != (o.sse_order is not None):
            found.append(f"{o.operation_id}: events and order belong to streams, and to all of them")
        elif set(re.findall(r"\w+", o.sse_order or "")) != set(o.sse_events or {}):
            found.append(f"{o.operation_id}: x-sse-order and x-sse-events name different events")
    return found


def examples_fit(doc: Doc) -> list[str]:
    holders = [*media_types(doc), *((at, n) for at, n in nodes(doc) if "in" in n and "name" in n), *schemas(doc)]
    found = []
    for at, holder in holders:
        values = example_values(holder)
        schema = holder.get("schema", holder)
        if values:
            validator = contract.compile_schema(contract.dereference(doc, schema))
            found += [f"{at}: {error.message}" for value in values for error in validator.iter_errors(value)]
    return found


def examples_are_there(doc: Doc) -> list[str]:
    found = []
    for at, _, operation in raw_operations(doc):
        media = operation.get("requestBody", {}).get("content", {}).values()
        found += [f"{at}: body without example" for m in media if not example_values(m)]
    for name, status, response in responses(doc):
        media = response.get("content", {}).get("application/json")
        if media is not None and not example_values(media):
            found.append(f"{name} {status}: response without example")
    return found


def operation_ids_are_camel_case(doc: Doc) -> list[str]:
    ids = [operation["operationId"] for _, _, operation in raw_operations(doc)]
    return [f"{i} is not camelCase" for i in ids if not re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", i)]


def parameters_are_plain(doc: Doc) -> list[str]:
    """Path parameters stand on the path and are called id; headers are strings; nothing comes twice."""
    found = []
    for o in contract.read_operations({"": doc}):
        keys = [(p["in"], p["name"].lower()) for p in o.parameters]
        if len(set(keys)) != len(keys):
            found.append(f"{o.operation_id}: a parameter comes twice")
        if {name for place, name in keys if place == "path"} != set(re.findall(r"{(\w+)}", o.path)):
            found.append(f"{o.operation_id}: path and path parameters differ")
        for p in o.parameters:
            if p["in"] == "path" and p["name"] != ("name" if o.operation_id == "getContract" else "id"):
                found.append(f"{o.operation_id}: call the path parameter id")
            if p["in"] == "header" and p["schema"].get("type") != "string":
                found.append(f"{o.operation_id}: {p['name']} must be a string")
            if p["in"] == "header" and p["name"] == "X-Correlation-Id":
                found.append(f"{o.operation_id}: X-Correlation-Id is never checked, so never declared")
    return found


def links_lead_somewhere(doc: Doc) -> list[str]:
    ids = {operation["operationId"] for _, _, operation in raw_operations(doc)}
    return [
        f"{name} {status}: link {link} leads nowhere"
        for name, status, response in responses(doc)
        for link, value in response.get("links", {}).items()
        if value.get("operationId") not in ids or not value.get("parameters")
    ]


def layer_answers_are_there(doc: Doc) -> list[str]:
    return [f"no shared response {name}" for name in sorted(LAYER - set(doc["components"].get("responses", {})))]


def no_template_braces(doc: Doc) -> list[str]:
    text = yaml.safe_dump(doc, width=10**9)
    return [f"{braces!r} somewhere" for braces in ("{{", "}}", "{%", "%}", "{#", "#}") if braces in text]


def every_token_is_asked_for(doc: Doc) -> list[str]:
    found = [] if doc.get("security") == [{"bearerAuth": []}] else ["no global security"]
    return found + [f"{at}: overrides security" for at, _, operation in raw_operations(doc) if "security" in operation]


CHECKS: tuple[Check, ...] = (
    is_openapi,
    is_on_the_surface,
    statuses_follow_the_rules,
    no_default_response,
    correlation_everywhere,
    errors_are_envelopes,
    errors_are_shared,
    everything_is_bounded,
    patterns_are_portable,
    objects_are_not_compared,
    requirements_are_named,
    rules_are_known,
    streams_say_their_events,
    examples_fit,
    examples_are_there,
    operation_ids_are_camel_case,
    parameters_are_plain,
    links_lead_somewhere,
    layer_answers_are_there,
    no_template_braces,
    every_token_is_asked_for,
)


# -- the contracts pass ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", contract.CONTRACTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_passes(check: Check, name: str) -> None:
    """Both contracts keep every rule."""
    assert check(contract.load(name)) == []


def test_every_check_is_explained() -> None:
    """With what it asks and why, beside the contracts."""
    told = re.findall(r"(?m)^\| `(\w+)` \| .+ \| .+ \|$", (FILES / "README.md").read_text("utf-8"))
    assert sorted(told) == sorted(check.__name__ for check in CHECKS)


def test_surface_is_complete() -> None:
    """Every operation of the table is declared, in its contract."""
    declared = {o.operation_id: (o.contract, o.method, o.path) for o in contract.operations()}
    assert declared == {name: entry[:3] for name, entry in SURFACE.items()}


def test_every_rule_is_used() -> None:
    """The closed list of rules has no member that no operation answers with."""
    assert set(contract.RULES) == {rule for o in contract.operations() for rule in o.rules}


def test_shared_parts_are_the_same_in_both() -> None:
    """A component with the same name is the same in both contracts."""
    data, control = (contract.load(name)["components"] for name in contract.CONTRACTS)
    for kind in data.keys() & control.keys():
        for name in data[kind].keys() & control[kind].keys():
            assert data[kind][name] == control[kind][name], f"{kind}/{name}"


def test_no_shared_part_is_unused() -> None:
    """components.yaml holds nothing that no contract reaches."""
    shared = yaml.safe_load((FILES / "components.yaml").read_text("utf-8"))["components"]
    for kind, section in shared.items():
        reached = {name for c in contract.CONTRACTS for name in contract.load(c)["components"].get(kind, {})}
        assert set(section) == reached, kind


@pytest.mark.parametrize("name", contract.CONTRACTS)
def test_own_components_are_aliases(name: str) -> None:
    """A contract defines no component of its own."""
    raw = yaml.safe_load((FILES / f"{name}.yaml").read_text("utf-8"))
    for kind, section in raw["components"].items():
        for part, value in section.items():
            assert value == {"$ref": f"components.yaml#/components/{kind}/{part}"}


def repeated_keys(text: str) -> list[str]:
    """YAML keys that stand twice in one mapping: the parser would keep the last in silence."""
    found = []
    pending = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            found += sorted({key for key in keys if keys.count(key) > 1})
            pending += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
    return found


@pytest.mark.parametrize("name", ["data", "control", "components"])
def test_no_key_comes_twice(name: str) -> None:
    """No mapping in the files has a key twice."""
    assert repeated_keys((FILES / f"{name}.yaml").read_text("utf-8")) == []
    assert repeated_keys("a: {b: 1, c: 2, b: 3}") == ["b"]


# -- each check can fail -----------------------------------------------------------------------------------
def _post(doc: Doc) -> dict[str, Any]:
    operation: dict[str, Any] = doc["paths"]["/v1/tasks"]["post"]
    return operation


def _envelope(doc: Doc) -> dict[str, Any]:
    schema: dict[str, Any] = doc["components"]["schemas"]["ErrorEnvelope"]
    return schema


def _properties(doc: Doc) -> dict[str, Any]:
    properties: dict[str, Any] = _envelope(doc)["properties"]
    return properties


def _move(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


_INLINE_ERROR = {
    "description": "x",
    "headers": {"X-Correlation-Id": {"$ref": "#/components/headers/X-Correlation-Id"}},
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Uuid"}}},
}
_PAGE = "/v1/tasks/{id}"
BROKEN: list[tuple[Check, Callable[[Doc], object]]] = [
    (is_openapi, lambda d: d.pop("info")),
    (is_openapi, lambda d: _post(d)["responses"]["202"].pop("description")),
    (is_on_the_surface, lambda d: d["paths"].update({"/v1/replicasets": d["paths"].pop("/v1/tasks")})),
    (is_on_the_surface, lambda d: _post(d).update(operationId="createJob")),
    (statuses_follow_the_rules, lambda d: _post(d)["responses"].pop("413")),
    (statuses_follow_the_rules, lambda d: _post(d)["responses"].pop("403")),
    (statuses_follow_the_rules, lambda d: d["paths"][_PAGE]["get"]["responses"].pop("404")),
    (statuses_follow_the_rules, lambda d: _post(d)["responses"].update({"418": _INLINE_ERROR})),
    (statuses_follow_the_rules, lambda d: _post(d).update({"x-until": "later"})),
    (no_default_response, lambda d: _post(d)["responses"].update(default=_INLINE_ERROR)),
    (correlation_everywhere, lambda d: _post(d)["responses"]["202"].pop("headers")),
    (correlation_everywhere, lambda d: d["components"]["headers"]["X-Correlation-Id"].update(required=False)),
    (errors_are_envelopes, lambda d: d["components"]["responses"].update(NotFound=_INLINE_ERROR)),
    (errors_are_envelopes, lambda d: d["components"]["responses"]["NotFound"].pop("content")),
    (errors_are_envelopes, lambda d: d["components"]["responses"]["NotFound"]["content"].update({"text/plain": {}})),
    (errors_are_envelopes, lambda d: _post(d)["responses"].update({"204": _INLINE_ERROR})),
    (errors_are_shared, lambda d: _post(d)["responses"].update({"400": _INLINE_ERROR})),
    (everything_is_bounded, lambda d: _properties(d)["message"].pop("maxLength")),
    (
        everything_is_bounded,
        lambda d: d["components"]["schemas"]["Sampling"]["properties"]["stop"].pop("maxItems"),
    ),
    (everything_is_bounded, lambda d: d["components"]["schemas"]["EventId"].pop("maximum")),
    (everything_is_bounded, lambda d: d["components"]["schemas"]["EventId"].pop("format")),
    (everything_is_bounded, lambda d: d["components"]["schemas"]["EventId"].update(maximum=2**63)),
    (everything_is_bounded, lambda d: _envelope(d).pop("additionalProperties")),
    (everything_is_bounded, lambda d: _envelope(d)["required"].append("nothing")),
    (everything_is_bounded, lambda d: d["components"]["schemas"]["SSEMetrics"].pop("maxProperties")),
    (everything_is_bounded, lambda d: d["components"]["parameters"]["Limit"]["schema"].pop("minimum")),
    (everything_is_bounded, lambda d: d["components"]["headers"]["Location"]["schema"].pop("maxLength")),
    (everything_is_bounded, lambda d: _properties(d)["code"].clear()),
    (patterns_are_portable, lambda d: d["components"]["schemas"]["Name"].update(pattern="^[a-z]+$")),
    (patterns_are_portable, lambda d: d["components"]["schemas"]["Name"].update(pattern=r"^\d+(?![\s\S])")),
    (
        objects_are_not_compared,
        lambda d: d["components"]["schemas"]["TaskList"]["properties"]["items"].update(uniqueItems=True),
    ),
    (requirements_are_named, lambda d: _post(d).pop("x-req-id")),
    (requirements_are_named, lambda d: _post(d).update({"x-req-id": "ORCH-2007"})),
    (requirements_are_named, lambda d: _post(d)["x-req-id"].append("ORCH-1..3")),
    (rules_are_known, lambda d: _post(d).pop("x-rules")),
    (rules_are_known, lambda d: _post(d)["x-rules"].append("mood")),
    (rules_are_known, lambda d: _post(d)["x-rules"].remove("body_syntax")),
    (rules_are_known, lambda d: _post(d)["x-rules"].append("cursor")),
    (streams_say_their_events, lambda d: d["paths"][_PAGE + "/stream"]["get"].pop("x-sse-order")),
    (streams_say_their_events, lambda d: d["paths"][_PAGE + "/stream"]["get"]["x-sse-events"].pop("result")),
    (streams_say_their_events, lambda d: _post(d).update({"x-sse-order": "a", "x-sse-events": {"a": {}}})),
    (
        examples_fit,
        lambda d: _move(
            _post(d)["requestBody"]["content"]["application/json"]["examples"]["chat"]["value"], "seed", "sede"
        ),
    ),
    (examples_fit, lambda d: d["components"]["parameters"]["TaskId"].update(example="7")),
    (examples_fit, lambda d: d["components"]["schemas"]["Uuid"].update(example="7")),
    (examples_are_there, lambda d: _post(d)["requestBody"]["content"]["application/json"].pop("examples")),
    (examples_are_there, lambda d: _post(d)["responses"]["202"]["content"]["application/json"].pop("examples")),
    (
        examples_are_there,
        lambda d: d["components"]["responses"]["Conflict"]["content"]["application/json"].pop("examples"),
    ),
    (operation_ids_are_camel_case, lambda d: _post(d).update(operationId="create_task")),
    (parameters_are_plain, lambda d: d["components"]["parameters"]["TaskId"].update(name="task_id")),
    (parameters_are_plain, lambda d: d["components"]["parameters"]["LastEventId"].update(schema={"type": "integer"})),
    (parameters_are_plain, lambda d: d["components"]["parameters"]["LastEventId"].update(name="X-Correlation-Id")),
    (
        parameters_are_plain,
        lambda d: d["paths"]["/v1/tasks"]["get"]["parameters"].append({"$ref": "#/components/parameters/Limit"}),
    ),
    (links_lead_somewhere, lambda d: _post(d)["responses"]["202"]["links"]["getTask"].update(operationId="no")),
    (layer_answers_are_there, lambda d: d["components"]["responses"].pop("UriTooLong")),
    (no_template_braces, lambda d: d["info"].update(description="Use {{ name }}.")),
    (every_token_is_asked_for, lambda d: d.pop("security")),
    (every_token_is_asked_for, lambda d: _post(d).update(security=[])),
]


@pytest.mark.parametrize(("check", "fault"), BROKEN, ids=[f"{i}-{c.__name__}" for i, (c, _) in enumerate(BROKEN)])
def test_check_finds_the_fault(check: Check, fault: Callable[[Doc], object]) -> None:
    """A contract with one fault does not pass."""
    doc = copy.deepcopy(contract.load("data"))
    fault(doc)
    assert check(doc)


def test_every_check_is_tried() -> None:
    """No check is without a contract that fails it."""
    assert {check for check, _ in BROKEN} == set(CHECKS)
