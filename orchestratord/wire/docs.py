"""The reference page at /docs: made from the contracts, without scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from functools import cache
from html import escape

from orchestratord import contract

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem}"
    "details{border-top:1px solid #8884;padding:.5rem 0}summary{cursor:pointer}"
    "table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
)


@cache
def docs_page() -> bytes:
    """HTML, UTF-8."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>orchestratord API {escape(contract.api_version())}</title><style>{_STYLE}</style>",
        f"<h1>orchestratord API {escape(contract.api_version())}</h1>",
        "<p>The machine-readable contracts: <a href=/openapi/data.json>data.json</a>, "
        "<a href=/openapi/control.json>control.json</a>.</p>",
    ]
    for name in contract.CONTRACTS:
        document = contract.load(name)
        parts.append(f"<h2>{escape(document['info']['title'])}</h2>")
        for path, item in document["paths"].items():
            parts += [_operation(path, method, raw) for method, raw in item.items() if "operationId" in raw]
    return "".join(parts).encode()


def _operation(path: str, method: str, raw: dict[str, object]) -> str:
    responses = raw["responses"]
    assert isinstance(responses, dict)
    rows = "".join(f"<tr><td><code>{escape(status)}</code></td></tr>" for status in sorted(responses))
    summary = escape(str(raw.get("summary", raw["operationId"])))
    text = escape(str(raw.get("description", "")))
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> {summary}</summary>"
        f"<p>{text}</p><table>{rows}</table></details>"
    )
