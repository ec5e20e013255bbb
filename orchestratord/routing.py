"""Which operation a request is for: exact paths by dictionary, all others by one regular expression.

No redirects, no HEAD but where it is declared, and `Allow` names every method of the path.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

from orchestratord.wire.errors import HttpError

T = TypeVar("T")
_PARAMETER = re.compile(r"\{(\w+)\}")
_NONE: dict[str, str] = {}  # parameters of an exact path; nobody changes them


class Routes(Generic[T]):
    """Path and method -> whatever was added for them."""

    def __init__(self) -> None:
        self._static: dict[str, dict[str, T]] = {}
        self._dynamic: dict[str, tuple[tuple[str, ...], dict[str, T]]] = {}  # template -> names of its parameters
        self._places: list[tuple[int, tuple[str, ...], dict[str, T]]] = []  # by the groups of `_pattern`
        self._pattern = re.compile(r"(?!)")

    def add(self, method: str, path: str, target: T) -> None:
        if "{" not in path:
            self._static.setdefault(path, {})[method] = target
            return
        names = tuple(_PARAMETER.findall(path))
        self._dynamic.setdefault(path, (names, {}))[1][method] = target
        group, parts, self._places = 1, [], []
        for template, (names, methods) in self._dynamic.items():
            parts.append("(" + _PARAMETER.sub("([^/]+)", template) + ")")
            self._places += [(group, names, methods)] + [(0, (), {})] * len(names)
            group += 1 + len(names)
        self._pattern = re.compile("|".join(parts))

    def find(self, scope: dict[str, Any]) -> tuple[T, dict[str, str]]:
        """What was added, and the path's parameters. Raises HttpError NOT_FOUND or METHOD_NOT_ALLOWED."""
        path, raw = scope["path"], scope["raw_path"]
        if b"%" in raw and b"%2f" in raw.lower():
            path = ""  # a decoded slash would let a path mean something else here than to a proxy in front
        methods, params = self._static.get(path), _NONE
        if methods is None:
            methods, params = self._match(path)
        target = methods.get(scope["method"])
        if target is None:
            allow = ", ".join(sorted(methods))
            raise HttpError("METHOD_NOT_ALLOWED", f"Use {allow} here.", headers=[(b"allow", allow.encode())])
        return target, params

    def _match(self, path: str) -> tuple[dict[str, T], dict[str, str]]:
        match = self._pattern.fullmatch(path)
        if match is None or match.lastindex is None:
            raise HttpError("NOT_FOUND", "No operation has this path. GET /docs lists what is served.")
        group, names, methods = self._places[match.lastindex - 1]
        return methods, dict(zip(names, match.groups()[group:], strict=False))
