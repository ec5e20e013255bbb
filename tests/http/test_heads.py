"""Heads that are known: what is taken without the parser is what the parser would make of it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.connection import Protocol
from orchestratord.heads import KEPT, MOST_BYTES, Heads
from orchestratord.testing.live import LiveApp
from tests.http.support import RawConnection

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
FIELDS = [(b"host", b"127.0.0.1")]


class Parsed:
    """What the parser tells of a request."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.headers, self.complete = b"", b"", [], 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method().decode()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def kept(data: bytes, headers: list[tuple[bytes, bytes]] | None = None, length: int = 0) -> Heads:
    heads = Heads()
    heads.keep(data, FIELDS if headers is None else headers, length)
    return heads


names = st.sampled_from([b"Host", b"accept", b"X-Odd", b"Content-Type", b"Authorization"])
values = st.sampled_from([b"a", b"", b"b c", b"d \t", b"\tx", b"e:f"])
paths = st.sampled_from([b"/", b"/v1/tasks", b"/v1/tasks/0-1/stream", b"/a?b", b"/%61", b"/a//b", b"*", b"/~x"])


@given(
    st.lists(st.tuples(names, values), max_size=4),
    st.lists(st.tuples(st.sampled_from([b"GET", b"POST"]), paths, st.binary(max_size=6)), min_size=2, max_size=4),
    st.integers(0, 6),
)
def test_it_reads_what_the_parser_reads(
    fields: list[tuple[bytes, bytes]], requests: list[tuple[bytes, bytes, bytes]], length: int
) -> None:
    """Whatever was kept before: a request is left alone, or it is the parser's, byte for byte."""
    heads, lines = Heads(), b"".join(b"%b: %b\r\n" % field for field in fields)
    for method, path, body in requests:
        data = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (method, path, lines, length, body)
        found, parsed = heads.read(data), None
        if len(body) == length:
            parsed = Parsed(data)
            assert parsed.complete == 1
            heads.keep(data, parsed.headers, len(parsed.body))
        if found is not None:
            assert parsed is not None, "something is missing, or something follows"
            assert (found.method, found.url, found.headers) == (parsed.method, parsed.url, parsed.headers)
            assert data[found.body :] == parsed.body


def test_a_head_is_known_from_its_second_time_on() -> None:
    heads = Heads()
    assert heads.read(GET) is None
    heads.keep(GET, FIELDS, 0)
    assert heads.read(GET) == ("GET", b"/healthz", FIELDS, len(GET))
    other = heads.read(GET.replace(b"/healthz", b"/readyz"))
    assert other is not None
    assert other.url == b"/readyz"


@pytest.mark.parametrize(
    "data",
    [
        GET[:-1],
        GET + b"x",
        GET + GET,
        b"\r\n" + GET,
        GET.replace(b"1.1\r", b"1.0\r"),
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"/healthz", b"/healthz?x=1"),
        GET.replace(b"/healthz", b"/health%7A"),
        GET.replace(b"/healthz", b"/" + b"a" * 8192),
        GET.replace(b"Host", b"host"),
        GET.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"),
        GET.replace(HOST, b""),
    ],
)
def test_what_differs_is_left_to_the_parser(data: bytes) -> None:
    assert kept(GET).read(data) is None


@pytest.mark.parametrize("name", [b"Transfer-Encoding", b"Expect", b"Upgrade", b"X-Correlation-Id", b"traceparent"])
def test_what_says_more_than_a_length_or_never_comes_again_is_not_kept(name: bytes) -> None:
    data = GET.replace(HOST, HOST + name + b": x\r\n")
    assert kept(data, [*FIELDS, (name.lower(), b"x")]).read(data) is None


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (GET, []),  # the parser saw other lines than we do
        (GET.replace(HOST, b"Host: a\r\n b\r\n"), [(b"host", b"a b")]),
        (GET.replace(HOST, b"X: a\rb\r\n"), [(b"x", b"a\rb")]),
        (GET.replace(HOST, b"X: %b\r\n" % (b"a" * MOST_BYTES)), [(b"x", b"a" * MOST_BYTES)]),
    ],
)
def test_a_head_that_may_be_read_in_two_ways_or_is_long_is_not_kept(data: bytes, headers: Any) -> None:
    assert kept(data, headers).read(data) is None


def test_no_more_than_so_many_are_kept() -> None:
    heads = Heads()
    for number in range(3 * KEPT):
        heads.keep(GET.replace(b"127.0.0.1", b"%d" % number), [(b"host", b"%d" % number)], 0)
        assert len(heads._known) <= KEPT


def test_a_body_that_looks_like_a_request_is_none() -> None:
    """It comes in a read of its own, byte for byte as a request that is known."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        for _ in range(2):
            connection.send(GET)
            assert connection.answer().status == 200
        head = b"POST /v1/tasks HTTP/1.1\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
        connection.send(head % (HOST, len(GET)))
        app.settle()
        connection.send(GET)
        assert connection.answer().json()["details"]["rule"] == "body_syntax"
        connection.send(GET)
        assert connection.answer().status == 200


def test_the_requests_of_a_client_need_the_parser_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies, answers and refusals are those of the parser's way; what does not match goes that way."""
    parsed: list[bytes] = []
    read = Protocol._read

    def counted(self: Protocol, data: bytes) -> None:
        parsed.append(data)
        read(self, data)

    def post(session_id: str) -> bytes:
        body = json.dumps({"task_id": str(uuid.uuid4()), "session_id": session_id}).encode()
        return b"POST /v1/tasks HTTP/1.1\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
            HOST,
            len(body),
            body,
        )

    monkeypatch.setattr(Protocol, "_read", counted)
    with LiveApp() as app, RawConnection(app.url) as connection:
        answers = []
        for request in (GET, GET, post("a"), post("b"), GET, GET.replace(b"healthz", b"nothing"), GET + GET):
            connection.send(request)
            answers.append(connection.answer())
        answers.append(connection.answer())
        assert [answer.status for answer in answers] == [200, 200, 400, 400, 200, 404, 200, 200]
        assert answers[3].json()["details"] == answers[2].json()["details"]
        assert len(parsed) == 3, "the first of each kind, and the two in one read"
        with RawConnection(app.url) as other:
            other.send(GET)
            assert other.answer().status == 200
            other.send(GET[:20])
            other.send(GET[20:])
            assert other.answer().status == 200
        assert b"".join(parsed[3:]) == GET, "only what came in pieces"
