"""Log records as lines: JSON, or readable on a terminal. One line per record, whatever a field contains."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

Record = dict[str, Any]
Sink = Callable[[Record], None]


def make_sink(stream: TextIO | None = None, *, readable: bool | None = None) -> Sink:
    """What takes records to `stream` (stderr); readable for people if that is a terminal, unless told otherwise."""
    stream = stream or sys.stderr
    if readable is None:
        readable = stream.isatty()
    render = _console(colors=stream.isatty()) if readable else _json

    def sink(record: Record) -> None:
        stream.write(render(record))
        stream.flush()

    return sink


def stamp() -> datetime:
    """Of a record: now, in UTC."""
    return datetime.now(UTC)


def _json(record: Record) -> str:
    try:
        return orjson.dumps(record, default=repr, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode()
    except TypeError:  # a text with half a surrogate pair, an integer beyond 64 bits: rare enough to take the slow way
        return json.dumps({**record, "timestamp": record["timestamp"].isoformat()}, default=repr) + "\n"


def _console(*, colors: bool) -> Callable[[Record], str]:
    import structlog  # only where somebody looks

    renderer = structlog.dev.ConsoleRenderer(colors=colors)

    def render(record: Record) -> str:
        record["timestamp"] = record["timestamp"].isoformat(timespec="milliseconds")
        return f"{renderer(None, record['level'], record)}\n"

    return render
