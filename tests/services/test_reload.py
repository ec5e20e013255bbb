"""What the scenarios of reloads do not see: the first states, several replicas, and losses at awkward moments."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.ports import JournalUnavailable, ModelUnavailable
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import health, records, running, state_of, submit, task

NEXT = "file:next.gguf"


@contextmanager
def reloading(*, memory: bool = True, replicas: int = 1, **models: Any) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    pool = mock_pool(replicas=replicas)
    for replica in pool["replicas"]:
        replica["memory_bytes"] = 10
    sections = {"roots": ["/srv"], "memory_bytes": 100 if memory else 15 * replicas, **models}
    app = LiveApp(mock_settings(pools=[pool], models=sections))
    with app, app.session() as session:
        yield app, session


def next_engine(app: LiveApp, replica: str = "r0") -> MockEngine:
    assert app.clock is not None
    engine = app.daemon.mocks["home", f"{replica}@{NEXT}"] = MockEngine(clock=app.clock, model_id="next")
    return engine


def reload(app: LiveApp, session: VerifyingSession) -> dict[str, Any]:
    answer = session.post("/v1/pools/home/reload", json={"new_model_ref": NEXT})
    assert answer.status_code == 202, answer.text
    app.settle()
    return health(session)


def test_fetching_and_verifying_are_shown(monkeypatch: Any) -> None:
    """ORCH-3038: and a model that cannot be had, or is none, fails before anything was touched."""
    with reloading() as (app, session):
        reached: list[str] = []

        class Slow:
            def check(self, ref: str) -> None: ...

            async def resolve(self, ref: str) -> str:
                reached.append(health_of(app))
                return "/srv/next.gguf"

            async def verify(self, path: str) -> str | None:
                reached.append(health_of(app))
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", "it is a web page")

        reloads = app.daemon.reloads
        monkeypatch.setattr(reloads, "_files", Slow())
        pool = app.daemon.core.pools["home"]
        spec = app.daemon.replicas.specs(pool)[0]
        monkeypatch.setattr(app.daemon.replicas, "specs", lambda _: [as_process(spec)])
        found = reload(app, session)
        assert reached == ["fetching", "verifying"]
        assert (found["operation"]["state"], found["operation"]["error"]["code"]) == ("failed", "UNTRUSTED_ARTIFACT")
        assert (found["ready"], found["model_ref"]) == (True, "file:home.gguf")


def health_of(app: LiveApp) -> str:
    operation = app.daemon.core.pools["home"].operation
    assert operation is not None
    return operation.state


def as_process(spec: Any) -> Any:
    from dataclasses import replace

    from orchestratord.ports import ProcessSpec

    return replace(spec, process=ProcessSpec("llamacpp", "/srv/a.gguf", 1, 64, 1, None, (), {}, None))


def test_one_bad_replica_is_enough_to_stay_with_the_old_model() -> None:
    """The good one is let go of again."""
    with reloading(replicas=2) as (app, session):
        good, bad = next_engine(app, "r0"), next_engine(app, "r1")
        bad.play(MockScript(jobs=math.inf, error_after=1))
        found = reload(app, session)
        assert found["operation"]["state"] == "rolled_back"
        assert found["model_ref"] == "file:home.gguf"
        assert [r["ready"] for r in found["replicas"]] == [True, True]
        assert engines_and_shadows(app) == (2, 0)
        assert good.busy_slots == 0


def test_a_replica_that_was_good_before_the_other_failed_is_let_go_of_too() -> None:
    """ORCH-3038: a failed reload leaves nothing of the new model."""
    with reloading(replicas=2) as (app, session):
        good, bad = next_engine(app, "r0"), next_engine(app, "r1")
        bad.token_ms = 1000
        bad.play(MockScript(jobs=math.inf, error_after=1))
        assert reload(app, session)["operation"]["state"] == "probing"
        assert engines_and_shadows(app)[0] > 2
        app.advance(5)
        found = health(session)
        assert found["operation"]["state"] == "rolled_back"
        assert [r["ready"] for r in found["replicas"]] == [True, True]
        assert engines_and_shadows(app) == (2, 0)
        assert good.busy_slots == 0


def slow_commit(app: LiveApp) -> Callable[[BaseException | None], None]:
    """From now on the fact of a swap is durable, or fails, when what this returns is called."""
    whole, waiting = app.daemon.core.commit, asyncio.Event()
    outcome: list[BaseException | None] = []

    async def later(ticket: Any) -> None:
        await ticket
        await waiting.wait()
        if outcome[0] is not None:
            raise outcome[0]

    def commit(*arguments: Any) -> Any:
        return asyncio.ensure_future(later(whole(*arguments)))

    def decide(error: BaseException | None) -> None:
        outcome.append(error)
        app.call(waiting.set)
        app.settle()

    app.daemon.core.commit = commit  # type: ignore[method-assign]
    return decide


def test_a_new_engine_that_dies_while_the_swap_is_journaled_is_brought_back() -> None:
    """Past the point of no return it is the serving replica's usual fate."""
    with reloading() as (app, session):
        engine, decide = next_engine(app), slow_commit(app)
        assert reload(app, session)["operation"]["state"] == "swapping"
        app.call(lambda: setattr(engine, "down", True))
        app.advance(3)
        decide(None)
        assert (health(session)["model_ref"], health(session)["ready"]) == (NEXT, False)
        app.call(lambda: setattr(engine, "down", False))
        app.advance(60)
        assert health(session)["ready"] is True


def test_nobody_is_served_by_a_model_that_is_not_journaled() -> None:
    """ORCH-3039: and if it cannot be journaled, the old one stays."""
    with reloading() as (app, session):
        next_engine(app)
        decide = slow_commit(app)
        assert reload(app, session)["model_ref"] == "file:home.gguf"
        decide(JournalUnavailable("no space left on device"))
        found = health(session)
        assert (found["model_ref"], found["ready"]) == ("file:home.gguf", True)
        assert (found["operation"]["state"], found["operation"]["error"]["code"]) == (
            "rolled_back",
            "STORAGE_UNAVAILABLE",
        )
        assert engines_and_shadows(app) == (1, 0)


def engines_and_shadows(app: LiveApp) -> tuple[int, int]:
    return app.call(lambda: (len(app.daemon.replicas._members), len(app.daemon.core.pools["home"].shadows)))


def test_nothing_of_the_old_model_is_left() -> None:
    """Neither its engine nor what was learnt of it: speeds, counts of tokens."""
    with reloading() as (app, session):
        app.call(lambda: setattr(app.engine(), "token_ms", 10))
        submit(session, model_ref="home")
        app.advance(1)
        assert health(session)["metrics"]["observations"] == 1
        counts = app.daemon.admission._counts
        counts["home", b"digest"] = 3
        found = reload(app, session)
        assert (found["metrics"]["observations"], len(counts)) == (0, 0)
        assert engines_and_shadows(app) == (1, 0)


def test_a_session_is_cold_from_the_swap_on() -> None:
    """Also while the old engine, which has its prefix, still finishes other work."""
    session_id = str(uuid.uuid4())
    with reloading() as (app, session):
        submit(session, model_ref="home", session_id=session_id)
        app.settle()
        assert session.get(f"/v1/sessions/{session_id}").json()["kv_warmth"] is True
        running(app, session, model_ref="home", on_disconnect="continue")
        assert reload(app, session)["operation"]["state"] == "swapping"
        assert session.get(f"/v1/sessions/{session_id}").json()["kv_warmth"] is False


def test_what_runs_too_long_on_the_old_model_is_ended_and_worth_retrying() -> None:
    with reloading(drain_ms=5000) as (app, session):
        task_id = running(app, session, model_ref="home", on_disconnect="continue")
        assert reload(app, session)["operation"]["state"] == "swapping"
        app.advance(6)
        assert state_of(session, task_id) == "failed"
        failure = session.get(f"/v1/tasks/{task_id}").json()["error"]
        assert (failure["code"], failure["retriable"]) == ("POOL_UNAVAILABLE", True)
        assert health(session)["operation"]["state"] == "succeeded"


def test_a_rollback_resumes_the_drain_that_was_there() -> None:
    with reloading(memory=False) as (app, session):
        next_engine(app).play(MockScript(jobs=math.inf, refuse="no"))
        session.post("/v1/pools/home/drain", json={"deadline_ms": 1000})
        app.settle()
        found = reload(app, session)
        assert (found["operation"]["state"], found["draining"]) == ("rolled_back", True)


def test_a_refusal_during_a_reload_says_what_it_is_expected_to_take_yet() -> None:
    """OC-CORE-1013: what runs has five minutes at most; once nothing does, it is a load, by the prior."""
    with reloading(memory=False, drain_ms=300_000) as (app, session):
        last = running(app, session)
        next_engine(app).token_ms = 20_000
        assert reload(app, session)["operation"]["state"] == "draining"
        app.advance(60)
        assert session.post("/v1/tasks", json=task()).json()["retry_after_ms"] == 240_000
        app.call(app.engine().release_hold)
        app.settle()
        assert state_of(session, last) == "ended"
        assert health(session)["operation"]["state"] == "probing"
        told = []
        for _ in range(3):
            refused = session.post("/v1/tasks", json=task())
            assert (refused.status_code, refused.json()["code"]) == (503, "POOL_UNREADY")
            told.append(refused.json()["retry_after_ms"])
            app.advance(6)
        assert told == [10_000, 4000, 1000], "and then nobody knows"


def test_ten_at_once_are_one_and_nine_conflicts() -> None:
    """I4: the generation grows by one for each success."""
    with reloading() as (app, session):
        next_engine(app).loading = "loading model"
        answers = [
            session.post("/v1/pools/home/reload", json={"new_model_ref": f"file:{n}.gguf" if n else NEXT})
            for n in range(10)
        ]
        assert sorted(a.status_code for a in answers) == [202] + [409] * 9
        running_id = answers[0].json()["operation_id"]
        assert {a.json()["details"]["operation_id"] for a in answers[1:]} == {running_id}
        app.call(lambda: setattr(app.daemon.mocks["home", f"r0@{NEXT}"], "loading", None))
        app.advance(1)
        assert health(session)["operation"]["generation"] == 2


def test_every_reload_is_told() -> None:
    with reloading() as (app, session):
        reload(app, session)
        submit(session, model_ref="home")
        assert [r["kind"] for r in records(app, "operation_started")] == ["reload"]
        assert [r["state"] for r in records(app, "operation_ended")] == ["succeeded"]


def test_an_engine_reached_by_url_is_not_ours_to_reload() -> None:
    pool = mock_pool()
    pool["replicas"] = [{"id": "r0", "url": "http://127.0.0.1:9"}]
    app = LiveApp(mock_settings(pools=[pool], models={"roots": ["/srv"]})).start(ready=False)
    try:
        with app.session() as session:
            answer = session.post("/v1/pools/home/reload", json={"new_model_ref": NEXT})
            assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    finally:
        app.stop()


def test_memory_is_promised_once() -> None:
    """Two models that do not fit together are never started together: the second reload waits for its own pool."""
    pools = [mock_pool("home"), mock_pool("away")]
    for pool in pools:
        pool["replicas"][0]["memory_bytes"] = 10
    app = LiveApp(mock_settings(pools=pools, models={"roots": ["/srv"], "memory_bytes": 35}))
    with app, app.session() as session:
        for pool_id in ("home", "away"):
            assert app.clock is not None
            loading = app.daemon.mocks[pool_id, f"r0@{NEXT}"] = MockEngine(clock=app.clock)
            loading.loading = "loading model"
            assert session.post(f"/v1/pools/{pool_id}/reload", json={"new_model_ref": NEXT}).status_code == 202
            app.settle()
        assert [health(session, pool_id)["ready"] for pool_id in ("home", "away")] == [True, False]


def test_an_old_model_that_does_not_come_back_does_not_keep_the_operation_open() -> None:
    with reloading(memory=False, load_ms=5000) as (app, session):
        next_engine(app).play(MockScript(jobs=math.inf, refuse="no"))
        app.call(lambda: setattr(app.engine(), "loading", "loading model"))
        reload(app, session)
        app.advance(6)
        found = health(session)
        assert (found["operation"]["state"], found["ready"], found["live"]) == ("rolled_back", False, True)
        app.call(lambda: setattr(app.engine(), "loading", None))
        app.advance(1)
        assert health(session)["ready"] is True
