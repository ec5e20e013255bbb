"""Log lines: one valid JSON object each, or a readable line on a terminal, whatever stands in the fields.

Values come from clients and engines. None can end a line early, move a cursor, hide text or make the logger fail; none
is longer than a screen; and what is known to be secret is not shown, wherever it may have got in.
"""

from __future__ import annotations

import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

from orchestratord.infra.lines import Lines
from orchestratord.infra.secrets import Secrets

Record = MutableMapping[str, Any]
Sink = Callable[[Record], None]
Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]

TEXT_CHARS = 2_000
ITEMS = 64
DEPTH = 4
FRAMES = 30

# Ends a line for some readers, steers a terminal, turns the direction of text, or is no character at all. What JSON
# escapes by itself is not among them there.
_CONTROL = "\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
_UNSAFE_JSON = re.compile(f"[{_CONTROL}]")
_UNSAFE_TEXT = re.compile(f"[\x00-\x1f{_CONTROL}]")
_PLAIN = orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# Their messages quote the data that was wrong: a key that was missing, the text that was no number.
_QUOTING = (ValueError, LookupError)


def make_sink(
    stream: TextIO | None = None, *, form: Format = "auto", level: Level = "info", secrets: Secrets | None = None
) -> Sink:
    """What takes records to `stream` (stderr). auto: readable on a terminal, else JSON."""
    stream = stream or sys.stderr
    terminal = not stream.closed and stream.isatty()
    readable = form == "console" or (form == "auto" and terminal)
    write = Lines(stream, _gap_text if readable else _gap_json).write
    render = _console(colors=terminal) if readable else _json
    secrets = secrets or Secrets()
    bounded, secret = _bounded(secrets), secrets.in_json
    least = _LEVELS[level]

    def sink(record: Record) -> None:
        if _LEVELS[record["level"]] >= least:
            line = None if readable else _as_it_is(record)
            if line is None or secret(line):
                line = render(bounded(record)).encode(errors="backslashreplace")
            write(line)

    return sink


def stamp() -> datetime:
    """Of a record: now, in UTC."""
    return datetime.now(UTC)


# -- values --------------------------------------------------------------------------------------------------
def _bounded(secrets: Secrets) -> Callable[[Record], Record]:
    """Fields that are plain, of bounded size and without what is known to be secret. One that is None is left out."""
    hide, hiding = secrets.hide, secrets.known

    def text(value: str) -> str:
        value = hide(value)
        return value if len(value) <= TEXT_CHARS else f"{value[:TEXT_CHARS]}... ({len(value)} characters)"

    def plain(value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return text(str(value))
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, BaseException):
            return text(told(value))
        if depth and isinstance(value, Mapping):
            return {text(str(k)): plain(v, depth - 1) for k, v in list(value.items())[:ITEMS]}
        if depth and isinstance(value, list | tuple | set | frozenset):
            return [plain(v, depth - 1) for v in list(value)[:ITEMS]]
        return f"<{type(value).__name__}>"  # no repr: it may show anything

    def bounded(record: Record) -> Record:
        error = record.pop("exc_info", None)
        shown: Record = {}
        texts = []
        for name, value in record.items():
            kind = type(value)
            if kind is str and len(value) <= TEXT_CHARS:
                texts.append(value)
                shown[name] = value
            elif kind is int or kind is datetime:
                shown[name] = value
            elif value is not None:
                shown[name] = plain(value, DEPTH)
        if hiding and secrets.within("\n".join(texts)):  # one look at them all: nearly always there is nothing
            for name, value in shown.items():
                if type(value) is str:
                    shown[name] = hide(value)
        if isinstance(error, BaseException):
            shown["exception"] = [text(line) for line in trace(error)]
        return shown

    return bounded


def told(error: BaseException) -> str:
    """An exception in a few words, without those that may quote a client's text."""
    name = type(error).__name__
    if isinstance(error, _QUOTING):
        return f"{name} (its message may quote data and is not shown)"
    return f"{name}: {error}" if str(error) else name


def trace(error: BaseException) -> list[str]:
    """Where an exception came from, innermost last, and what it came of."""
    lines: list[str] = []
    link: BaseException | None = error
    for _ in range(DEPTH):
        if link is None:
            break
        frames = traceback.extract_tb(link.__traceback__)[-FRAMES:]
        here = [f"{frame.filename}:{frame.lineno} {frame.name}: {frame.line}" for frame in frames]
        lines = [*here, told(link), *lines]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return lines


# -- lines ---------------------------------------------------------------------------------------------------
def _as_it_is(record: Record) -> bytes | None:
    """The line of a record in which nothing has to be bounded or written otherwise: nearly always so. Else None."""
    if None in record.values():
        record = {name: value for name, value in record.items() if value is not None}
    try:
        line = orjson.dumps(record, option=_PLAIN)
    except TypeError:
        return None
    # What is short as a whole, and holds no other object, no list but empty ones and no number that is none.
    short = len(line) <= TEXT_CHARS and line.count(b"{") == 1 and line.count(b"[") == line.count(b"[]")
    return line if short and line.isascii() and 0x7F not in line and b"null" not in line else None


def _json(record: Record) -> str:
    try:
        line = orjson.dumps(record, option=orjson.OPT_UTC_Z).decode()
    except TypeError:  # a lone surrogate, an integer beyond 64 bits: rare enough to take the slow way
        return json.dumps({**record, "timestamp": record["timestamp"].isoformat()}, separators=(",", ":"))
    if not line.isascii() or "\x7f" in line:
        line = _UNSAFE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    return line


def _gap_json(count: int) -> str:
    human = "the reader of this log was too slow, or its disk was full"
    return json.dumps({"event": "log_lines_dropped", "level": "warning", "human": human, "count": count})


def _gap_text(count: int) -> str:
    return f"... {count} lines were dropped: the reader of this log was too slow, or its disk was full"


def _console(*, colors: bool) -> Callable[[Record], str]:
    """The sentence first, for people; then the fields."""
    import structlog  # only where somebody looks

    renderer = structlog.dev.ConsoleRenderer(colors=colors, event_key="human", sort_keys=False, pad_event_to=60)

    def render(record: Record) -> str:
        told = record.pop("exception", None)
        event = record.pop("event")
        human = record.pop("human", "") or event
        record["timestamp"] = record["timestamp"].isoformat(timespec="milliseconds")
        harmless = {_visible(key): _visible(value) for key, value in record.items()}
        line = str(renderer(None, record["level"], {**harmless, "human": _visible(human), "event": _visible(event)}))
        return "\n    ".join([line, *(_visible(each) for each in told or ())])

    return render


def _visible(value: Any) -> Any:
    """Text with everything that could steer a terminal written out."""
    if not isinstance(value, str):
        value = value if value is None or isinstance(value, bool | int | float) else json.dumps(value, default=str)
    return _UNSAFE_TEXT.sub(lambda found: ascii(found[0])[1:-1], value) if isinstance(value, str) else value
