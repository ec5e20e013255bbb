"""Request bodies: from bytes to a JSON value, in a time that depends on their length and not on their shape.

A megabyte of brackets would keep the event loop busy for a second: each list costs hundreds of times what its two bytes
do, in the parser, in the garbage collector and in whatever walks over it later.
"""

from __future__ import annotations

import gc
import re
from typing import Any

import orjson

from orchestratord.wire.errors import HttpError

DEPTH = 64
CONTAINERS = 20_000  # lists and objects in one body
LARGE = 64 * 1024

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)  # linear, also for one that never ends


def parse(raw: bytes | bytearray) -> Any:
    """Raises HttpError INVALID_PARAMS, rule body_syntax."""
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets > CONTAINERS:
        bare = _STRING.sub(b"", raw)  # a prompt may have as many as it likes
        brackets = bare.count(b"{") + bare.count(b"[")
        if brackets > CONTAINERS:
            raise _refused(f"The body has more than {CONTAINERS} lists and objects.")
    collecting = len(raw) > LARGE and gc.isenabled()
    if collecting:
        gc.disable()  # it would look through the half-built value again and again
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _refused(f"The body is not valid JSON: {str(error)[:200]}.") from None
    finally:
        if collecting:
            gc.enable()
    if brackets > DEPTH and deeper(body, DEPTH):
        raise _refused(f"The body nests deeper than {DEPTH} levels.")
    return body


def _refused(message: str) -> HttpError:
    return HttpError("INVALID_PARAMS", message, rule="body_syntax")


def deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects nest deeper than that."""
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for node in layer
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not layer:
            return False
    return True
