"""Many connections, slow ones, silent ones and those that send what nobody reads: the good client is served."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestratord import crowd
from orchestratord.app import Daemon
from orchestratord.connection import LINGER_BYTES, Protocol
from orchestratord.server import make_server
from orchestratord.testing.live import LiveApp, mock_settings
from tests.http.support import RawConnection, envelope_of, readers, submit, wait_for

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HELLO = GET + b"\r\n"
POST = b"POST /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
UNREAD = {
    "declared": POST + b"Content-Length: 1000000000\r\n\r\n",
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n",
    "no such path": POST.replace(b"/v1/tasks", b"/nope") + b"Content-Length: 1000000\r\n\r\n",
    "no such method": POST.replace(b"POST", b"PUT") + b"Content-Length: 1000000\r\n\r\n",
    "another type": POST.replace(b"json", b"xml") + b"Content-Length: 1000000\r\n\r\n",
    "a body for a GET": GET + b"Content-Length: 1000000\r\n\r\n",
}


def connected(app: LiveApp) -> int:
    return app.call(lambda: len(app._server.server_state.connections))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LiveApp, Callable[[], int]]]:
    """A daemon, and how many bytes it has read from its clients."""
    taken = 0
    receive = Protocol.data_received

    def count(self: Protocol, data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        receive(self, data)

    monkeypatch.setattr(Protocol, "data_received", count)
    with LiveApp() as app:
        yield app, lambda: taken


# -- bodies nobody reads -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", UNREAD)
def test_a_refused_body_is_not_read_on(counted: tuple[LiveApp, Callable[[], int]], name: str) -> None:
    """At most the limit, and what was on its way; the answer still arrives, says that it is the last, and is."""
    app, taken = counted
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n" if name == "chunked" else b"x" * 65536
    with RawConnection(app.url) as connection:
        connection.send(UNREAD[name])
        try:
            for _ in range(3000):  # 200 MB
                connection.send(block)
        except OSError:
            pass
        else:
            pytest.fail("the daemon took it all")
        answer = connection.answer()
        assert answer.status in (200, 404, 405, 413, 415)
        assert answer.header("connection") == "close"
    limit = 1024 * 1024 if name == "chunked" else 0
    assert taken() <= limit + LINGER_BYTES + 2 * 256 * 1024  # and what one read of the socket brings
    wait_for(lambda: connected(app) == 0, "the connection is gone")


def test_dripping_behind_an_answer_does_not_keep_a_connection() -> None:
    """Each byte used to put off the end of an idle connection, for ever."""
    with LiveApp() as app, RawConnection(app.url) as connection:
        connection.send(UNREAD["no such path"])
        envelope_of(connection.answer(), 404)

        def dripped() -> bool:
            try:
                connection.send(b"x")
            except OSError:
                return True
            return connected(app) == 0

        wait_for(dripped, "the connection is closed under the drip")


def test_a_whole_body_nobody_wants_leaves_the_connection_usable(shared_app: LiveApp) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(POST.replace(b"/v1/tasks", b"/nope") + b"Content-Length: 5\r\n\r\nhello" + HELLO)
        first = connection.answer()
        assert (first.status, first.header("connection")) == (404, None)
        assert connection.answer().status == 200


# -- too many ------------------------------------------------------------------------------------------------
def limited(**fields: int) -> LiveApp:
    return LiveApp(mock_settings(server=fields))


@pytest.mark.parametrize("setting", ["connections", "connections_per_client"])
def test_the_number_of_connections_has_a_limit(setting: str) -> None:
    """Three are served, the fourth is 503, and there is room again as soon as one leaves."""
    with limited(**{setting: 3}) as app:
        app.call(app.engine().hold)
        with app.session() as session:
            task_id = submit(session, on_disconnect="continue")
        wait_for(lambda: connected(app) == 0, "the session has left")
        kept = [RawConnection(app.url) for _ in range(3)]
        for connection in kept:
            connection.get(f"/v1/tasks/{task_id}/stream")
            assert connection.head()[0] == 200
        with RawConnection(app.url) as fourth:
            refusal = fourth.answer()
            assert envelope_of(refusal, 503)["code"] == "OVERLOADED"
            assert refusal.header("retry-after") == "1"
            assert fourth.closed()
        kept.pop().reset()
        wait_for(lambda: readers(app) == 2, "one has left")
        wait_for(lambda: connected(app) == 2, "and its connection is gone")
        with RawConnection(app.url) as again:
            again.send(HELLO)
            assert again.answer().status == 200
        for connection in kept:
            connection.close()


def test_who_only_sits_there_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections, half heads and idle ones go, the longest idle first; a stream in use stays."""
    monkeypatch.setattr(crowd, "EVICT_S", 0.0)
    with limited(connections=4) as app:
        app.call(app.engine().hold)
        with app.session() as session:
            task_id = submit(session)
        wait_for(lambda: connected(app) == 0, "the session has left")
        with (
            RawConnection(app.url) as stream,
            RawConnection(app.url) as silent,
            RawConnection(app.url) as half,
            RawConnection(app.url) as idle,
        ):
            stream.get(f"/v1/tasks/{task_id}/stream")
            assert stream.head()[0] == 200
            half.send(GET)
            idle.send(HELLO)
            assert idle.answer().status == 200
            kept = []
            for victim in (silent, half, idle):
                kept.append(RawConnection(app.url))
                kept[-1].get(f"/v1/tasks/{task_id}/stream")
                assert kept[-1].head()[0] == 200
                if victim is half:
                    envelope_of(victim.answer(), 408)
                assert victim.closed()
            with RawConnection(app.url) as last:
                envelope_of(last.answer(), 503)
            app.call(app.engine().release_hold)
            for connection in (stream, *kept):
                assert b"event: end" in b"".join(connection.chunks())
                connection.close()


def test_a_crowd_that_comes_at_once_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is thrown out who may be about to ask (within a second; here it may take longer)."""
    monkeypatch.setattr(crowd, "EVICT_S", 60.0)
    with limited(connections=2) as app, RawConnection(app.url) as first, RawConnection(app.url) as second:
        with RawConnection(app.url) as third:
            envelope_of(third.answer(), 503)
        for connection in (first, second):
            connection.send(HELLO)
            assert connection.answer().status == 200


def test_slow_heads_keep_no_good_client_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: 60 connections that drip headers on a daemon with room for 20; each of 50 good requests is served."""
    monkeypatch.setattr(crowd, "EVICT_S", 0.0)
    with limited(connections=20) as app:
        slow = []
        for number in range(60):
            slow.append(RawConnection(app.url))
            slow[-1].send(GET + b"X-%d: a\r\n" % number)
        for _ in range(50):
            with RawConnection(app.url) as good:
                good.send(HELLO)
                assert good.answer().status == 200
        for connection in slow:
            connection.close()


def test_who_has_been_refused_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: refused connections linger for a moment; that must not cost the places of those that idle ones make."""
    monkeypatch.setattr(crowd, "EVICT_S", 0.0)
    monkeypatch.setattr("orchestratord.connection.LINGER_S", 600.0)
    with limited(connections=8) as app:
        lingering = []
        for _ in range(20):
            lingering.append(RawConnection(app.url))
            lingering[-1].send(UNREAD["no such path"])
            envelope_of(lingering[-1].answer(), 404)
        kept = [RawConnection(app.url) for _ in range(8)]
        for connection in kept:
            connection.send(HELLO)
            assert connection.answer().status == 200
        wait_for(lambda: connected(app) <= 8 + 8 // 4, "no more than a quarter linger")
        for connection in (*lingering, *kept):
            connection.close()


# -- silent peers --------------------------------------------------------------------------------------------
def black_hole(connection: RawConnection) -> None:
    """From now on the client's kernel drops whatever comes in for this socket: no answer, no acknowledgement."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HL", 1, ctypes.addressof(drop))
    connection.socket.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux")
def test_a_reader_that_vanishes_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """C10: its machine is gone, nothing is acknowledged, and little is sent: no buffer ever fills."""
    prepare = crowd.Crowd.prepare

    def hasty(self: crowd.Crowd, sock: socket.socket) -> None:
        self._unacked_ms = 300
        prepare(self, sock)

    monkeypatch.setattr(crowd.Crowd, "prepare", hasty)
    with LiveApp() as app, app.session() as session:
        app.call(app.engine().hold)
        task_id = submit(session, on_disconnect="continue", max_tokens=50)
        with RawConnection(app.url) as connection:
            connection.get(f"/v1/tasks/{task_id}/stream")
            assert connection.head()[0] == 200
            assert readers(app) == 1
            black_hole(connection)
            app.call(lambda: app.engine().step(1))
            app.settle()
            wait_for(lambda: readers(app) == 0, "the seat is given back")
        app.call(app.engine().release_hold)


def test_the_kernel_watches_every_connection() -> None:
    """Probes for connections nothing is sent on, a bound on what is not acknowledged, and a small send buffer."""
    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with ours, theirs:
        theirs.connect(ours.getsockname())
        accepted, _ = ours.accept()
        with accepted:
            crowd.Crowd(1).prepare(accepted)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * crowd.SEND_BUFFER  # Linux doubles
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == crowd.UNACKED_MS
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_the_kernel_is_more_patient_than_the_daemon() -> None:
    """A reader may stall as long as `streams.stall_ms` says."""
    protocol: Any = make_server(Daemon(mock_settings(streams={"stall_ms": 600_000}))).config.http
    assert protocol.crowd._unacked_ms == 615_000
