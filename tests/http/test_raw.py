"""Bytes on a socket: whatever they are, the answer is an envelope with a correlation id, and the connection closes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from orchestratord.testing.live import LiveApp
from orchestratord.wire.limits import HEAD_BYTES, URL_BYTES
from tests.http.support import RawConnection, envelope_of, readers, submit, task, wait_for

GET = b"GET /healthz HTTP/1.1\r\n"
HOST = b"Host: 127.0.0.1\r\n"
HELLO = GET + HOST + b"\r\n"
POST = b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"


def with_header(line: bytes) -> bytes:
    return GET + HOST + line + b"\r\n\r\n"


MALFORMED = {
    "no request at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a word": b"hello\r\n\r\n",
    "version 3": b"GET /healthz HTTP/3.0\r\n" + HOST + b"\r\n",
    "version 1.10": b"GET /healthz HTTP/1.10\r\n" + HOST + b"\r\n",
    "a lower-case version": b"GET /healthz http/1.1\r\n" + HOST + b"\r\n",
    "a lower-case method": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"FOO /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /health z HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in the target": b"GET /heal\x00thz HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in a header": with_header(b"X-A: a\x00b"),
    "ESC in a header": with_header(b"X-Correlation-Id: \x1b[31m"),
    "CR alone in a header": with_header(b"X-A: a\rb"),
    "a space before the colon": with_header(b"X-A : b"),
    "a space in a header name": with_header(b"X A: b"),
    "no header name": with_header(b": b"),
    "no colon": with_header(b"X-A"),
    "a folded header": with_header(b"X-A: a\r\n b"),
    "a space before the first header": GET + b" " + HOST + b"\r\n",
    "no Host": GET + b"\r\n",
    "two Hosts": GET + HOST + HOST + b"\r\n",
    "two different Hosts": GET + HOST + b"Host: elsewhere\r\n\r\n",
    "a bare LF after the request line": b"GET /healthz HTTP/1.1\n" + HOST + b"\r\n",
    "bare LFs": b"GET /healthz HTTP/1.1\nHost: 127.0.0.1\n\n",
    "a body length that is no number": POST + b"Content-Length: ten\r\n\r\n0123456789",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "two equal lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a length beyond 64 bit": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked misspelt": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked with a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx\r\n0\r\n\r\n",
    "a chunk beyond 64 bit": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_good_request_is_refused(shared_app: LiveApp, data: bytes) -> None:
    """400 or another 4xx, once, and then the connection is of no use any more."""
    with RawConnection(shared_app.url) as connection:
        connection.send(data)
        connection.socket.shutdown(1)
        answer = connection.answer()
        envelope_of(answer, answer.status)
        assert 400 <= answer.status < 500
        assert b"HTTP/1.1 2" not in connection.rest()


CLOSING = sorted(MALFORMED.keys() - {"no Host", "two Hosts", "two different Hosts"})


@pytest.mark.parametrize("name", CLOSING)
def test_after_a_parse_error_the_connection_closes(shared_app: LiveApp, name: str) -> None:
    """What follows on it must not be taken for a request: nobody knows where one would begin."""
    with RawConnection(shared_app.url) as connection:
        connection.send(MALFORMED[name])
        if name in ("a length beyond 64 bit", "a negative length"):
            connection.send(HELLO)
        first = connection.answer()
        if first.status == 400 and first.header("connection") == "close":
            assert connection.closed()
        else:  # understood, and refused by the app
            assert first.status in (405, 413, 415)


@pytest.mark.parametrize("data", [GET + b"\r\n", GET + HOST + HOST + b"\r\n"], ids=["no Host", "two Hosts"])
def test_exactly_one_host(shared_app: LiveApp, data: bytes) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(data)
        assert "Host" in envelope_of(connection.answer(), 400)["message"]


def test_a_request_line_has_a_version(shared_app: LiveApp) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(b"GET /healthz\r\n" + HOST + b"\r\n")
        envelope_of(connection.answer(), 400)


# -- limits of the head --------------------------------------------------------------------------------------
def test_a_header_of_20_kb_is_431(shared_app: LiveApp) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(with_header(b"X-A: " + b"a" * 20_000))
        assert envelope_of(connection.answer(), 431)["code"] == "HEADERS_TOO_LARGE"
        assert connection.closed()


def test_a_head_of_2_mb_does_not_pile_up(shared_app: LiveApp) -> None:
    """The answer may be lost in a reset, but the daemon stops reading."""
    with RawConnection(shared_app.url) as connection:
        try:
            connection.send(GET + HOST + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(2000)))
        except OSError:
            pass
        else:
            assert b"200 OK" not in connection.rest()
    assert shared_app.session().get("/healthz").status_code == 200


def test_the_number_of_headers_has_a_limit(shared_app: LiveApp) -> None:
    """100 fields with the Host pass, 101 do not."""
    for extra, status in ((98, 200), (99, 200), (100, 431)):
        with RawConnection(shared_app.url) as connection:
            connection.send(GET + HOST + b"".join(b"X-%d: a\r\n" % i for i in range(extra)) + b"\r\n")
            answer = connection.answer()
            assert answer.status == status, extra
            if status == 431:
                envelope_of(answer, 431)
                assert connection.closed()


def test_the_size_of_a_head_has_a_limit(shared_app: LiveApp) -> None:
    for size, status in ((HEAD_BYTES - 200, 200), (HEAD_BYTES + 1, 431)):
        with RawConnection(shared_app.url) as connection:
            connection.send(with_header(b"X-A: " + b"a" * size))
            assert connection.answer().status == status


@pytest.mark.parametrize("path", [b"/healthz?" + b"a" * 9000, b"/" + b"a" * 9000, b"/v1/tasks?cursor=" + b"a" * 9000])
def test_a_url_of_9_kb_is_414(shared_app: LiveApp, path: bytes) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert envelope_of(connection.answer(), 414)["code"] == "URI_TOO_LONG"
        assert connection.closed()


def test_the_limit_of_a_url_is_exact(shared_app: LiveApp) -> None:
    for size, status in ((URL_BYTES, 404), (URL_BYTES + 1, 414)):
        with RawConnection(shared_app.url) as connection:
            connection.send(b"GET /" + b"a" * (size - 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            envelope_of(connection.answer(), status)


def test_limits_count_over_pieces(shared_app: LiveApp) -> None:
    """A head that comes byte by byte is no smaller."""
    with RawConnection(shared_app.url) as connection:
        connection.socket.setsockopt(6, 1, 1)
        connection.send(b"GET /")
        with contextlib.suppress(OSError):  # it may have closed before the last piece
            for _ in range(20):
                connection.send(b"a" * 500)
        assert connection.answer().status == 414


# -- pipelining ----------------------------------------------------------------------------------------------
def test_pipelined_requests_are_answered_in_order(shared_app: LiveApp) -> None:
    paths = ("/healthz", "/nope", "/v1/pools", "/readyz", "/healthz")
    with RawConnection(shared_app.url) as connection:
        connection.send(
            b"".join(
                b"GET %b HTTP/1.1\r\n%bX-Correlation-Id: n%d\r\n\r\n" % (p.encode(), HOST, i)
                for i, p in enumerate(paths)
            )
        )
        answers = [connection.answer() for _ in paths]
        assert [a.status for a in answers] == [200, 404, 200, 200, 200]
        assert [a.header("x-correlation-id") for a in answers] == [f"n{i}" for i in range(5)]


def test_a_pipelined_request_behind_a_body(shared_app: LiveApp) -> None:
    body = json.dumps(task()).encode()
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + HELLO)
        assert [connection.answer().status, connection.answer().status] == [202, 200]


@pytest.mark.parametrize(
    "first",
    [with_header(b"X-A: " + b"a" * 20_000), b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"],
    ids=["431", "414"],
)
def test_a_refused_head_is_answered_though_another_request_follows(shared_app: LiveApp, first: bytes) -> None:
    """Else the answer to the second request is taken for the answer to the first."""
    with RawConnection(shared_app.url) as connection:
        connection.send(first + HELLO)
        assert connection.answer().status in (414, 431)
        assert connection.closed()


def test_a_body_shorter_than_declared_is_no_request(shared_app: LiveApp) -> None:
    """The task in it was never submitted; the next connection is not affected."""
    body = task()
    data = json.dumps(body).encode()
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Content-Length: %d\r\n\r\n" % (len(data) + 10) + data)
        connection.socket.shutdown(1)
        connection.rest()
    with shared_app.session() as session:
        assert session.get(f"/v1/tasks/{body['task_id']}").status_code == 404


def test_a_body_longer_than_declared_is_cut_where_it_was_declared(shared_app: LiveApp) -> None:
    body = json.dumps(task()).encode()
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"garbage\r\n\r\n")
        assert connection.answer().status == 202
        envelope_of(connection.answer(), 400)
        assert connection.closed()


def test_a_declared_gigabyte_is_refused_before_it_is_sent(shared_app: LiveApp) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Content-Length: 1000000000\r\n\r\n")
        assert envelope_of(connection.answer(), 413)["code"] == "PAYLOAD_TOO_LARGE"


def test_expect_continue_is_honoured_only_for_a_body_that_is_wanted(shared_app: LiveApp) -> None:
    body = json.dumps(task()).encode()
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        connection.send(body)
        assert connection.answer().status == 202
    with RawConnection(shared_app.url) as connection:
        connection.send(POST + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.answer().status == 413


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_taken(shared_app: LiveApp, protocol: bytes) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(
            GET
            + HOST
            + b"Connection: Upgrade\r\nUpgrade: "
            + protocol
            + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.answer().status in (200, 400, 426)


def test_http_1_0_gets_its_answer_and_a_close(shared_app: LiveApp) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(b"GET /healthz HTTP/1.0\r\n" + HOST + b"\r\n")
        assert connection.answer().status == 200
        assert connection.closed()


# -- time ----------------------------------------------------------------------------------------------------
@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveApp]:
    """A daemon that waits a fifth of a second for a head."""
    monkeypatch.setattr("orchestratord.connection.HEAD_S", 0.2)
    with LiveApp() as app:
        yield app


@pytest.mark.parametrize("half", [b"G", b"GET /heal", GET, GET + b"Ho", GET + HOST, GET + HOST + b"X-A: b"], ids=len)
def test_half_a_head_and_silence_is_408(hasty: LiveApp, half: bytes) -> None:
    with RawConnection(hasty.url) as connection:
        connection.send(half)
        assert envelope_of(connection.answer(), 408)["code"] == "REQUEST_TIMEOUT"
        assert connection.closed()


def test_a_head_that_drips_is_408_all_the_same(hasty: LiveApp) -> None:
    """The limit is for the whole head, not for the pause between two bytes."""
    pause = threading.Event()
    with RawConnection(hasty.url) as connection:
        connection.send(GET + HOST)
        for number in range(20):
            try:
                connection.send(b"X-%d: a\r\n" % number)
            except OSError:
                break
            pause.wait(0.02)
        assert b" 408 " in connection.rest()


def test_silence_alone_is_closed_without_a_word(hasty: LiveApp) -> None:
    with RawConnection(hasty.url) as connection:
        assert connection.rest() == b""


def test_the_second_head_on_a_connection_has_its_limit_too(hasty: LiveApp) -> None:
    with RawConnection(hasty.url) as connection:
        connection.send(HELLO)
        assert connection.answer().status == 200
        connection.send(GET)
        envelope_of(connection.answer(), 408)


def test_a_slow_stream_is_no_slow_head(hasty: LiveApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit ends with the head: a stream that is older lives on."""
    hasty.call(hasty.engine().hold)
    with hasty.session() as session:
        task_id = submit(session)
    monkeypatch.setattr(
        "orchestratord.connection.HEAD_S", 1.0
    )  # from the connection on, also where this thread has to wait for its turn
    with RawConnection(hasty.url) as connection:
        connection.get(f"/v1/tasks/{task_id}/stream")
        assert connection.head()[0] == 200
        with RawConnection(hasty.url) as other:
            assert other.rest() == b""  # longer than HEAD_S
        hasty.call(hasty.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())


def test_half_a_body_and_silence_is_408(hasty: LiveApp) -> None:
    with RawConnection(hasty.url) as connection:
        connection.socket.settimeout(3)
        connection.send(POST + b"Content-Length: 100\r\n\r\n{")
        hasty.advance(60)
        envelope_of(connection.answer(), 408)


# -- while a stream is open ----------------------------------------------------------------------------------
@pytest.mark.parametrize("junk", [b"hello\r\n\r\n", with_header(b"X-A: " + b"a" * 20_000)], ids=["400", "431"])
def test_junk_behind_a_stream_does_not_get_into_it(junk: bytes) -> None:
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        connection.get(f"/v1/tasks/{submit(session)}/stream")
        assert connection.head()[0] == 200
        connection.send(junk)
        app.call(app.engine().release_hold)
        received = connection.rest()
        assert b"HTTP/1.1" not in received.partition(b"0\r\n\r\n")[0]


def test_a_reader_with_a_pipelined_request_is_noticed_when_it_leaves() -> None:
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        connection.get(f"/v1/tasks/{submit(session)}/stream")
        assert connection.head()[0] == 200
        assert readers(app) == 1
        connection.send(HELLO)
        app.settle()
        connection.reset()
        wait_for(lambda: readers(app) == 0, "the seat is given back", 3)


@pytest.mark.parametrize("cut", [5, 30, len(HELLO)], ids=["in the line", "in a header", "whole"])
def test_a_request_that_has_begun_when_a_stream_does_is_answered_behind_it(cut: int) -> None:
    """What a connection lets go of when a stream begins is not the next request's."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        stream = b"GET /v1/tasks/%b/stream HTTP/1.1\r\n%b\r\n" % (submit(session).encode(), HOST)
        connection.send(stream + HELLO[:cut])
        assert connection.head()[0] == 200
        connection.send(HELLO[cut:])
        app.call(app.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())
        assert connection.answer().status == 200


def test_no_line_of_a_header_hides_another() -> None:
    """ORCH-3097: a proxy that adds `strict` below what its client sent must not be overruled by it."""
    body = json.dumps(task()).encode()
    head = b"Content-Length: %d\r\nX-Trust-Policy: permissive\r\n%b\r\n"
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(POST + head % (len(body), b"X-Trust-Policy: strict\r\n") + body)
        assert envelope_of(connection.answer(), 400)["code"] == "INVALID_PARAMS"
        connection.send(POST + head.replace(b"permissive", b"permissive \t") % (len(body), b"") + body)
        assert connection.answer().status == 202, "white space around a value is none of it (RFC 9110 5.5)"


def test_a_head_that_is_refused_keeps_its_correlation_id() -> None:
    """OD-15: as far as it was read; the next request has nothing to do with it."""
    named = GET + HOST + b"X-Correlation-Id: mine\r\n"
    with LiveApp() as app:
        with RawConnection(app.url) as connection:
            connection.send(named + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n")
            refusal = connection.answer()
            assert (refusal.status, refusal.header("x-correlation-id")) == (431, "mine")
        with RawConnection(app.url) as connection:
            connection.send(named + b"\r\n")
            assert connection.answer().header("x-correlation-id") == "mine"
            connection.send(b"hello\r\n\r\n")
            refusal = connection.answer()
            assert refusal.status == 400
            assert refusal.header("x-correlation-id") not in (None, "mine")
