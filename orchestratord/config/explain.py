"""What is wrong with a configuration, in words: where, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from orchestratord.config.settings import Settings

_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$(?P<path>[^`]*)`)?")


def explain(message: str, path: str | Path | None) -> str:
    """msgspec's message with the file in front and the field that was probably meant behind."""
    where = f"{path}: " if path is not None else ""
    found = _UNKNOWN.search(message)
    if not found:
        return f"{where}{message}"
    known = _fields_at(found["path"] or "")
    close = difflib.get_close_matches(found["field"], known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Known here: {', '.join(sorted(known))}."
    place = (found["path"] or "").lstrip(".")
    return f"{where}unknown setting {found['field']!r}{' in ' + place if place else ''}.{hint}"


def _fields_at(path: str) -> list[str]:
    kind: Any = Settings
    for step in re.findall(r"\.(\w+)|\[(?:\d+|\.\.\.)\]", path):
        if step:
            kind = _struct_in(msgspec.structs.fields(kind), step)
            if kind is None:
                return []
    return list(kind.__struct_fields__)


def _struct_in(fields: tuple[Any, ...], name: str) -> Any:
    declared = next((f.type for f in fields if f.name == name), None)
    pending = [declared]
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
        pending.extend(getattr(candidate, "__args__", ()))
    return None
