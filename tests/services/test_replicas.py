"""Replicas: proven before they are used, seen when they fall, brought back, and their slots never given out twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.services.replicas import HEALTH_LIMIT_S, POLL_S
from orchestratord.services.runs import ATTEMPTS
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import health, leases, records, running, state_of, submit, task


@contextmanager
def prepared(
    before: Callable[[MockEngine], object] | None = None, *, slots: int = 2, **fields: Any
) -> Iterator[tuple[LiveApp, MockEngine, VerifyingSession]]:
    """An app whose one engine has been changed by `before`; without that, it is ready."""
    app = LiveApp(mock_settings(pools=[mock_pool(slots=slots, **fields)]))
    assert app.clock is not None
    engine = app.daemon.mocks["home", "r0"] = MockEngine(clock=app.clock, slots=slots)
    if before is not None:
        before(engine)
    app.start(ready=before is None)
    try:
        with app.session() as session:
            yield app, engine, session
    finally:
        app.stop()


# -- coming up -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"engine_version": "v" * 1000}, {"engine_version": "v" * 128}),
        ({"engine_version": ""}, {"engine_version": "unknown"}),
        ({"ctx": 1 << 39, "slots": 1 << 39}, {"ctx_max": 2**31 - 1, "slots_total": 4096}),
    ],
)
def test_what_an_engine_says_of_itself_fits_into_answers(said: dict[str, Any], shown: dict[str, Any]) -> None:
    """OC-CTRL-2061: no engine can make the daemon break its contract."""
    with prepared(lambda engine: engine.change(**said)) as (app, _, session):
        app.advance(1)
        task_id = submit(session)
        app.settle()
        assert state_of(session, task_id) == "ended"
        assert session.get("/v1/capabilities").status_code == 200
        replica = health(session)["replicas"][0]
        assert {name: replica[name] for name in shown} == shown


def test_a_replica_decodes_and_cancels_before_it_is_ready() -> None:
    """Two jobs: one to its end, one left early; then no slot is busy."""
    with prepared() as (_, engine, session):
        assert (engine.calls, engine.aborted, engine.busy_slots) == (2, 1, 0)
        found = health(session)
        assert (found["live"], found["ready"], found["slots_total"]) == (True, True, 2)
        assert found["replicas"][0]["engine_version"] == "mock-1"


@pytest.mark.parametrize(
    "script",
    [
        MockScript(refuse="no"),
        MockScript(full=True),
        MockScript(die_after=1),
        MockScript(garbage_after=2),
        MockScript(error_after=1),
        MockScript(hang_after=0),
        MockScript(hang_after=3),
    ],
    ids=str,
)
def test_a_replica_that_cannot_decode_is_not_ready(script: MockScript) -> None:
    """It is tried again, and once it can, it is."""
    with prepared(lambda engine: engine.play(script)) as (app, _, session):
        app.settle()
        assert health(session)["ready"] is False
        assert session.get("/readyz").status_code == 503
        assert session.post("/v1/tasks", json=task()).json()["code"] in ("POOL_UNREADY", "POOL_UNAVAILABLE")
        app.advance(61)  # a hanging probe has a limit
        app.advance(5)
        assert health(session)["ready"] is True


def test_a_probe_that_gets_more_than_it_asked_for_ends_at_once() -> None:
    """OC-POOL-30xx: not after a minute of tokens; the pool's health tells it."""
    with prepared(lambda engine: engine.play(MockScript(jobs=1000, endless=True))) as (app, _, session):
        app.settle()
        assert health(session)["ready"] is False
        assert "more tokens than" in health(session)["last_error"]["message"]


def test_a_probe_that_ends_without_an_end_is_no_proof() -> None:
    """The fault is told in the pool's health."""
    with prepared(lambda engine: engine.play(MockScript(jobs=1000, die_after=1))) as (app, _, session):
        app.advance(0.1)
        found = health(session)
        assert found["ready"] is False
        assert "connection closed" in found["last_error"]["message"]
        assert found["replicas"][0]["last_error"]["code"] == found["last_error"]["code"]


def test_a_replica_that_ignores_cancels_is_not_ready() -> None:
    """The second job of the probe is left, and its slot has to come back."""
    with prepared(lambda engine: engine.play(MockScript(), MockScript(ignore_abort=True))) as (app, engine, session):
        app.advance(30)
        assert health(session)["ready"] is False
        app.call(engine.release)
        app.advance(2)
        assert health(session)["ready"] is True


@pytest.mark.parametrize("silent", ["run", "props"])
def test_a_probe_that_takes_too_long_says_so(silent: str) -> None:
    """OC-POOL-30xx: an operator reads what was waited for, and how long."""

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    with prepared(lambda engine: setattr(engine, silent, never)) as (app, _, session):
        app.advance(61)
        said = health(session)["last_error"]["message"]
        assert ("within 60 s" in said, "what it serves" in said) == (True, silent == "props")


def test_a_loading_model_says_how_far_it_is() -> None:
    """Live, not ready; newcomers are told to come back."""
    with prepared(lambda engine: setattr(engine, "loading", "loading model (42 %)")) as (app, engine, session):
        app.advance(1)
        found = health(session)
        assert (found["live"], found["ready"]) == (True, False)
        answer = session.post("/v1/tasks", json=task())
        assert (answer.status_code, answer.json()["code"], answer.json()["retriable"]) == (503, "POOL_UNREADY", True)
        assert "Retry-After" in answer.headers
        assert "loading model (42 %)" in session.get("/readyz").text
        assert engine.calls == 0
        engine.loading = None
        app.advance(1)
        assert health(session)["ready"] is True


def test_a_url_that_nothing_listens_on_is_down() -> None:
    with prepared(lambda engine: setattr(engine, "down", True)) as (app, engine, session):
        app.advance(1)
        found = health(session)
        assert (found["live"], found["ready"]) == (False, False)
        answer = session.post("/v1/tasks", json=task())
        assert (answer.status_code, answer.json()["code"]) == (503, "POOL_UNAVAILABLE")
        app.advance(300)
        assert len(list(records(app, "replica_down"))) < 60, "the pause between attempts grows"
        engine.down = False
        app.advance(31)
        assert health(session)["ready"] is True


def test_an_embedding_engine_proves_itself_with_an_embedding() -> None:
    """OC-POOL-30xx: one result of each of its workloads; completions are nothing it could be asked."""
    with prepared(lambda engine: engine.change(workloads=frozenset({"embedding", "rerank"}))) as (app, engine, session):
        app.advance(1)
        assert health(session)["ready"] is True
        assert (engine.calls, engine.aborted) == (2, 0)
        answer = session.post("/v1/tasks", json=task())
        assert (answer.status_code, answer.json()["details"]["rule"]) == (400, "unsupported_workload")


def test_an_embedding_engine_that_gives_nothing_is_not_ready() -> None:
    def broken(engine: MockEngine) -> None:
        engine.change(workloads=frozenset({"embedding"}))
        engine.play(MockScript(jobs=1000, error_after=0))

    with prepared(broken) as (app, engine, session):
        app.advance(1)
        assert health(session)["ready"] is False
        engine.clear()
        app.advance(31)
        assert health(session)["ready"] is True


# -- falling and coming back ---------------------------------------------------------------------------------
def test_a_replica_that_dies_comes_back() -> None:
    """The next poll notices; what waits is not lost and runs when it is back."""
    with prepared(slots=1) as (app, engine, session):
        engine.down = True
        app.advance(3)
        assert health(session)["ready"] is False
        engine.down = False
        app.advance(31)
        assert health(session)["ready"] is True
        assert len(list(records(app, "replica_ready"))) == 2
        task_id = submit(session)
        app.settle()
        assert state_of(session, task_id) == "ended"


def late(app: LiveApp, engine: MockEngine) -> None:
    """From now on its health takes a minute."""

    async def ready() -> str | None:
        assert app.clock is not None
        await app.clock.sleep(60)
        return None

    engine.ready = ready  # type: ignore[method-assign]


def test_health_that_is_late_ends_no_stream_that_gets_tokens() -> None:
    """OC-POOL-30xx: on a machine that is too busy to ask in time, tokens prove more than an answer does. An engine that
    gives neither is down."""
    with prepared() as (app, engine, session):
        engine.token_ms = 500
        task_id = submit(session, max_tokens=20)
        app.advance(1)
        ready = engine.ready
        late(app, engine)
        app.advance(8)
        assert state_of(session, task_id) == "running"
        app.advance(2)
        assert state_of(session, task_id) == "ended"
        assert list(records(app, "replica_down")) == []
        app.advance(8)
        assert health(session)["ready"] is False
        engine.ready = ready  # type: ignore[method-assign]
        app.advance(61)
        assert health(session)["ready"] is True


def test_a_silent_engine_whose_health_is_late_is_down() -> None:
    with prepared() as (app, engine, session):
        running(app, session)
        late(app, engine)
        app.advance(5)
        found = health(session)
        assert found["ready"] is False
        assert found["last_error"]["message"] == "it did not answer its health check within 2 s"


@pytest.mark.parametrize(
    ("starved_s", "answers", "falls"),
    [(3.0, True, 0), (3.0, False, 1), (0.04, True, 1)],
    ids=["answers the second time", "is silent again", "we were not kept from it"],
)
def test_an_engine_is_asked_once_more_when_we_were_too_busy_to_hear_it(
    starved_s: float, answers: bool, falls: int
) -> None:
    """OC-POOL-30xx: the loop was held up for longer than an answer may take: time was over before it was read."""
    asked: list[float] = []

    async def slowly() -> str | None:
        asked.append(clock.now())
        if len(asked) == 1 or not answers:
            await clock.sleep(60)
        return None

    with prepared() as (app, engine, _):
        clock = app.clock
        assert clock is not None
        engine.ready = slowly  # type: ignore[method-assign]
        app.advance(POLL_S)
        (began,) = asked
        app.call(lambda: clock.reach(began + HEALTH_LIMIT_S + starved_s))  # the timers are still to go off
        app.advance(0)
        app.advance(0 if answers else HEALTH_LIMIT_S)
        assert len(list(records(app, "replica_down"))) == falls


def test_a_broken_stream_makes_it_suspect_at_once() -> None:
    """Not only at the next poll; the task ends with an error, the waiting one runs after the replica is back."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(die_after=1))
        app.call(engine.hold)
        broken, waiting = submit(session), submit(session)
        app.settle()
        engine.loading = "restarting"
        app.call(engine.release_hold)
        app.settle()
        status = session.get(f"/v1/tasks/{broken}").json()
        assert (status["state"], status["error"]["code"]) == ("failed", "WORKER_RESET")
        assert health(session)["ready"] is False, "no time has passed"
        assert state_of(session, waiting) in ("queued", "starting")  # perhaps tried, and to be tried again
        engine.loading = None
        app.advance(31)
        assert state_of(session, waiting) == "ended"
        assert health(session)["ready"] is True
        assert leases(app) == 0
        again = submit(session)
        app.settle()
        assert state_of(session, again) == "ended"


def test_a_client_error_does_not_make_it_suspect() -> None:
    """The engine refuses one job: the job's fault, not the replica's."""
    with prepared() as (app, engine, session):
        engine.play(MockScript(refuse="this grammar has no root"))
        task_id = submit(session)
        app.settle()
        status = session.get(f"/v1/tasks/{task_id}").json()
        assert (status["state"], status["error"]["code"]) == ("failed", "INVALID_PARAMS")
        assert "no root" in status["error"]["message"]
        assert health(session)["ready"] is True
        assert list(records(app, "replica_down")) == []


def test_a_full_engine_is_an_error_that_may_be_retried() -> None:
    with prepared() as (app, engine, session):
        engine.play(MockScript(ATTEMPTS, full=True))
        task_id = submit(session)
        app.advance(10)
        error = session.get(f"/v1/tasks/{task_id}").json()["error"]
        assert (error["code"], error["retriable"]) == ("REPLICA_EXHAUSTED", True)
        assert leases(app) == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (MockScript(ATTEMPTS, die_after=0), "WORKER_RESET"),
        (MockScript(die_after=3), "WORKER_RESET"),
        (MockScript(garbage_after=2), "WORKER_RESET"),
        (MockScript(error_after=2), "WORKER_RESET"),
    ],
    ids=str,
)
def test_every_fault_ends_the_task_once_and_frees_the_slot(script: MockScript, code: str) -> None:
    with prepared() as (app, engine, session):
        engine.play(script)
        task_id = submit(session)
        app.advance(10)
        with session.events(task_id) as events:
            last = list(events)[-1]
        assert (last.name, last.data["code"], last.data["retriable"]) == ("error", code, True)
        app.advance(31)
        assert (leases(app), engine.busy_slots) == (0, 0)


def test_an_engine_that_never_ends_is_stopped_at_its_limit() -> None:
    """max_tokens is the engine's to keep; one that does not is ended by the daemon's own bounds."""
    with prepared(watchdogs={"wall_ms": 5000}) as (app, engine, session):
        engine.play(MockScript(endless=True))
        engine.token_ms = 10
        task_id = submit(session, max_tokens=3)
        app.advance(6)
        assert state_of(session, task_id) in ("ended", "failed")
        app.advance(1)
        assert engine.busy_slots == 0


# -- slots that do not come back -----------------------------------------------------------------------------
def quarantined(session: VerifyingSession) -> int:
    found: int = health(session)["replicas"][0]["slots_quarantined"]
    return found


def test_a_slot_whose_abort_is_ignored_is_not_used_until_it_is_idle() -> None:
    """Quarantined after ten seconds, released when the engine is seen to have let go; never overcommitted."""
    with prepared(slots=2) as (app, engine, session):
        engine.play(MockScript(ignore_abort=True))
        stuck = running(app, session)
        assert session.post(f"/v1/tasks/{stuck}/cancel").status_code == 204
        assert state_of(session, stuck) == "canceled"
        app.call(engine.release_hold)
        app.advance(5)
        assert (quarantined(session), leases(app)) == (0, 1)
        app.advance(6)
        assert (quarantined(session), leases(app)) == (1, 1)
        assert len(list(records(app, "slot_quarantined"))) == 1
        for _ in range(5):  # the other slot goes on working
            task_id = submit(session)
            app.settle()
            assert state_of(session, task_id) == "ended"
        app.advance(10)
        assert quarantined(session) == 1
        app.call(engine.release)
        app.advance(3)
        assert (quarantined(session), leases(app)) == (0, 0)
        assert engine.overcommitted == 0


def test_a_slot_of_an_engine_out_of_reach_is_not_known_to_be_free() -> None:
    """Somebody else's engine may go on working while nobody can reach it: its slot waits until it says otherwise."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(ignore_abort=True))
        stuck = running(app, session)
        waiting = submit(session)
        app.call(lambda: setattr(engine, "down", True))
        assert session.post(f"/v1/tasks/{stuck}/cancel").status_code == 204
        app.call(engine.release_hold)
        app.advance(5)
        assert (quarantined(session), state_of(session, waiting)) == (1, "queued")
        app.call(lambda: setattr(engine, "down", False))
        app.advance(40)
        assert (quarantined(session), state_of(session, waiting)) == (1, "queued")
        app.call(engine.release)
        app.advance(40)
        assert (quarantined(session), state_of(session, waiting)) == (0, "ended")
        assert engine.calls > 3


def test_an_engine_that_goes_on_after_max_tokens_is_cut() -> None:
    """Not one event beyond what was asked for: the ids of a task have a bound that recovery relies on."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(endless=True))
        task_id = submit(session, max_tokens=5)
        app.advance(1)
        status = session.get(f"/v1/tasks/{task_id}").json()
        assert (status["state"], status["error"]["code"], status["last_event_id"]) == ("failed", "WORKER_RESET", 7)
        assert (engine.busy_slots, leases(app)) == (0, 0)


def test_a_cancel_does_not_wait_for_the_engine() -> None:
    """The 204 comes at once; only the slot waits."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(ignore_abort=True))
        stuck = running(app, session)
        waiting = submit(session)
        assert session.post(f"/v1/tasks/{stuck}/cancel").status_code == 204
        app.call(engine.release_hold)
        app.advance(20)
        assert state_of(session, waiting) == "queued"
        app.call(engine.release)
        app.advance(3)
        assert state_of(session, waiting) == "ended"
        assert engine.overcommitted == 0


def test_late_tokens_of_a_canceled_task_are_seen_by_nobody() -> None:
    with prepared(slots=2) as (app, engine, session):
        engine.play(MockScript(ignore_abort=True, endless=True))
        stuck = running(app, session)
        neighbour = submit(session)
        seal = session.post(f"/v1/tasks/{stuck}/cancel").headers["X-Last-Event-Id"]
        app.call(engine.release_hold)
        app.advance(1)
        with session.events(stuck) as events:
            assert str([event.id for event in events if event.id is not None][-1]) == seal
        assert state_of(session, neighbour) == "ended"


# -- tried again ---------------------------------------------------------------------------------------------
def test_a_task_fails_over_before_its_first_token() -> None:
    """OD-24: one replica breaks every stream at once; its tasks end well on the other, each submitted once there."""
    with LiveApp(mock_settings(pools=[mock_pool(slots=1, replicas=2)])) as app, app.session() as session:
        bad, good = app.engine(replica="r0"), app.engine(replica="r1")
        probes = good.calls
        bad.play(MockScript(100, die_after=0))
        ids = [submit(session) for _ in range(4)]
        app.advance(20)
        assert [state_of(session, task_id) for task_id in ids] == ["ended"] * 4
        assert good.calls - probes == 4
        assert leases(app) == 0


def test_an_engine_that_keeps_failing_is_left_alone_until_a_probe_works() -> None:
    """OC-CORE-1014, OD-25: at most one probe per pause, no task in between."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(ATTEMPTS, die_after=0))
        task_id = submit(session)
        app.advance(1)
        assert state_of(session, task_id) == "failed"
        calls = engine.calls
        refused = session.post("/v1/tasks", json=task())
        assert (refused.status_code, refused.json()["code"]) == (503, "REPLICA_EXHAUSTED")
        assert 0 < refused.json()["retry_after_ms"] <= 2000
        assert health(session)["ready"] is False
        assert "too many tasks failed" in health(session)["last_error"]["message"]
        app.advance(3)
        assert engine.calls == calls + 2  # the probe: a decode and a cancel
        again = submit(session)
        app.settle()
        assert state_of(session, again) == "ended"


def test_an_attempt_that_was_given_up_keeps_its_slot_until_the_engine_lets_go() -> None:
    """OD-24: after garbage the engine may still be at work; its slot is not leased again before it says otherwise."""
    with prepared(slots=1) as (app, engine, session):
        engine.play(MockScript(garbage_after=0))
        task_id = submit(session)
        app.advance(5)
        assert state_of(session, task_id) == "ended"
        assert (engine.overcommitted, leases(app)) == (0, 0)


# -- what is tried again, and what is held against a replica ---------------------------------------------------
def retries(app: LiveApp) -> int:
    return len(list(records(app, "task_retried")))


@pytest.mark.parametrize(
    ("script", "calls", "trips"),
    [
        (MockScript(jobs=100, refuse="no"), 1, False),
        (MockScript(jobs=100, full=True), ATTEMPTS, False),
        (MockScript(jobs=100, die_after=0), ATTEMPTS, True),
        (MockScript(jobs=100, garbage_after=0), ATTEMPTS, True),
        (MockScript(jobs=100, error_after=0), ATTEMPTS, True),
        (MockScript(jobs=100, die_after=1), 1, False),
        (MockScript(jobs=100, error_after=1), 1, False),
    ],
    ids=str,
)
def test_what_is_tried_again_and_what_is_held_against_a_replica(script: MockScript, calls: int, trips: bool) -> None:
    """OD-24, OD-25, D5: never a client's fault, never after output; a full engine is busy, not broken."""
    with prepared(slots=1) as (app, engine, session):
        before = engine.calls
        engine.play(script)
        submit(session)
        for _ in range(12):  # less than an open breaker's pause in all
            app.advance(0.1)
        assert engine.calls - before == calls
        assert retries(app) == calls - 1
        replica = app.call(lambda: app.daemon.core.pools["home"].replicas["r0"])
        assert replica.breaker.open is trips
        engine.clear()


def test_a_client_cannot_open_a_breaker() -> None:
    """OD-25: however often an engine refuses what it is asked; and a task of somebody else runs in between."""
    with prepared(slots=1) as (app, engine, session):
        for _ in range(10):
            engine.play(MockScript(refuse="no"))
            refused = submit(session)
            app.settle()
            assert session.get(f"/v1/tasks/{refused}").json()["error"]["code"] == "INVALID_PARAMS"
        assert health(session)["ready"] is True
        assert retries(app) == 0
        assert len(list(records(app, "breaker_opened"))) == 0


def test_pauses_before_another_attempt_are_jittered_and_grow() -> None:
    """OD-24: anything up to 0.25 s, then up to 0.5 s: what failed together does not come back together."""
    with prepared(slots=1) as (app, engine, session):
        asked: list[float] = []

        def longest(seconds: float) -> float:
            asked.append(seconds)
            return seconds

        app.daemon.runs._jitter = longest
        engine.play(MockScript(jobs=2, die_after=0))
        task_id = submit(session)
        app.settle()
        before = engine.calls
        app.advance(0.2)
        assert engine.calls == before, "the first pause is not over"
        app.advance(0.1)
        assert engine.calls == before + 1
        app.advance(0.6)
        assert asked == [0.25, 0.5]
        assert state_of(session, task_id) == "ended"
