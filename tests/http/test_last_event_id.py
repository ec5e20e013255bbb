"""Where a reader may resume from: Last-Event-ID and `after`, on waiting, running and ended tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestratord.testing.live import LiveApp
from tests.http.support import Answer, RawConnection, envelope_of, readers, submit

LAST = 8  # started, six tokens, end
STATES = ("queued", "running", "ended")
THERE = {"queued": 1, "running": 3, "ended": LAST}  # id of the last event so far


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[LiveApp, dict[str, str]]]:
    """A daemon and one task in each state, which stay so."""
    with LiveApp() as app, app.session() as session:
        ended = submit(session, max_tokens=6)
        app.advance(1)
        app.call(app.engine().hold)
        running = submit(session, max_tokens=6, deadline_ms=3_600_000)
        app.settle()
        app.call(lambda: app.engine().step(2))
        app.settle()
        submit(session)
        yield app, {"ended": ended, "running": running, "queued": submit(session, deadline_ms=3_600_000)}
        app.call(app.engine().release_hold)


def ask(app: LiveApp, task_id: str, header: bytes | None, query: str = "") -> Answer:
    """The answer; of a stream that goes on only its head and what came at once."""
    with RawConnection(app.url) as connection:
        line = b"" if header is None else b"Last-Event-ID:" + header + b"\r\n"
        connection.send(
            b"GET /v1/tasks/%b/stream%b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n"
            % (task_id.encode(), query.encode(), line)
        )
        status, headers = connection.head()
        if status != 200:
            return Answer(status, headers, connection.exactly(int(dict(headers).get("content-length", "0"))))
        return Answer(status, headers, connection.until(b"\n\n"))


NONE = {  # what is no id of any event: 400, on every task
    "negative": b"-1",
    "words": b"abc",
    "a fraction": b"1.0",
    "hexadecimal": b"0x1",
    "a sign": b"+1",
    "an exponent": b"1e9",
    "a separator": b"1_0",
    "two numbers": b"1, 2",
    "a space within": b"1 2",
    "empty": b"",
    "a blank": b" ",
    "quoted": b'"1"',
    "Arabic digits": "\u0661".encode(),
    "superscript": "\u00b2".encode(),
    "full width": "\uff11".encode(),
    "Latin-1": b"\xb2",
    "invalid UTF-8": b"\xff",
    "a percent code": b"%31",
    "true": b"true",
    "null": b"null",
    "21 digits": b"1" * 21,
    "4,300 digits and more": b"1" * 5000,
    "beyond int64": b"9223372036854775808",
    "beyond uint64": b"18446744073709551616",
    "a thousand million": b"1000000000",
    "markup": b"<script>",
    "an injection": b"1; DROP TABLE tasks",
    "a path": b"../1",
    "an escape": b"1\\n",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("given", NONE.values(), ids=NONE)
def test_what_is_no_id_is_400(world: tuple[LiveApp, dict[str, str]], state: str, given: bytes) -> None:
    """C5: and costs no seat."""
    app, tasks = world
    problem = envelope_of(ask(app, tasks[state], given), 400)
    assert problem.get("details", {}).get("rule", "last_event_id") == "last_event_id"
    assert readers(app) == 0


@pytest.mark.parametrize("given", [b"1\x00", b"\x001", b"1\x1b[0m", b"1\r2"], ids=repr)
def test_what_is_no_header_is_400(world: tuple[LiveApp, dict[str, str]], given: bytes) -> None:
    app, tasks = world
    envelope_of(ask(app, tasks["ended"], given), 400)


def test_a_header_of_20_kb_is_431(world: tuple[LiveApp, dict[str, str]]) -> None:
    app, tasks = world
    envelope_of(ask(app, tasks["ended"], b"1" * 20_000), 431)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("beyond", [1, 2, 100])
def test_an_event_that_has_not_happened_is_400(world: tuple[LiveApp, dict[str, str]], state: str, beyond: int) -> None:
    """Not even the very next one: whoever names it has not received it from us."""
    app, tasks = world
    problem = envelope_of(ask(app, tasks[state], b"%d" % (THERE[state] + beyond)), 400)
    assert str(THERE[state]) in problem["message"]


@pytest.mark.parametrize("state", STATES)
def test_every_event_there_is_can_be_resumed_from(world: tuple[LiveApp, dict[str, str]], state: str) -> None:
    """0 is the beginning; the last of an ended task is 204; leading zeros and spaces around change nothing."""
    app, tasks = world
    for seen in range(THERE[state] + 1):
        for given in (b" %d", b" 00%d ", b"%d\t"):
            answer = ask(app, tasks[state], given % seen)
            assert answer.status == (204 if (state, seen) == ("ended", LAST) else 200), (seen, given)


@pytest.mark.parametrize("query", ["?after=0", "?after=2", "?after=99"])
def test_the_header_counts_and_not_the_query(world: tuple[LiveApp, dict[str, str]], query: str) -> None:
    app, tasks = world
    assert ask(app, tasks["ended"], b"8", query).status == 204
    assert ask(app, tasks["ended"], b"9", query).status == 400
    assert ask(app, tasks["ended"], b"abc", query).status == 400


def test_two_headers_are_one_decision(world: tuple[LiveApp, dict[str, str]]) -> None:
    app, tasks = world
    assert ask(app, tasks["ended"], b"8\r\nLast-Event-ID: 1").status in (204, 400)
