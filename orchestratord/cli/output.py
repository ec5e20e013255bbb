"""How things are said: to people on a terminal, or as JSON for scripts."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """What a daemon or an engine said, without what could steer a terminal."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def complain(text: str, code: int) -> int:
    print(f"orchestratord: {harmless(text)}", file=sys.stderr)
    return code


def show(arguments: argparse.Namespace, answer: Any, text: Callable[[], str]) -> int:
    """The daemon's answer, as JSON or as people read it."""
    print(json.dumps(answer, indent=2, ensure_ascii=False) if arguments.json else harmless(text()))
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as what is in them."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
