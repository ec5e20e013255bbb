"""The reference page at /docs: made from the contracts, without scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from typing import Any

from orchestratord import contract

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem}h4{margin:.8rem 0 .2rem}"
    "details{border-top:1px solid #8884;padding:.5rem 0}summary{cursor:pointer}"
    "table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}pre{overflow:auto}"
)
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "default")


@cache
def docs_page() -> bytes:
    """HTML, UTF-8."""
    version = escape(contract.api_version())
    files = [f"{name}.{kind}" for name in contract.CONTRACTS for kind in ("json", "yaml")]
    links = ", ".join(f"<a href=/openapi/{name}>{name}</a>" for name in files)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>orchestratord API {version}</title><style>{_STYLE}</style>",
        f"<h1>orchestratord API {version}</h1><p>The contracts as files: {links}.</p>",
    ]
    for name in contract.CONTRACTS:
        document = contract.load(name)
        info = document["info"]
        parts.append(f"<h2>{escape(info['title'])}</h2><pre>{escape(info['description'])}</pre>")
        for operation in contract.operations():
            if operation.contract == name:
                raw = document["paths"][operation.path][operation.method.lower()]
                parts += _operation(document, operation, raw)
        parts.append(f"<h3>Shapes of the {name} contract</h3>")
        for shape, schema in sorted(document["components"]["schemas"].items()):
            parts.append(f"<details id={name}-{shape}><summary><code>{shape}</code></summary>")
            parts += [*_schema(name, schema), "</details>"]
    return "".join(parts).encode()


def _operation(document: Mapping[str, Any], operation: contract.Operation, raw: Mapping[str, Any]) -> Iterator[str]:
    summary = escape(raw.get("summary", operation.operation_id))
    yield f"<details id={operation.operation_id}><summary><code>{operation.method} {escape(operation.path)}</code> "
    yield f"{summary}</summary><p>{escape(raw.get('description', ''))}</p><p><code>{operation.operation_id}</code></p>"
    name = operation.contract
    if operation.parameters:
        rows = [(p["name"], p["in"], p.get("description", ""), _kind(name, p["schema"])) for p in operation.parameters]
        yield "<h4>Parameters</h4>" + _table([[f"<code>{n}</code>", i, escape(d), k] for n, i, d, k in rows])
    body = raw.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        yield f"<h4>Body</h4><p>{_kind(name, body['schema'])}</p>"
    yield "<h4>Answers</h4>"
    answers = {status: contract.resolve(document, answer) for status, answer in raw["responses"].items()}
    yield _table([[status, escape(a["description"]), _carried(name, a)] for status, a in sorted(answers.items())])
    if operation.sse_events:
        yield f"<h4>Events</h4><p><code>{escape(operation.sse_order or '')}</code></p>"
        events = raw["x-sse-events"].items()
        yield _table([[f"<code>{event}</code>", _kind(name, schema)] for event, schema in events])
    if operation.rules:
        yield f"<h4>Rules of a 400</h4><p>{', '.join(operation.rules)}</p>"
    yield "</details>"


def _carried(name: str, answer: Mapping[str, Any]) -> str:
    """Media types with their shapes, then headers."""
    parts = [
        f"{media} {_kind(name, each['schema']) if each else ''}" for media, each in answer.get("content", {}).items()
    ]
    return "; ".join([*parts, *map(escape, answer.get("headers", {}))])


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    rows = [[f"<code>{key}</code>", "required" * (key in required), _kind(name, s), _text(s)] for key, s in fields]
    yield _table(rows) if rows else f"<p>{_kind(name, schema)}</p>"


def _text(schema: Mapping[str, Any]) -> str:
    return escape(schema.get("description", ""))


def _kind(name: str, schema: Mapping[str, Any]) -> str:
    """What a value is, in one line."""
    if "$ref" in schema:
        shape = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{name}-{shape}'>{shape}</a>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "oneOf" in schema:
        return " or ".join(_kind(name, part) for part in schema["oneOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(name, schema['items'])}"
    bounds = [f"{word} <code>{escape(str(schema[word]))}</code>" for word in _BOUNDS if word in schema]
    return ", ".join([str(schema.get("format", schema.get("type", "anything"))), *bounds])


def _table(rows: list[list[str]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
