"""`testing.session`: nothing comes through the door unverified, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event as Signal
from threading import Thread

import pytest
import requests

from orchestratord.testing.session import Record, VerifyingSession
from orchestratord.testing.verifier import ContractViolation

TASK = "6f1d2c3b-4a59-4e68-8777-86958493a2b1"
STREAM = f"/v1/tasks/{TASK}/stream"
STARTED = b'id: 1\nevent: started\ndata: {"queue_position":0,"predicted_start_ms":1}\n\n'
TOKEN = 'id: 2\nevent: token\ndata: {"t":"\u2028ß","i":0}\n\n'.encode()
END = b'id: 3\nevent: end\ndata: {"tokens_out":1,"decode_ms":1,"finish_reason":"stop"}\n\n'


class Handler(BaseHTTPRequestHandler):
    """Answers as its server's script says."""

    protocol_version = "HTTP/1.1"
    server: Daemon

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.script(self)

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("X-Correlation-Id", self.headers.get("X-Correlation-Id", "fresh"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-cache"),
            ("X-Accel-Buffering", "no"),
            ("X-Correlation-Id", "fresh"),
            ("Transfer-Encoding", "chunked"),
        ):
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def stream(self, *chunks: bytes) -> None:
        self.begin_stream()
        for data in chunks:
            self.chunk(data)
        self.chunk(b"")


class Daemon(ThreadingHTTPServer):
    """A server whose answers a test writes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Callable[[Handler], None] = healthy
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def healthy(handler: Handler) -> None:
    handler.answer(200, b'{"status":"ok"}')


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def session(daemon: Daemon) -> Iterator[VerifyingSession]:
    with VerifyingSession(daemon.url, token="secret") as opened:
        yield opened


# -- single answers
def test_a_right_answer_is_recorded(session: VerifyingSession) -> None:
    """What passed stands in the ledger and in the coverage."""
    assert session.get("/healthz", headers={"X-Correlation-Id": "mine"}).json() == {"status": "ok"}
    assert session.ledger == [("mine", 200)]
    assert session.coverage == {("getHealth", 200)}
    assert session.seen_headers == {("getHealth", "X-Correlation-Id")}


def test_a_wrong_answer_raises_in_the_call_that_got_it(daemon: Daemon, session: VerifyingSession) -> None:
    """No test can overlook it, and nothing is recorded."""
    daemon.script = lambda handler: handler.answer(200, b'{"status":"fine"}')
    with pytest.raises(ContractViolation, match="getHealth 200"):
        session.get("/healthz")
    assert (session.ledger, session.coverage) == ([], set())


def test_the_door_sends_what_it_was_given(daemon: Daemon, session: VerifyingSession) -> None:
    """Token, no compression, an absolute URL as it is."""
    session.get(f"{daemon.url}/healthz")
    path, headers = daemon.asked[0]
    assert (path, headers["Authorization"], headers["Accept-Encoding"]) == ("/healthz", "Bearer secret", "identity")


def test_redirects_are_not_followed(daemon: Daemon, session: VerifyingSession) -> None:
    """A redirect is an answer like any other, and no contract has one."""
    daemon.script = lambda handler: handler.answer(307, b"", Location="/healthz")
    with pytest.raises(ContractViolation, match="307 is not declared"):
        session.get("/readyz", allow_redirects=True)
    assert len(daemon.asked) == 1


def test_there_is_no_way_around_verification(session: VerifyingSession) -> None:
    """`stream=True` would give an answer nobody judged."""
    with pytest.raises(TypeError, match="events"):
        session.get("/healthz", stream=True)


def test_sessions_may_share_a_record(daemon: Daemon) -> None:
    """A suite has one record though every test has its own session."""
    record = Record()
    for _ in range(2):
        with VerifyingSession(daemon.url, record=record) as session:
            session.get("/healthz")
    assert record.ledger == [("fresh", 200)] * 2


# -- streams
def test_events_arrive_whole_however_they_were_cut(daemon: Daemon, session: VerifyingSession) -> None:
    """Chunks may end anywhere; line separators inside a text split nothing."""
    body = b"retry: 3000\n\n" + STARTED + b": keep-alive\n\n" + TOKEN + END
    daemon.script = lambda handler: handler.stream(*(body[at : at + 1] for at in range(len(body))))
    with session.events(TASK) as stream:
        events = list(stream)
    assert [(event.id, event.name) for event in events] == [(1, "started"), (2, "token"), (3, "end")]
    assert events[1].data == {"t": "\u2028ß", "i": 0}
    assert b"".join(event.raw for event in events) == STARTED + TOKEN + END
    assert stream.raw == body
    assert session.seen_events == {("streamTask", "started"), ("streamTask", "token"), ("streamTask", "end")}
    assert (stream.status, stream.correlation_id, stream.headers["Cache-Control"]) == (200, "fresh", "no-cache")


def test_events_arrive_when_they_are_sent(daemon: Daemon, session: VerifyingSession) -> None:
    """The first event can be read before the server has written the second."""
    seen = Signal()

    def script(handler: Handler) -> None:
        handler.begin_stream()
        handler.chunk(STARTED)
        assert seen.wait(10)
        handler.chunk(TOKEN + END)
        handler.chunk(b"")

    daemon.script = script
    with session.events(TASK) as stream:
        assert next(stream).name == "started"
        seen.set()
        assert [event.name for event in stream] == ["token", "end"]
        assert list(stream) == []


def test_a_whole_stream_is_judged_whole(daemon: Daemon, session: VerifyingSession) -> None:
    """A stream that ends without its terminal event raises when it ends."""
    daemon.script = lambda handler: handler.stream(STARTED)
    with session.events(TASK) as stream, pytest.raises(ContractViolation, match="ends without"):
        list(stream)
    assert session.ledger == []


def test_a_stream_that_was_left_is_judged_as_far_as_it_got(daemon: Daemon, session: VerifyingSession) -> None:
    """Leaving early needs no terminal event, and does not excuse what was read."""
    daemon.script = lambda handler: handler.stream(STARTED)
    with session.events(TASK) as stream:
        next(stream)
    assert session.ledger == [("fresh", 200)]
    daemon.script = lambda handler: handler.stream(TOKEN)
    with pytest.raises(ContractViolation, match="breaks the order"), session.events(TASK) as stream:
        next(stream)


def test_a_malformed_frame_raises_at_once(daemon: Daemon, session: VerifyingSession) -> None:
    """A reader never sees half-understood events."""
    daemon.script = lambda handler: handler.stream(STARTED, b"data: {\n\n")
    with session.events(TASK) as stream, pytest.raises(ContractViolation, match="event and data"):
        list(stream)


def test_a_resumed_stream_is_judged_as_one(daemon: Daemon, session: VerifyingSession) -> None:
    """Both ways of resuming are sent, and the events must be what follows."""
    daemon.script = lambda handler: handler.stream(TOKEN, END)
    assert len(list(session.events(TASK, last_event_id=1))) == 2
    assert len(list(session.events(TASK, after=1))) == 2
    assert daemon.asked[0][1]["Last-Event-ID"] == "1"
    assert daemon.asked[1][0] == f"{STREAM}?after=1"
    with pytest.raises(ContractViolation, match="expected 3"):
        list(session.events(TASK, after=2))


def test_an_answer_that_is_no_stream_is_exposed(daemon: Daemon, session: VerifyingSession) -> None:
    """A refusal has no events and a verified body."""
    body = json.dumps({"code": "NOT_FOUND", "message": "No such task."}).encode()
    daemon.script = lambda handler: handler.answer(404, body)
    with session.events(TASK, headers={"X-Correlation-Id": "mine"}) as stream:
        assert list(stream) == []
    assert (stream.status, stream.response.json()["code"]) == (404, "NOT_FOUND")
    assert session.ledger == [("mine", 404)]
    daemon.script = lambda handler: handler.answer(404, b"{}")
    with pytest.raises(ContractViolation, match="required property"):
        session.events(TASK)


def test_a_broken_connection_is_an_error_unless_it_is_expected(daemon: Daemon, session: VerifyingSession) -> None:
    """A daemon that dies ends the stream; a test that kills it says so. What came before is judged either way."""

    def script(handler: Handler) -> None:
        handler.begin_stream()
        handler.chunk(STARTED)
        handler.close_connection = True

    daemon.script = script
    with session.events(TASK) as stream, pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(stream)
    with session.events(TASK, cut=True) as stream:
        assert [event.name for event in stream] == ["started"]
    assert session.ledger == [("fresh", 200)] * 2


def test_a_farewell_is_an_end_for_those_who_expect_it(daemon: Daemon, session: VerifyingSession) -> None:
    """A stream that ends in order but without a terminal event passes with `cut`."""
    daemon.script = lambda handler: handler.stream(STARTED)
    assert [event.name for event in session.events(TASK, cut=True)] == ["started"]


def test_other_bodies_can_be_read_piece_by_piece(session: VerifyingSession) -> None:
    """`open` verifies any body once it has been read."""
    with session.open("GET", "/healthz") as body:
        assert body.read() == b'{"status":"ok"}'
    assert body.response.json() == {"status": "ok"}
    assert session.ledger == [("fresh", 200)]


def test_streams_may_be_read_in_threads(daemon: Daemon, session: VerifyingSession) -> None:
    """Many readers at once; every exchange is recorded once."""
    daemon.script = lambda handler: handler.stream(STARTED, TOKEN, END)
    counts: list[int] = []
    readers = [Thread(target=lambda: counts.append(len(list(session.events(TASK))))) for _ in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert counts == [3] * 12
    assert len(session.ledger) == 12
