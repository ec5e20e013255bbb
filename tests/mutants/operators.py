"""Faults drawn at random: small changes of meaning in one expression of one function.

A function's place in the draw and the fault in it depend on the seed, its name and its own text, so that a change
elsewhere moves neither: what was judged once stays judged.
"""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PLACES = ("domain", "wire", "services")  # of the package: where decisions are made
LEFT_OUT = {"docs.py", "narration.py", "__init__.py"}  # prose
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
NOT_ENTERED = ast.Assert | ast.JoinedStr | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Drawn:
    """One fault: where (lines of the statement, from 1), the line as it was and as it is now, and the diff."""

    name: str
    path: str
    first: int
    last: int
    was: str
    now: str
    diff: str


def swapped(node: ast.AST) -> ast.expr | None:
    """The expression with another meaning; None for one we have no fault for."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op, *others]) if type(op) in SWAPS:
            new.ops = [SWAPS[type(op)](), *others]  # type: ignore[list-item]
        case ast.BoolOp(op=op):
            new.op = SWAPS[type(op)]()  # type: ignore[assignment]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in SWAPS and not _text(left) and not _text(right):
            new.op = SWAPS[type(op)]()  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int()):
            new.value += 1  # type: ignore[operator]
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            new.func.id = NAMES[name]  # type: ignore[attr-defined]
        case _:
            return None
    assert isinstance(new, ast.expr)
    return new


def _text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    )


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Depth first, without annotations, assertions, prose and what is defined inside."""
    if isinstance(node, ast.expr):
        yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name != "annotation" and not isinstance(child, NOT_ENTERED | ast.stmt):
                yield from _expressions(child)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement at any depth of one function."""
    for statement in body:
        if isinstance(statement, NOT_ENTERED):
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, name, []))
        for part in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
            yield from _statements(part.body)


def _functions(node: ast.AST, above: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{above}.{child.name}"
            if isinstance(child, Function):
                yield name, child
            yield from _functions(child, name)
        else:
            yield from _functions(child, above)


def faults(root: Path) -> Iterator[tuple[str, list[Drawn]]]:
    """Every function of the places that has any, by name, and its faults."""
    for place in PLACES:
        for path in sorted((root / "orchestratord" / place).glob("*.py")):
            if path.name in LEFT_OUT:
                continue
            text = path.read_text("utf-8")
            for name, function in _functions(ast.parse(text), f"{place}.{path.stem}"):
                found = [
                    _fault(name, path.relative_to(root).as_posix(), text, statement, node, new)
                    for statement in _statements(function.body)
                    for node in _expressions(statement)
                    if (new := swapped(node)) is not None
                ]
                if found:
                    yield name, found


def _fault(name: str, path: str, text: str, statement: ast.stmt, node: ast.expr, new: ast.expr) -> Drawn:
    """Only the expression is written anew; all else stays as it is."""
    lines = text.splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    head = lines[node.lineno - 1].encode()[: node.col_offset].decode()
    tail = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    told = ast.unparse(new)
    told = told if isinstance(new, ast.Constant | ast.Name | ast.Call | ast.Attribute) else f"({told})"
    after = [*lines[: node.lineno - 1], head + told + tail, *lines[node.end_lineno :]]
    return Drawn(
        name,
        path,
        statement.lineno,
        node.end_lineno,
        "".join(lines[node.lineno - 1 : node.end_lineno]).strip(),
        (head + told + tail).strip(),
        "".join(difflib.unified_diff(lines, after, f"a/{path}", f"b/{path}")),
    )


def draw(root: Path, seed: int) -> Iterator[Drawn]:
    """Faults without end, at most one in a function; take as many as you need."""

    def rank(text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8], "big")

    for name, found in sorted(faults(root), key=lambda each: rank(each[0])):
        yield found[rank(name + " fault") % len(found)]
