"""Opaque cursors of the lists, and the page they cut. Each says which list made it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

from orchestratord.domain.errors import InvalidParams

T = TypeVar("T")

DEFAULT_LIMIT = 50


def size(limit: int | None) -> int:
    return DEFAULT_LIMIT if limit is None else limit


def page(found: Iterable[T], limit: int | None, cursor_of: Callable[[T], str]) -> tuple[list[T], str | None]:
    """The first `limit` items and the cursor of the next page, None when there is none."""
    items = list(islice(found, size(limit) + 1))
    more = len(items) > size(limit)
    items = items[: size(limit)]
    return items, cursor_of(items[-1]) if more else None


def _write(made_by: str, value: str) -> str:
    return base64.urlsafe_b64encode(f"{made_by}:{value}".encode()).decode().rstrip("=")


def _read(made_by: str, cursor: str | None) -> str | None:
    """What `_write` was given. Raises InvalidParams for anything else, another list's cursor too."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise _bad() from None
    maker, _, value = text.partition(":")
    if maker != made_by or _write(made_by, value) != cursor:
        raise _bad()
    return value


def text(value: str) -> str:
    return _write("pools", value)


def parse_text(cursor: str | None) -> str | None:
    return _read("pools", cursor)


def order(value: int) -> str:
    return _write("tasks", str(value))


def parse_order(cursor: str | None) -> int | None:
    value = _read("tasks", cursor)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise _bad()
    return int(value)


def key(made_by: str, created_ms: int, item_id: str) -> str:
    return _write(made_by, f"{created_ms} {item_id}")


def parse_key(made_by: str, cursor: str | None) -> tuple[int, str] | None:
    value = _read(made_by, cursor)
    if value is None:
        return None
    head, _, item_id = value.partition(" ")
    if not (head.isascii() and head.isdecimal() and len(head) <= 18 and item_id):
        raise _bad()
    return int(head), item_id


def _bad() -> InvalidParams:
    return InvalidParams("This cursor was not made by this list. Use next_cursor of the previous page.", rule="cursor")
