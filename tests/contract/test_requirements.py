"""The index of requirements: what is cited exists, what must hold is proven or deferred, and neither goes stale.

Evidence is the tag of a feature or scenario, or the docstring of a test function that names the id. A range such as
ABC-1..3 in a docstring cites its members and proves none: whoever proves one writes it out. A family such as ABC-10xx
cites nothing. A skipped or expectedly failing test proves nothing.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from orchestratord import contract

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
PENDING = "evidence pending"  # the work is there, a test that names it is not

_ID = r"(?:ORCH|OC-[A-Z]+|HME|AUTH|SSE|ADAPT|HTU|OD)-[0-9]+"
ID = re.compile(_ID)
CITATION = re.compile(rf"(?<![\w-])({_ID})(?:\.\.([0-9]+)|((?:/[0-9]+)+))?(?![\w])")


class Cited(NamedTuple):
    """The ids a text names one by one, and those it only spans in a range."""

    named: set[str]
    spanned: set[str]

    @property
    def all(self) -> set[str]:
        return self.named | self.spanned


def cited(text: str) -> Cited:
    """ABC-1 and ABC-1/2 name; ABC-1..3 spans; ABC-10xx says nothing."""
    found = Cited(set(), set())
    for match in CITATION.finditer(text):
        family, _, first = match[1].rpartition("-")
        if match[2]:
            found.spanned.update(f"{family}-{number}" for number in range(int(first), int(match[2]) + 1))
        else:
            found.named.update(f"{family}-{number}" for number in (first, *(match[3] or "").split("/")) if number)
    return found


# -- the index ---------------------------------------------------------------------------------------------
@cache
def catalogue() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load((REQUIREMENTS / "catalogue.yaml").read_text("utf-8"))
    return entries


def levels() -> dict[str, str]:
    return {entry["id"]: entry["level"] for entry in catalogue()}


def parse_deferred(text: str) -> list[tuple[str, str]]:
    """(id, reason) of each line. Raises ValueError for one that is neither that, nor a comment, nor empty."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.partition("  ")
        if not ID.fullmatch(name) or not reason.strip():
            raise ValueError(f"line {number}: {line!r} is not one id, two spaces and a reason")
        found.append((name, reason.strip()))
    return found


@cache
def deferred() -> dict[str, str]:
    return dict(parse_deferred((REQUIREMENTS / "deferred.txt").read_text("utf-8")))


# -- who cites what ----------------------------------------------------------------------------------------
def python_files() -> Iterator[Path]:
    for top in ("orchestratord", "tests", "features", "benchmarks"):
        yield from sorted((ROOT / top).rglob("*.py"))


@cache
def prose(path: Path) -> str:
    """Comments and docstrings of a module. Strings that merely look like ids say nothing."""
    text = path.read_text("utf-8")
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(docs + [token.string for token in tokens if token.type == tokenize.COMMENT])


def never_passes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(re.search(r"mark\.(skip|xfail)\b", ast.unparse(mark)) for mark in function.decorator_list)


def proofs_in(text: str) -> set[str]:
    """Ids named by docstrings of test functions."""
    return {
        name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not never_passes(node)
        for name in cited(ast.get_docstring(node) or "").named
    }


def tags_of(text: str) -> str:
    """The tag lines of a feature file."""
    return "\n".join(line for line in text.splitlines() if line.lstrip().startswith("@"))


@cache
def evidence() -> frozenset[str]:
    features = [path.read_text("utf-8") for path in sorted((ROOT / "features").rglob("*.feature"))]
    tests = [path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))]
    return frozenset[str]().union(*(cited(tags_of(f)).named for f in features), *map(proofs_in, tests))


@cache
def citations() -> dict[str, set[str]]:
    """Place -> ids it cites."""
    places = {f"operation {op.operation_id}": set(op.req_ids) for op in contract.operations()}
    texts = {path: prose(path) for path in python_files()}
    for folder, pattern in (("features", "*.feature"), ("specs", "*.md"), ("docs", "*.md")):
        texts |= {path: path.read_text("utf-8") for path in (ROOT / folder).rglob(pattern)}
    places |= {str(path.relative_to(ROOT)): cited(text).all for path, text in texts.items()}
    return {place: ids for place, ids in places.items() if ids}


# -- the rules ---------------------------------------------------------------------------------------------
def test_the_catalogue_is_well_formed() -> None:
    """Every entry has an id of its own, a level and one sentence of its own."""
    ids = [entry["id"] for entry in catalogue()]
    assert sorted({i for i in ids if ids.count(i) > 1}) == []
    texts = [entry["text"] for entry in catalogue()]
    assert sorted({t for t in texts if texts.count(t) > 1}) == []
    for entry in catalogue():
        assert entry.keys() == {"id", "level", "text"}, entry
        assert ID.fullmatch(entry["id"]), entry
        assert entry["level"] in ("must", "should", "may"), entry
        assert re.fullmatch(r"[A-Z][^.!?]*(?:\.\w[^.!?]*)*\.", entry["text"]), f"not one sentence: {entry}"


def test_what_is_cited_exists() -> None:
    """Contracts, feature tags, docstrings, comments, specs and docs name no requirement the catalogue lacks."""
    unknown = {place: missing for place, ids in citations().items() if (missing := sorted(ids - levels().keys()))}
    assert unknown == {}


def test_what_must_hold_is_proven_or_deferred() -> None:
    """A must without evidence and without a reason is an oversight."""
    unproven = [i for i, level in levels().items() if level == "must" and i not in evidence() and i not in deferred()]
    assert unproven == [], "name each in the docstring of the test that proves it, or defer it with a reason"


def test_what_is_proven_is_not_deferred() -> None:
    """deferred.txt is the list of what is missing: it shrinks when something is done."""
    stale = [f"{i}: remove it from deferred.txt" for i in deferred() if i in evidence()]
    assert stale == []


def test_deferred_is_well_formed() -> None:
    """One known id a line, once, with a reason."""
    lines = parse_deferred((REQUIREMENTS / "deferred.txt").read_text("utf-8"))
    ids = [name for name, _ in lines]
    assert sorted({i for i in ids if ids.count(i) > 1}) == []
    assert sorted(set(ids) - levels().keys()) == []


def test_the_specification_has_every_requirement_and_marks_those_to_come() -> None:
    """In specs/00, `(ID, deferred)` stands exactly where deferred.txt has a reason other than missing evidence."""
    text = (ROOT / "specs" / "00_orchestratord.md").read_text("utf-8")
    assert sorted(levels().keys() - cited(text).named) == []
    to_come = {i for i, reason in deferred().items() if not reason.startswith(PENDING)}
    marked = {i for group in re.findall(r"\(([^()]*\bdeferred)\)", text) for i in cited(group).named}
    assert sorted(marked ^ to_come) == []


# -- and each of them can fail -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "named", "spanned"),
    [
        ("see ORCH-2007, OC-CTRL-2011.", {"ORCH-2007", "OC-CTRL-2011"}, set()),
        ("(ORCH-3027/3028)", {"ORCH-3027", "ORCH-3028"}, set()),
        ("SSE-1001..1003: all", set(), {"SSE-1001", "SSE-1002", "SSE-1003"}),
        ("ORCH-39xx, OC-POOL-30xx and OC-ADAPT-5xxx", set(), set()),
        ("@portable @AUTH-1001 @wip", {"AUTH-1001"}, set()),
        ("RFC-2119, XORCH-2007, ORCH-2007a", set(), set()),
    ],
)
def test_a_citation_is_read_as_meant(text: str, named: set[str], spanned: set[str]) -> None:
    """Single ids, pairs, ranges, families, and what only looks like an id."""
    assert cited(text) == (named, spanned)


def test_only_docstrings_of_tests_that_run_are_evidence() -> None:
    """Strings, comments, helpers, ranges and skipped tests prove nothing."""
    source = '''
"""OD-1 in a module."""
def helper():
    """OD-2."""
def test_it():
    """OD-3 and OD-4..6."""
    text = "OD-7"  # OD-8
@pytest.mark.skip(reason="later")
def test_later():
    """OD-9."""
class TestGroup:
    async def test_method(self):
        """OD-10."""
'''
    assert proofs_in(source) == {"OD-3", "OD-10"}


def test_only_tag_lines_of_a_feature_are_evidence() -> None:
    """An id in a step or a description is talk."""
    feature = "@OD-1\nFeature: f OD-2\n  @OD-3 @portable\n  Scenario: s\n    Given OD-4\n"
    assert cited(tags_of(feature)).named == {"OD-1", "OD-3"}


@pytest.mark.parametrize("line", ["ORCH-1..3  a range", "ORCH-30xx  a family", "ORCH-1", "ORCH-1 one space", "later"])
def test_a_deferred_line_names_one_requirement_and_a_reason(line: str) -> None:
    """Ranges, families and missing reasons are refused."""
    with pytest.raises(ValueError, match="line 2"):
        parse_deferred(f"# comment\n{line}\n")
