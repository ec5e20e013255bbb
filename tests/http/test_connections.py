"""What a connection does at its edges: heads in pieces, trailers, upgrades, refusals among others, stops."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from orchestratord.connection import PIPELINED, Protocol
from orchestratord.testing.ledger import ServedLedger
from orchestratord.testing.live import LiveApp
from tests.http.support import RawConnection, envelope_of, readers, state_of, submit, task, wait_for

HOST = b"Host: 127.0.0.1\r\n"
HELLO = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BAD_CHUNK = b"zz\r\n{}\r\n0\r\n\r\n"


def named(request: bytes, name: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nX-Correlation-Id: %b\r\n" % name, 1)


def open_stream(app: LiveApp, connection: RawConnection, task_id: str) -> None:
    """A stream that stays open until the hold on the engine is released."""
    connection.get(f"/v1/tasks/{task_id}/stream")
    assert connection.head()[0] == 200
    assert readers(app) == 1


# -- heads ---------------------------------------------------------------------------------------------------
def test_a_head_that_begins_behind_the_end_of_another_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read may bring the end of a slow head and the beginning of the next."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(HELLO[:30])
        app.settle()
        wait_for(lambda: app.call(lambda: _protocol(app)._head_size), "half a head is read")
        monkeypatch.setattr("orchestratord.connection.HEAD_S", 0.2)
        connection.send(HELLO[30:] + HELLO[:30])
        assert connection.answer().status == 200
        envelope_of(connection.answer(), 408)
        assert connection.closed()


def _protocol(app: LiveApp) -> Any:
    (protocol,) = app._server.server_state.connections
    return protocol


@pytest.mark.parametrize("behind_a_body", [False, True])
def test_a_field_without_an_end_is_refused_before_it_fills_the_memory(behind_a_body: bool) -> None:
    """The parser tells of a field when it is whole; what it keeps until then has a limit too."""
    head = POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" if behind_a_body else HELLO[:-2]
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(head + b"X-A: ")
        for _ in range(64):
            try:
                connection.send(b"a" * 65536)
            except OSError:
                break
        refused = connection.rest()
        assert b" 431 " in refused.partition(b"\r\n")[0]


def test_a_trailer_is_no_header() -> None:
    """RFC 9110 6.5.1: a field behind the body must not pass for one of the head, now or for the next request."""
    body = json.dumps(task()).encode()
    trailers = b"X-Correlation-Id: trailer\r\nX-Trust-Policy: nonsense\r\nHost: elsewhere\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(POST + CHUNKED + b"\r\n" + chunks)
        answer = connection.answer()
        assert (answer.status, answer.header("x-correlation-id") == "trailer") == (202, False)
        assert app.call(lambda: _protocol(app)._head_size) == 0, "no head has begun"
        connection.send(HELLO)
        answer = connection.answer()
        assert (answer.status, answer.header("x-correlation-id") == "trailer") == (200, False)


@pytest.mark.parametrize("step", [10_000, 1])
def test_what_follows_a_refused_upgrade_is_answered(step: int) -> None:
    """RFC 9110 7.8: an upgrade that is not taken is ignored."""
    upgrade = HELLO.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    data = named(upgrade, b"n0") + named(upgrade, b"n1") + named(HELLO, b"n2")
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.socket.setsockopt(6, 1, 1)
        for start in range(0, len(data), step):
            connection.send(data[start : start + step])
        answers = [connection.answer() for _ in range(3)]
        assert [(a.status, a.header("x-correlation-id")) for a in answers] == [(200, f"n{i}") for i in range(3)]


# -- refusals among requests ---------------------------------------------------------------------------------
def test_what_is_refused_is_not_done() -> None:
    """A cancel whose body is no body gets its 400, and nothing is cancelled."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        task_id = submit(session)
        cancel = f"POST /v1/tasks/{task_id}/cancel HTTP/1.1\r\n".encode() + HOST
        connection.send(cancel + CHUNKED + b"\r\n" + BAD_CHUNK)
        envelope_of(connection.answer(), 400)
        assert connection.closed()
        app.settle()
        assert state_of(session, task_id) != "canceled"


@pytest.mark.parametrize("past_asgi", [True, False])
def test_a_refusal_before_the_body_has_come_says_that_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch, past_asgi: bool
) -> None:
    """RFC 9110 9.6: else a client sends its next request on it, and loses it."""
    asked = ServedLedger.__call__

    async def by_asgi(ledger: ServedLedger, scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {}
        await asked(ledger, scope, receive, send)

    if not past_asgi:
        monkeypatch.setattr(ServedLedger, "__call__", by_asgi)
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(POST + b"Content-Length: 99999999\r\n\r\n{")
        answer = connection.answer()
        envelope_of(answer, 413)
        assert answer.header("connection") == "close"
        assert connection.closed()


def test_a_stream_that_is_refused_takes_no_seat() -> None:
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        stream = f"GET /v1/tasks/{submit(session)}/stream HTTP/1.1\r\n".encode() + HOST
        connection.send(stream + CHUNKED + b"\r\n" + BAD_CHUNK)
        envelope_of(connection.answer(), 400)
        assert connection.closed()
        assert readers(app) == 0
        assert "request_failed" not in app.log.getvalue()


def test_a_stream_that_is_refused_while_it_is_prepared_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log may have to be read from the journal; what breaks meanwhile is answered, and that was the last word."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        task_id = submit(session)
        streams = app.daemon.streams
        follow, ready = streams.follow, app.call(lambda: asyncio.get_running_loop().create_future())

        async def later(*asked: Any) -> Any:
            await ready
            return await follow(*asked)

        monkeypatch.setattr(streams, "follow", later)
        connection.send(f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\n".encode() + HOST + CHUNKED + b"\r\n")
        running = app._server.server_state.tasks
        wait_for(lambda: app.call(lambda: len(running)), "the request waits")
        connection.send(BAD_CHUNK)
        envelope_of(connection.answer(), 400)
        app.call(lambda: ready.set_result(None))
        wait_for(lambda: app.call(lambda: not running), "the request is over")
        assert readers(app) == 0
        assert "request_failed" not in app.log.getvalue()


def test_a_body_that_breaks_behind_a_stream_is_refused_when_its_turn_comes() -> None:
    """Nobody waits for the rest of it: it will not be read."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        open_stream(app, connection, submit(session))
        connection.send(named(POST + CHUNKED + b"\r\n", b"broken") + BAD_CHUNK)
        app.settle()
        app.call(app.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())
        envelope_of(connection.answer(), 400)
        assert connection.closed()


def test_one_request_too_many_is_told_so_in_its_turn() -> None:
    """Those before it are answered, it is not done, and what is behind it is not read."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        open_stream(app, connection, submit(session))
        connection.send(b"".join(named(HELLO, b"n%d" % number) for number in range(PIPELINED + 3)))
        app.settle()
        app.call(app.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())
        answers = [connection.answer() for _ in range(PIPELINED)]
        assert [(a.status, a.header("x-correlation-id")) for a in answers] == [
            (200, f"n{number}") for number in range(PIPELINED)
        ]
        refusal = connection.answer()
        assert envelope_of(refusal, 503)["code"] == "OVERLOADED"
        assert refusal.header("x-correlation-id") == f"n{PIPELINED}"
        assert connection.closed()


def test_a_refusal_that_waits_keeps_its_own_correlation_id() -> None:
    """OD-15: though the head of another request came with it."""
    too_long = named(HELLO[:-2] + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n", b"long")
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        open_stream(app, connection, submit(session))
        connection.send(too_long + named(HELLO, b"next")[:60])
        app.settle()
        app.call(app.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())
        refusal = connection.answer()
        assert (refusal.status, refusal.header("x-correlation-id")) == (431, "long")


def test_the_next_request_does_not_begin_within_what_ended_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a stream is written in the midst of a step of the core: no handler may run there."""
    within: list[list[str]] = []
    served = ServedLedger.__call__

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        within.append([frame.name for frame in traceback.extract_stack() if "/orchestratord/domain/" in frame.filename])
        await served(self, scope, receive, send)

    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        app.call(app.engine().hold)
        open_stream(app, connection, submit(session))
        monkeypatch.setattr(ServedLedger, "__call__", call)
        connection.send(HELLO)
        wait_for(lambda: app.call(lambda: _waiting(app)), "the second request waits")
        app.call(app.engine().release_hold)
        assert b"event: end" in b"".join(connection.chunks())
        assert connection.answer().status == 200
        assert within == [[]]


def _waiting(app: LiveApp) -> int:
    return sum(len(protocol.pipeline) for protocol in app._server.server_state.connections)


def test_a_body_is_not_kept_while_its_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand may wait for one commit of the journal."""
    body = json.dumps(task(prompt="long " * 500)).encode()
    with LiveApp() as app, RawConnection(app.url) as connection:
        admit, ready = app.daemon.admission.admit, app.call(lambda: asyncio.get_running_loop().create_future())

        async def later(*asked: Any, **how: Any) -> Any:
            await ready
            return await admit(*asked, **how)

        monkeypatch.setattr(app.daemon.admission, "admit", later)
        connection.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: app.call(lambda: len(app._server.server_state.tasks)), "the request waits")
        assert app.call(lambda: len(_protocol(app)._working.body)) == 0
        app.call(lambda: ready.set_result(None))
        assert connection.answer().status == 202


@pytest.mark.parametrize("url", [b"*", b"http://127.0.0.1", b"/\xff", b"/%ff", b"//", b"/a?\xc3\xa9"])
def test_an_odd_target_is_the_fault_of_who_sent_it(url: bytes) -> None:
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(b"OPTIONS " + url + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = connection.answer()
        assert answer.status in (400, 404)
        envelope_of(answer, answer.status)
        assert "reading a request failed" not in app.log.getvalue()


def test_a_fault_of_ours_in_reading_a_request_is_told_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser takes whatever its callbacks raise for an error of the request."""

    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("secret")

    with LiveApp() as app, RawConnection(app.url) as connection:
        monkeypatch.setattr(Protocol, "_take", fail)
        connection.send(named(HELLO, b"mine"))
        answer = connection.answer()
        assert envelope_of(answer, 500)["code"] == "INTERNAL"
        assert answer.header("x-correlation-id") == "mine"
        assert connection.closed()
        wait_for(lambda: "LookupError" in app.log.getvalue(), "the log tells of it")


# -- versions ------------------------------------------------------------------------------------------------
def test_a_stream_for_http_1_0_ends_with_its_connection() -> None:
    """RFC 9112 6.1: no Transfer-Encoding to who did not say HTTP/1.1."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        connection.send(f"GET /v1/tasks/{submit(session)}/stream HTTP/1.0\r\n".encode() + HOST + b"\r\n")
        status, headers = connection.head()
        fields = dict(headers)
        assert (status, fields.get("transfer-encoding"), fields.get("connection")) == (200, None, "close")
        received = connection.rest()
        assert received.startswith((b"retry: ", b"id: "))
        assert b"event: end" in received
        assert received.endswith(b"\n\n"), "no mark of a chunk"


@pytest.mark.parametrize(
    ("request_", "status"),
    [(HELLO, 200), (HELLO.replace(b"/healthz", b"/nope"), 404), (b"hello\r\n\r\n", 400)],
    ids=["an answer", "a refusal", "no request"],
)
def test_every_answer_has_its_date(request_: bytes, status: int) -> None:
    """RFC 9110 6.6.1: a server with a clock tells it."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(request_)
        answer = connection.answer()
        assert answer.status == status
        date = parsedate_to_datetime(answer.header("date") or "")
        assert abs(date.timestamp() - time.time()) < 60


def test_a_stream_has_its_date() -> None:
    """RFC 9110 6.6.1."""
    with LiveApp() as app, app.session() as session, RawConnection(app.url) as connection:
        connection.get(f"/v1/tasks/{submit(session)}/stream")
        status, headers = connection.head()
        assert (status, [name for name, _ in headers].count("date")) == (200, 1)


# -- the end -------------------------------------------------------------------------------------------------
def _fail(fault: BaseException | None) -> Any:
    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if fault is not None:
            raise fault
        await asyncio.get_running_loop().create_future()

    return call


def test_a_request_that_a_stop_cuts_off_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn cancels what is still running at the end of its grace; that too is answered with an envelope."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        monkeypatch.setattr(ServedLedger, "__call__", _fail(None))
        connection.send(named(HELLO, b"mine"))
        running = app._server.server_state.tasks
        wait_for(lambda: app.call(lambda: len(running)), "the request waits")
        app.call(lambda: [steps.cancel(msg="stop") for steps in running])
        answer = connection.answer()
        assert envelope_of(answer, 503)["code"] == "OVERLOADED"
        assert answer.header("x-correlation-id") == "mine"
        assert connection.closed()
        assert app.call(lambda: len(running)) == 0


def test_a_layer_that_fails_costs_an_envelope_not_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step runs within the server's read: what it raises must not get there."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        monkeypatch.setattr(ServedLedger, "__call__", _fail(LookupError("secret")))
        connection.send(named(HELLO, b"mine"))
        answer = connection.answer()
        assert envelope_of(answer, 500)["code"] == "INTERNAL"
        assert answer.header("x-correlation-id") == "mine"
        assert b"secret" not in answer.body
        assert connection.closed()
