"""Streams over real sockets: resuming at every point, many readers, slow ones, live frames, and readers who leave."""

from __future__ import annotations

import gc
import json
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from orchestratord.connection import Protocol
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.mock import MockScript
from orchestratord.services.streams import Cursor
from orchestratord.testing.frames import Frame
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import EventStream, VerifyingSession
from orchestratord.wire import sse
from orchestratord.wire.responses import _Pipe
from tests.http.support import RawConnection, readers, state_of, submit, wait_for

ROOMY = mock_settings(pools=[mock_pool(ctx=100_000)])
TOKENS = 6
LAST = TOKENS + 2  # started, the tokens, end


def log_of(frames: list[Frame]) -> list[bytes]:
    """The bytes of every log event; live frames have no id."""
    return [frame.raw for frame in frames if frame.id is not None]


def names(frames: list[Frame]) -> list[str]:
    return [frame.name for frame in frames]


def hold(app: LiveApp) -> None:
    app.call(app.engine().hold)


def step(app: LiveApp, outputs: int = 1) -> None:
    """Let so many tokens leave the engine, and everything they set off happen."""
    app.call(lambda: app.engine().step(outputs))
    app.settle()


def release(app: LiveApp) -> None:
    app.call(app.engine().release_hold)
    app.settle()


def take(events: EventStream, wanted: int) -> list[Frame]:
    """Events up to and with the log event of this id."""
    found = []
    while not found or found[-1].id != wanted:
        found.append(next(events))
    return found


def finished(app: LiveApp, session: VerifyingSession, **fields: Any) -> tuple[str, list[bytes]]:
    """A task that is over, and its log."""
    task_id = submit(session, **{"max_tokens": TOKENS, **fields})
    app.settle()
    with session.events(task_id) as events:
        return task_id, log_of(list(events))


# -- resuming ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["last_event_id", "after"])
def test_a_finished_stream_resumes_at_every_point(app: LiveApp, session: VerifyingSession, by: str) -> None:
    """Exactly what was missed, byte for byte; with nothing left to come, 204."""
    task_id, log = finished(app, session)
    assert len(log) == LAST
    for seen in range(LAST):
        with session.events(task_id, **{by: seen}) as events:
            assert log_of(list(events)) == log[seen:]
    with session.events(task_id, **{by: LAST}) as events:
        assert events.status == 204


@pytest.mark.parametrize("by", ["last_event_id", "after"])
@pytest.mark.parametrize("there", range(1, TOKENS + 2))
def test_a_running_stream_resumes_at_every_point(app: LiveApp, session: VerifyingSession, by: str, there: int) -> None:
    """With `there` events in the log, from each of them on: no gap and no repetition where replay meets the tail."""
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    step(app, there - 1)
    with ExitStack() as stack:
        streams = [stack.enter_context(session.events(task_id, **{by: seen})) for seen in range(there + 1)]
        heads = [take(events, there) if seen < there else [] for seen, events in enumerate(streams)]
        release(app)
        bodies = [log_of(head + list(events)) for head, events in zip(heads, streams, strict=True)]
    assert len(bodies[0]) == LAST
    for seen, body in enumerate(bodies):
        assert body == bodies[0][seen:]


def test_resuming_again_and_again_gives_the_log_once(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    seen: list[Frame] = []
    for wanted in range(1, LAST):
        if wanted > 1:
            step(app)
        with session.events(task_id, last_event_id=wanted - 1) as events:
            seen += take(events, wanted)
    release(app)
    with session.events(task_id, last_event_id=LAST - 1) as events:
        seen += list(events)
    with session.events(task_id) as events:
        assert log_of(seen) == log_of(list(events))


def test_last_event_id_beats_after(app: LiveApp, session: VerifyingSession) -> None:
    task_id, log = finished(app, session)
    with session.events(task_id, last_event_id=5, after=2) as events:
        assert log_of(list(events)) == log[5:]


@pytest.mark.parametrize("given", ["-1", "abc", "1.0", "0x1", "+1", "1e1", str(LAST + 1), "9" * 19, "9" * 64, "٣"])
def test_an_id_that_no_event_has_is_400(app: LiveApp, session: VerifyingSession, given: str) -> None:
    task_id, _ = finished(app, session)
    with session.events(task_id, headers={"Last-Event-ID": given.encode()}) as events:  # type: ignore[dict-item]
        assert events.status == 400
    assert readers(app) == 0


def test_an_id_of_20_kb_is_refused(app: LiveApp) -> None:
    with RawConnection(app.url) as connection:
        connection.get("/v1/tasks/6f1d2c3b-4a59-4e68-8777-86958493a2b1/stream", Last_Event_ID="1" * 20_000)
        assert connection.answer().status == 431


def test_an_event_that_is_still_to_come_cannot_be_resumed_from(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    step(app)
    with session.events(task_id, last_event_id=3) as events:
        assert events.status == 400
    release(app)


# -- many readers --------------------------------------------------------------------------------------------
def test_every_reader_gets_the_same_bytes(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    with ExitStack() as stack:
        streams = [stack.enter_context(session.events(task_id)) for _ in range(8)]
        assert readers(app) == 8
        release(app)
        bodies = [log_of(list(events)) for events in streams]
    assert all(body == bodies[0] for body in bodies)
    wait_for(lambda: readers(app) == 0, "all seats are given back")


def test_a_reader_who_leaves_does_not_disturb_another(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    with session.events(task_id) as stays:
        with session.events(task_id) as leaves:
            next(leaves)
        wait_for(lambda: readers(app) == 1, "the one who left is noticed")
        app.advance(100)  # far beyond the grace for the last reader
        release(app)
        assert list(stays)[-1].name == "end"


def test_a_slow_reader_delays_nobody() -> None:
    """One socket takes nothing while another gets every token, and then catches up without a gap."""
    tokens = 30_000
    with LiveApp(ROOMY) as app, app.session() as session:
        hold(app)
        task_id = submit(session, max_tokens=tokens, ctx=100_000)
        with RawConnection(app.url, receive_buffer=4096) as slow:
            slow.get(f"/v1/tasks/{task_id}/stream")
            assert slow.head()[0] == 200
            with session.events(task_id) as fast:
                release(app)
                log = log_of(list(fast))
            assert len(log) == tokens + 2
            late = b"".join(slow.chunks())
        assert [frame + b"\n\n" for frame in late.split(b"\n\n") if frame.startswith(b"id: ")] == log


def test_a_reader_that_takes_nothing_is_cut() -> None:
    """After 30 s, and the log says so; it holds little memory till then; the task goes on for the others."""
    with LiveApp(ROOMY) as app, app.session() as session:
        hold(app)
        task_id = submit(session, max_tokens=40_000, ctx=100_000)
        with RawConnection(app.url, receive_buffer=4096) as stalled, session.events(task_id) as reading:
            stalled.get(f"/v1/tasks/{task_id}/stream")
            assert stalled.head()[0] == 200
            step(app, 39_000)
            take(reading, 39_001)
            assert readers(app) == 2
            with RawConnection(app.url, receive_buffer=4096) as late:
                late.get(f"/v1/tasks/{task_id}/stream")  # two megabytes behind
                assert late.head()[0] == 200
                connections = app._server.server_state.connections
                held = app.call(lambda: [c.transport.get_write_buffer_size() for c in connections])
                assert 0 < max(held) <= 80 * 1024  # of all that they have not read
            wait_for(lambda: readers(app) == 2, "the late one has left")
            app.advance(29)
            assert readers(app) == 2
            app.advance(5)
            wait_for(lambda: readers(app) == 1, "the stalled reader is cut")
            told = [line for line in app.log.getvalue().splitlines() if '"event":"reader_cut"' in line]
            assert [json.loads(line)["job_id"] for line in told] == [task_id]
            release(app)
            assert list(reading)[-1].name == "end"


# -- what a token may contain --------------------------------------------------------------------------------
NASTY = [
    "a\rb",
    "a\nb",
    "a\r\nb",
    "\n\n",
    "\u2028",
    "\u2029",
    "\u0085",
    "\x0b\x0c\x1c\x1d\x1e",
    "\x00",
    "\ufeff",
    "\U0001f600",
    "data: x\n\nevent: end\ndata: {}\n\n",
    "\nid: 99\n",
    "\r\revent: error\r\r",
    'id: 1\\n"}\n\n',
    ": comment\n\n",
    "retry: 1\n\n",
    "</script>",
    "\x7f\x80",
    " ",
]


def test_no_token_forges_a_frame(app: LiveApp, session: VerifyingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the engine writes arrives unchanged, in frames of its own."""
    monkeypatch.setattr(mock_text, "words", lambda job: iter(NASTY * 2))
    task_id = submit(session, max_tokens=len(NASTY))
    app.settle()
    with session.events(task_id) as events:
        frames = list(events)
        raw = events.raw
    assert [frame.data["t"] for frame in frames if frame.name == "token"] == NASTY
    assert b"\r" not in raw
    assert raw.count(b"event: end") == 1 + sum("event: end" in text for text in NASTY)
    assert raw.count(b"\n\n") == len(frames) + 1  # and the retry time
    artifact = session.get(f"/v1/artifacts/{session.get(f'/v1/tasks/{task_id}').json()['transcript_id']}").json()
    assert artifact["content"]["text"] == "".join(NASTY)


# -- live frames ---------------------------------------------------------------------------------------------
def test_the_headers_of_a_stream(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session)
    with session.events(task_id) as events:
        assert events.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert events.headers["Cache-Control"] == "no-cache"
        assert events.headers["X-Accel-Buffering"] == "no"
        next(events)
        assert events.raw.startswith(b"retry: 3000\n\n")
        release(app)
        list(events)
        assert events.raw.count(b"retry:") == 1


def test_started_comes_at_once_though_the_task_waits(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    for _ in range(2):
        submit(session)
    waiting = submit(session)
    app.settle()
    with session.events(waiting) as events:
        assert next(events).name == "started"
        assert state_of(session, waiting) == "queued"
        release(app)
        assert list(events)[-1].name == "end"


def test_metrics_stand_behind_the_first_token_and_before_the_end(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session, max_tokens=4)
    with session.events(task_id) as events:
        next(events)
        release(app)
        found = names(list(events))
    assert found[:2] == ["token", "metrics"]
    assert found[-2:] == ["metrics", "end"]
    assert found.count("metrics") == 2


def test_a_replay_has_no_metrics(app: LiveApp, session: VerifyingSession) -> None:
    task_id, _ = finished(app, session)
    with session.events(task_id) as events:
        assert "metrics" not in names(list(events))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_that_is_over_leaves_nothing_for_the_collector(
    app: LiveApp, session: VerifyingSession, leaves: bool
) -> None:
    """No circle of cursor, pipe and what writes: a daemon whose tasks leave none is not held up to look for them."""
    hold(app)
    task_id = submit(session)
    gc.collect()
    gc.disable()
    try:
        with session.events(task_id) as events:
            next(events)
            step(app)
            assert next(events).name == "token"
            if not leaves:
                release(app)
                assert list(events)[-1].name == "end"
        wait_for(lambda: app.call(lambda: app.daemon.streams.open_cursors == 0), "the reader is gone")
        app.settle()
        left = app.call(lambda: [type(one).__name__ for one in gc.get_objects() if type(one) in (Cursor, _Pipe)])
    finally:
        gc.enable()
    assert left == []
    release(app)


def test_metrics_come_every_second_while_running(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session)
    with session.events(task_id) as events:
        next(events)
        step(app)
        assert names([next(events), next(events)]) == ["token", "metrics"]
        for _ in range(5):
            app.advance(1.0)
            assert next(events).name == "metrics"
        release(app)
        rest = names(list(events))
    assert rest == ["token"] * 4 + ["metrics", "end"]


def test_metrics_come_every_five_seconds_while_queued(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    for _ in range(2):
        submit(session)
    waiting = submit(session)
    app.settle()
    with session.events(waiting) as events:
        next(events)
        for _ in range(3):
            app.advance(5.0)
            frame = next(events)
            assert frame.name == "metrics"
            assert frame.data["queue_depth"] == 1
            assert 0 <= frame.data["on_time_probability"] <= 1
        app.advance(4.9)
        release(app)
        rest = list(events)
    assert rest[0].name == "token"


def test_the_cadence_is_configurable_and_silence_is_kept_alive() -> None:
    """With metrics far apart a comment comes every 15 s, so that no proxy takes the stream for dead."""
    quiet = mock_settings(streams={"metrics_ms": 3_600_000, "metrics_queued_ms": 3_600_000})
    with LiveApp(quiet) as app, app.session() as session:
        hold(app)
        task_id = submit(session, deadline_ms=86_400_000)
        with session.events(task_id) as events:
            next(events)
            app.advance(14.9)
            app.advance(0.2)
            for _ in range(3):
                app.advance(15.0)
            release(app)
            list(events)
            comments = events.raw.count(sse.KEEP_ALIVE)
            assert 3 <= comments <= 4
            assert events.raw.count(b"event: metrics") == 2


def test_a_comment_comes_after_a_silence_of_15_seconds_and_not_before() -> None:
    """However often the daemon looks after its streams."""
    looking = mock_settings(streams={"metrics_ms": 3_600_000, "metrics_queued_ms": 1000})
    with LiveApp(looking) as app, app.session() as session:
        hold(app)
        task_id = submit(session, deadline_ms=86_400_000)
        with session.events(task_id) as events:
            next(events)
            for _ in range(40):
                app.advance(1.0)
            release(app)
            list(events)
            assert events.raw.count(sse.KEEP_ALIVE) == 2


# -- readers who leave ---------------------------------------------------------------------------------------
def left_alone(app: LiveApp, session: VerifyingSession, **fields: Any) -> str:
    """A running task whose one reader has just left."""
    hold(app)
    task_id = submit(session, **fields)
    with session.events(task_id) as events:
        next(events)
        step(app)
        next(events)
    wait_for(lambda: readers(app) == 0, "the reader's leaving is noticed")
    return task_id


def test_the_last_reader_gone_the_task_is_canceled_after_the_grace(app: LiveApp, session: VerifyingSession) -> None:
    task_id = left_alone(app, session)
    app.advance(29.9)
    assert state_of(session, task_id) == "running"
    app.advance(0.2)
    assert state_of(session, task_id) == "canceled"
    assert app.call(lambda: app.engine().busy_slots) == 0
    assert app.call(lambda: app.engine().aborted) == 2  # the probe's one and this one
    assert 'reason="disconnect"' in session.get("/metrics").text


def test_a_reader_who_returns_in_time_stops_the_grace(app: LiveApp, session: VerifyingSession) -> None:
    task_id = left_alone(app, session)
    app.advance(29)
    with session.events(task_id, last_event_id=2) as events:
        app.advance(30)
        assert state_of(session, task_id) == "running"
        release(app)
        assert list(events)[-1].name == "end"


def test_the_grace_begins_anew_with_every_leaving(app: LiveApp, session: VerifyingSession) -> None:
    task_id = left_alone(app, session)
    app.advance(29)
    with session.events(task_id, last_event_id=2):
        pass
    wait_for(lambda: readers(app) == 0, "the reader's leaving is noticed")
    app.advance(29)
    assert state_of(session, task_id) == "running"
    app.advance(2)
    assert state_of(session, task_id) == "canceled"


def test_on_disconnect_continue_means_it(app: LiveApp, session: VerifyingSession) -> None:
    task_id = left_alone(app, session, on_disconnect="continue")
    app.advance(50)
    assert state_of(session, task_id) == "running"
    release(app)
    assert state_of(session, task_id) == "ended"


def test_a_task_nobody_ever_read_is_not_canceled(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    task_id = submit(session)
    app.advance(100)
    assert state_of(session, task_id) == "starting"
    release(app)
    assert state_of(session, task_id) == "ended"


def test_a_queued_task_is_canceled_too_and_never_runs(app: LiveApp, session: VerifyingSession) -> None:
    hold(app)
    for _ in range(2):
        submit(session)
    waiting = submit(session)
    app.settle()
    calls = app.call(lambda: app.engine().calls)
    with session.events(waiting) as events:
        next(events)
    wait_for(lambda: readers(app) == 0, "the reader's leaving is noticed")
    app.advance(31)
    assert state_of(session, waiting) == "canceled"
    release(app)
    assert app.call(lambda: app.engine().calls) == calls


@pytest.mark.parametrize("when", ["before the answer", "after the head"])
def test_seats_do_not_leak(when: str) -> None:
    """200 readers who connect and reset leave nothing behind."""
    with LiveApp() as app, app.session() as session:
        hold(app)
        task_id = submit(session, on_disconnect="continue")
        for _ in range(200):
            connection = RawConnection(app.url)
            connection.get(f"/v1/tasks/{task_id}/stream")
            if when == "after the head":
                assert connection.head()[0] == 200
            connection.reset()
        wait_for(lambda: readers(app) == 0, "every seat is given back")
        wait_for(lambda: app.call(lambda: len(app._server.server_state.tasks)) == 0, "every request has ended")
        assert app.call(lambda: app.daemon.core.tasks[task_id].log.watchers) == 0
        with session.events(task_id) as events:
            release(app)
            assert list(events)[-1].name == "end"


def test_half_closing_is_not_leaving(app: LiveApp) -> None:
    """A client that says it will send no more may still read; it is served or cut, not hung."""
    with app.session() as session, RawConnection(app.url) as connection:
        hold(app)
        task_id = submit(session)
        connection.get(f"/v1/tasks/{task_id}/stream")
        assert connection.head()[0] == 200
        connection.socket.shutdown(socket.SHUT_WR)
        app.settle()
        release(app)
        connection.rest()
        wait_for(lambda: readers(app) == 0, "the seat is given back")


# -- cancel --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("there", range(1, TOKENS + 1))
def test_a_cancel_seals_the_stream_where_it_is(app: LiveApp, session: VerifyingSession, there: int) -> None:
    """At every point: nothing but the end comes above what was there, and the 204 names the last event."""
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    step(app, there - 1)
    with session.events(task_id) as events:
        seen = take(events, there)
        answer = session.post(f"/v1/tasks/{task_id}/cancel")
        assert answer.status_code == 204
        release(app)
        seen += list(events)
    last = [frame for frame in seen if frame.id is not None][-1]
    assert (last.id, last.name, last.data["finish_reason"]) == (there + 1, "end", "canceled")
    again = session.post(f"/v1/tasks/{task_id}/cancel")
    assert again.headers["X-Last-Event-Id"] == answer.headers["X-Last-Event-Id"]


def test_the_seal_is_the_id_of_the_last_event(app: LiveApp, session: VerifyingSession) -> None:
    """The contract: id of the last event the stream has or will have."""
    hold(app)
    task_id = submit(session, max_tokens=TOKENS)
    step(app, 2)
    seal = session.post(f"/v1/tasks/{task_id}/cancel").headers["X-Last-Event-Id"]
    release(app)
    assert session.get(f"/v1/tasks/{task_id}").json()["last_event_id"] == int(seal)
    ended, log = finished(app, session)
    assert session.post(f"/v1/tasks/{ended}/cancel").headers["X-Last-Event-Id"] == str(len(log))


# -- failures after the head ---------------------------------------------------------------------------------
def test_a_failure_behind_the_200_is_an_error_event(app: LiveApp, session: VerifyingSession) -> None:
    app.call(lambda: app.engine().play(MockScript(die_after=2)))
    hold(app)
    task_id = submit(session)
    with session.events(task_id) as events:
        next(events)
        release(app)
        frames = list(events)
    assert frames[-1].name == "error"
    assert frames[-1].data["code"] == "WORKER_RESET"
    assert frames[-1].data["retriable"] is True
    assert json.loads(session.get(f"/v1/tasks/{task_id}").text)["state"] == "failed"


def test_a_reader_who_was_refused_keeps_no_task_from_its_tokens() -> None:
    """A request for a stream whose body is no HTTP has had its answer; a task must not be written to what is left of
    it."""
    with LiveApp(mock_settings()) as app, app.session() as session:
        hold(app)
        task_id = submit(session, max_tokens=TOKENS)
        step(app, 2)
        with RawConnection(app.url) as connection:
            head = f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.send(head.encode() + b"zz\r\n")
            assert connection.answer().status == 400
            step(app, 2)
            assert state_of(session, task_id) == "running"
            assert readers(app) == 0
        release(app)
        assert state_of(session, task_id) == "ended"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_reader_who_cannot_be_written_to_loses_its_own_stream_only(version: str) -> None:
    """Every reader is handed a token in the call that appends it: one fault there must not end the task for all."""
    with LiveApp(mock_settings()) as app, app.session() as session, ExitStack() as stack:
        hold(app)
        task_id = submit(session, max_tokens=TOKENS)
        step(app, 2)
        first = stack.enter_context(session.events(task_id))
        seen = take(first, 2)
        bad = stack.enter_context(RawConnection(app.url))
        bad.send(f"GET /v1/tasks/{task_id}/stream HTTP/{version}\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert bad.head()[0] == 200
        last = stack.enter_context(session.events(task_id))
        also = take(last, 2)
        assert readers(app) == 3
        protocols = app.call(lambda: [p for p in gc.get_objects() if isinstance(p, Protocol) and p._bound is not None])
        (broken,) = (p for p in protocols if p.client[1] == bad.socket.getsockname()[1])
        app.call(broken.transport.write_eof)  # what is written behind it raises
        step(app, 1)
        assert readers(app) == 2
        assert state_of(session, task_id) == "running"
        release(app)
        assert log_of(seen + list(first)) == log_of(also + list(last))
        assert state_of(session, task_id) == "ended"
        wait_for(lambda: "writing a stream failed" in app.log.getvalue(), "the log tells of it")
