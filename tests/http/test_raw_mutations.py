"""Good requests with their bytes damaged at random: an answer in our shape or a closed connection, nothing else."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable

import pytest

from orchestratord.testing.live import LiveApp
from tests.http.support import RawConnection, task

TIMES = 120
FIRST_LINE = re.compile(rb"HTTP/1\.1 (?=[0-9]{3} )")
BODY = json.dumps(task()).encode()
HEAD = b"Host: 127.0.0.1\r\nX-Correlation-Id: a\r\n"
GOOD = {
    "GET": b"GET /v1/tasks?limit=2&state=ended HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an id": b"GET /v1/tasks/%b HTTP/1.1\r\n%b\r\n" % (str(uuid.uuid4()).encode(), HEAD),
    "a stream": b"GET /v1/tasks/%b/stream?after=1 HTTP/1.1\r\n%bLast-Event-ID: 1\r\n\r\n"
    % (str(uuid.uuid4()).encode(), HEAD),
    "DELETE": b"DELETE /v1/sessions/%b HTTP/1.1\r\n%b\r\n" % (str(uuid.uuid4()).encode(), HEAD),
    "POST": b"POST /v1/tasks HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (HEAD, len(BODY), BODY),
    "chunks": b"POST /v1/artifacts HTTP/1.1\r\n%bContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'b\r\n{"kind":"ot\r\n16\r\nher","content":"text"}\r\n0\r\n\r\n' % HEAD,
}


def flip(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def drop(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at + chance.randint(1, 4) :]


def double(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at : at + 20] * chance.randint(2, 3) + data[at + 20 :]


def insert(data: bytes, at: int, chance: random.Random) -> bytes:
    odd = chance.choice(
        [b"\x00", b"\r", b"\n", b"\r\n", b"\xff", b" ", b"\t", b":", b"%00", b"%", b"/", b"..", b"\x7f"]
    )
    return data[:at] + odd + data[at:]


def cut(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at]


DAMAGE: list[Callable[[bytes, int, random.Random], bytes]] = [flip, drop, double, insert, cut]


@pytest.mark.parametrize("name", GOOD)
def test_damage_is_answered_or_the_connection_closes(shared_app: LiveApp, name: str) -> None:
    """No 5xx, no body of another shape, no silence on an open connection (the socket's own limit would say so)."""
    chance = random.Random(name)
    for _ in range(TIMES):
        data = GOOD[name]
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            data = chance.choice(DAMAGE)(data, chance.randrange(len(data) or 1), chance) or b"\r\n"
        with RawConnection(shared_app.url) as connection:
            connection.send(data)
            connection.socket.shutdown(1)
            received = connection.rest()
        for answer in FIRST_LINE.split(received)[1:]:
            judge(answer, data)


def judge(answer: bytes, data: bytes) -> None:
    status = int(answer[:3])
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = {
        k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])
    }
    assert status in (100, 200, 201, 202, 204) or 400 <= status < 500, (data, answer)
    assert "x-correlation-id" in headers or status == 100, (data, answer)
    if status >= 400:
        problem = json.loads(body)
        assert {"code", "message"} <= problem.keys(), (data, answer)
