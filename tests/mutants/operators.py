"""Faults drawn at random, the same ones for the same seed and source: small changes of meaning in one expression."""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator
from pathlib import Path

# Where decisions are made, and the tests of that.
PLACES = {
    "orchestratord/domain": ("tests/domain",),
    "orchestratord/wire": ("tests/wire", "tests/http/test_errors.py"),
    "orchestratord/services": ("tests/services", "tests/http/test_streams.py"),
}
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


class _Nth(ast.NodeTransformer):
    """Changes the node that comes as number `target`; counts them all."""

    def __init__(self, target: int = -1) -> None:
        self.target = target
        self.seen = 0

    def _mine(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.target

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node  # an invariant is no behaviour

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if type(node.ops[0]) in SWAPS and self._mine():
            node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._mine():
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        numeric = not any(
            isinstance(part, ast.JoinedStr | ast.Constant) and not _number(part) for part in (node.left, node.right)
        )
        if type(node.op) in SWAPS and numeric and self._mine():
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not) and self._mine():
            return node.operand
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            return ast.Constant(not node.value) if self._mine() else node
        if isinstance(node.value, int) and self._mine():
            return ast.Constant(node.value + 1)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in NAMES and self._mine():
            node.func.id = NAMES[node.func.id]
        return self.generic_visit(node)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def draw(root: Path, count: int, seed: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """(name, unified diff, tests) of so many faults, at most one in a function."""
    chance = random.Random(seed)
    sites = []
    for place, tests in PLACES.items():
        for path in sorted((root / place).glob("*.py")):
            if path.name in LEFT_OUT:
                continue
            for number, _ in enumerate(_functions(ast.parse(path.read_text("utf-8")))):
                sites.append((path, number, tests))
    chance.shuffle(sites)
    found = []
    for path, number, tests in sites:
        if len(found) == count:
            break
        diff = _mutated(root, path, number, chance)
        if diff is not None:
            found.append((f"g{len(found):02}-{path.stem}", diff, tests))
    return found


def _mutated(root: Path, path: Path, number: int, chance: random.Random) -> str | None:
    """The diff of one fault in a function; None when it has nothing to change."""
    text = path.read_text("utf-8")
    function = list(_functions(ast.parse(text)))[number]
    lines = text.splitlines(keepends=True)
    counter = _Nth()
    for statement in function.body:
        counter.visit(statement)
    if not counter.seen:
        return None
    changer = _Nth(chance.randrange(counter.seen))
    fresh = list(_functions(ast.parse(text)))[number]
    for old, statement in zip(function.body, fresh.body, strict=True):
        before = changer.seen
        new = changer.visit(statement)
        if before <= changer.target < changer.seen:
            indent = " " * old.col_offset
            told = "".join(f"{indent}{line}\n" for line in ast.unparse(ast.fix_missing_locations(new)).splitlines())
            assert old.end_lineno is not None
            after = [*lines[: old.lineno - 1], *told.splitlines(keepends=True), *lines[old.end_lineno :]]
            name = path.relative_to(root).as_posix()
            return "".join(difflib.unified_diff(lines, after, f"a/{name}", f"b/{name}"))
    return None
