"""The reference page: everything the contracts have is on it, and every link on it leads to something."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

import pytest

from orchestratord import contract
from orchestratord.wire.docs import docs_page

PAGE = docs_page().decode()


class Balance(HTMLParser):
    """Open elements; those that are never closed in HTML do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("operation", contract.operations(), ids=lambda operation: operation.operation_id)
def test_an_operation_is_there_with_all_it_has(operation: contract.Operation) -> None:
    """Method, path, parameters, answers, headers, events and rules."""
    block = re.search(rf"<details id={operation.operation_id}>.*?</details>", PAGE, re.DOTALL)
    assert block is not None
    headers = {name for response in operation.responses.values() for name in response.get("headers", {})}
    wanted = [f"{operation.method} {operation.path}", *(p["name"] for p in operation.parameters), *operation.responses]
    for text in (*wanted, *headers, *(operation.sse_events or ()), *operation.rules):
        assert escape(text) in block[0], text


def test_links_lead_somewhere() -> None:
    ids = set(re.findall(r"id=([\w-]+)", PAGE))
    for target in re.findall(r"href='#([^']+)'", PAGE):
        assert target in ids
    files = re.findall(r"href=/openapi/([\w.]+)", PAGE)
    (operation,) = (op for op in contract.operations() if op.operation_id == "getContract")
    assert sorted(files) == sorted(operation.parameters[0]["schema"]["enum"])


def test_the_page_is_well_formed() -> None:
    parser = Balance()
    parser.feed(PAGE)
    assert parser.open == []
