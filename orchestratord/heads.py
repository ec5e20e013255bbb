"""Heads that are known: a client sends the same fields with every request.

What a parser makes of a head depends on nothing but its bytes. A read that is one whole request, with fields that are
byte for byte those of one the parser has taken before, is taken without it; everything else is the parser's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from orchestratord.wire.limits import URL_BYTES
from orchestratord.wire.responses import Headers

KEPT = 64  # by all clients together
MOST_BYTES = 1024  # of a head that is kept

_LINE = re.compile(rb"(GET|POST) ((?:/[A-Za-z0-9._~-]+)+) HTTP/1\.1\r\n")
# Another one with each request; and what says more of that which follows than its length.
_OTHERS = frozenset({b"x-correlation-id", b"traceparent", b"transfer-encoding", b"upgrade", b"expect"})


class Request(NamedTuple):
    """One whole request. `body`: where it begins."""

    method: str
    url: bytes
    headers: Headers
    body: int


class Heads:
    """The fields of the last heads, and how long the body behind each is."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Headers, int]] = {}

    def read(self, data: bytes) -> Request | None:
        """The request that `data` is, if its head is known and nothing is missing and nothing follows."""
        line = _LINE.match(data)
        if line is None:
            return None
        body = data.find(b"\r\n\r\n", line.end() - 2) + 4
        known = self._known.get(data[line.end() : body])
        if known is None or known[1] != len(data) - body:
            return None
        method, url = line.groups()
        return Request("GET" if method == b"GET" else "POST", url, known[0], body) if len(url) <= URL_BYTES else None

    def keep(self, data: bytes, headers: Headers, length: int) -> None:
        """`data` was one whole request to a parser, which keeps the connection: these fields and so much of a body."""
        line = _LINE.match(data)
        body = len(data) - length
        if line is None or body - line.end() > MOST_BYTES or not _OTHERS.isdisjoint([name for name, _ in headers]):
            return
        block = data[line.end() : body]
        # As the parser saw it: a field for each line, and the only empty line is the last.
        lines = len(headers) + 1
        if not (block.endswith(b"\r\n\r\n") and block.count(b"\r\n\r\n") == 1):
            return
        if {lines} != {block.count(b"\n"), block.count(b"\r"), block.count(b"\r\n")}:
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[block] = headers, length
