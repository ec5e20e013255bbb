"""Watchdogs and deadlines, to the tick of the virtual clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestratord.domain.breaker import TRIP_AFTER
from orchestratord.infra.engines.mock import MockScript
from orchestratord.services.sweeps import Watchdogs
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import leases, running, state_of, submit, task


def watched(**limits: int) -> LiveApp:
    return LiveApp(mock_settings(pools=[mock_pool(slots=1, watchdogs=limits)]))


def failure(session: VerifyingSession, task_id: str) -> dict[str, Any]:
    status = session.get(f"/v1/tasks/{task_id}").json()
    assert status["state"] == "failed"
    found: dict[str, Any] = status["error"]
    return found


def test_no_first_token() -> None:
    with watched(first_token_ms=5000) as app, app.session() as session:
        app.call(app.engine().hold)
        task_id = submit(session)
        app.advance(4.9)
        assert state_of(session, task_id) == "starting"
        app.advance(0.5)
        error = failure(session, task_id)
        assert (error["code"], error["retriable"]) == ("DECODE_TIMEOUT", True)
        assert "5 s" in error["message"]


def test_silence_between_tokens() -> None:
    """Every token starts the clock anew; the text so far is in the transcript."""
    with watched(idle_ms=3000, first_token_ms=0) as app, app.session() as session:
        task_id = running(app, session)
        for _ in range(3):
            app.advance(2.5)
            app.call(lambda: app.engine().step(1))
            app.settle()
        assert state_of(session, task_id) == "running"
        app.advance(3.3)
        assert failure(session, task_id)["code"] == "DECODE_TIMEOUT"
        transcript = session.get(f"/v1/tasks/{task_id}").json()["transcript_id"]
        with session.events(task_id) as events:
            text = "".join(event.data["t"] for event in events if event.name == "token")
        assert text.count(" ") >= 4
        assert session.get(f"/v1/artifacts/{transcript}").json()["content"]["text"] == text


@pytest.mark.parametrize(
    ("limits", "first_token", "blames"),
    [
        (Watchdogs(first_token_s=5, idle_s=0, wall_s=0), None, True),
        (Watchdogs(first_token_s=0, idle_s=5, wall_s=0), 100.0, True),
        (Watchdogs(first_token_s=0, idle_s=0, wall_s=5), 100.0, False),
    ],
    ids=["first token", "idle", "wall"],
)
def test_a_limit_is_reached_to_the_tick(limits: Watchdogs, first_token: float | None, blames: bool) -> None:
    """OC-CORE-1022: five seconds are five seconds, not more."""
    task = SimpleNamespace(terminal=False, started=100.0, last_output=100.0, first_token=first_token)
    lease: Any = SimpleNamespace(task=task, pool=SimpleNamespace(id="home"))
    assert limits.verdict(lease, 104.999) is None
    told = limits.verdict(lease, 105.0)
    assert told is not None
    assert told[1] is blames


def test_the_longest_run() -> None:
    """However lively the engine is."""
    with watched(wall_ms=4000) as app, app.session() as session:
        app.engine().token_ms = 100
        task_id = submit(session, max_tokens=400, ctx=1000, deadline_ms=86_400_000)
        app.advance(3.9)
        assert state_of(session, task_id) == "running"
        app.advance(0.5)
        assert failure(session, task_id)["code"] == "DECODE_TIMEOUT"


def test_zero_switches_a_watchdog_off() -> None:
    with watched(first_token_ms=0, idle_ms=0, wall_ms=0) as app, app.session() as session:
        app.call(app.engine().hold)
        task_id = submit(session, deadline_ms=86_400_000)
        app.advance(1000)
        assert state_of(session, task_id) == "starting"
        app.call(lambda: app.engine().step(1))
        app.advance(1000)
        assert state_of(session, task_id) == "running"
        app.call(app.engine().release_hold)
        app.settle()
        assert state_of(session, task_id) == "ended"


@pytest.mark.parametrize("hang_after", [0, 2])
def test_a_hanging_engine_gives_its_slot_back(hang_after: int) -> None:
    """The next task runs on it; the metrics name the watchdog."""
    with watched(first_token_ms=2000, idle_ms=2000) as app, app.session() as session:
        app.engine().play(MockScript(hang_after=hang_after))
        hanging, waiting = submit(session), submit(session)
        app.advance(3)
        assert failure(session, hanging)["code"] == "DECODE_TIMEOUT"
        app.advance(1)
        assert state_of(session, waiting) == "ended"
        assert (leases(app), app.engine().busy_slots) == (0, 0)
        assert 'reason="watchdog"' in session.get("/metrics").text


def test_the_time_in_the_queue_does_not_count() -> None:
    with watched(first_token_ms=2000, idle_ms=2000, wall_ms=2000) as app, app.session() as session:
        app.call(app.engine().hold)
        first, waiting = submit(session), submit(session)
        app.advance(1.9)
        assert state_of(session, waiting) == "queued"
        assert session.post(f"/v1/tasks/{first}/cancel").status_code == 204
        app.advance(1.5)
        assert state_of(session, waiting) == "starting"
        app.call(app.engine().release_hold)
        app.settle()
        assert state_of(session, waiting) == "ended"


# -- deadlines -----------------------------------------------------------------------------------------------
def test_a_deadline_while_queued_spares_the_engine() -> None:
    with watched(first_token_ms=0) as app, app.session() as session:
        app.call(app.engine().hold)
        submit(session, deadline_ms=86_400_000)
        app.settle()
        late = submit(session, deadline_ms=5000)
        calls = app.engine().calls
        app.advance(4.9)
        assert state_of(session, late) == "queued"
        app.advance(0.2)
        error = failure(session, late)
        assert (error["code"], error["retriable"]) == ("DEADLINE_UNMET", True)
        app.call(app.engine().release_hold)
        app.settle()
        assert app.engine().calls == calls
        assert 'reason="deadline"' in session.get("/metrics").text


def test_a_deadline_while_running_aborts_and_keeps_the_text() -> None:
    with watched(idle_ms=0) as app, app.session() as session:
        task_id = running(app, session, deadline_ms=5000)
        app.advance(5.1)
        assert failure(session, task_id)["code"] == "DEADLINE_UNMET"
        app.advance(1)
        assert (leases(app), app.engine().busy_slots) == (0, 0)
        transcript = session.get(f"/v1/tasks/{task_id}").json()["transcript_id"]
        content = session.get(f"/v1/artifacts/{transcript}").json()["content"]
        assert content["text"]
        assert content["events"][-1]["event"] == "error"


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    with LiveApp() as app, app.session() as session:
        body = task(max_tokens=400, ctx=1000, deadline_ms=50)
        refusal = session.post("/v1/tasks", json=body)
        assert (refusal.status_code, refusal.json()["code"]) == (400, "DEADLINE_UNMET")
        assert refusal.json()["retriable"] is True
        assert refusal.json()["details"]["predicted_end_ms"] > 50


@pytest.mark.parametrize("after", [0, 1], ids=["no first token", "silence"])
def test_an_engine_that_hangs_task_after_task_gets_no_more(after: int) -> None:
    """OD-25, D10: its health is fine, so only tasks tell; no more work until a probe succeeds."""
    with watched(first_token_ms=1000, idle_ms=1000) as app, app.session() as session:
        engine = app.engine()
        engine.play(MockScript(jobs=1000, hang_after=after))
        for left in reversed(range(TRIP_AFTER)):
            task_id = submit(session)
            app.advance(1.5)
            assert failure(session, task_id)["code"] == "DECODE_TIMEOUT"
            assert session.get("/v1/pools/home/health").json()["ready"] is (left > 0)
        answer = session.post("/v1/tasks", json=task())
        assert (answer.status_code, answer.json()["code"]) == (503, "REPLICA_EXHAUSTED")
        app.advance(30)
        assert session.get("/v1/pools/home/health").json()["ready"] is False
        engine.clear()
        app.advance(120)
        assert session.get("/v1/pools/home/health").json()["ready"] is True
        task_id = submit(session)
        app.settle()
        assert state_of(session, task_id) == "ended"


def test_a_long_run_is_not_held_against_the_engine() -> None:
    """OD-25: it gave all it was asked for; the limit is ours."""
    with watched(wall_ms=1000) as app, app.session() as session:
        app.engine().token_ms = 100
        for _ in range(TRIP_AFTER + 1):
            task_id = submit(session, max_tokens=400, ctx=1000, deadline_ms=86_400_000)
            app.advance(2)
            assert failure(session, task_id)["code"] == "DECODE_TIMEOUT"
        assert session.get("/v1/pools/home/health").json()["ready"] is True
