"""The main flow through the whole daemon with a real engine as its child. A subclass brings `app` and `servers`."""

from __future__ import annotations

import signal

import psutil
import pytest

from orchestratord.testing.live import LiveApp
from orchestratord.testing.session import VerifyingSession
from tests.engines.real.servers import CTX, START_S
from tests.http.support import submit, task, wait_for


class Flows:
    engine: str
    templates = False  # whether the model has a chat template the engine applies

    @pytest.fixture
    def session(self, app: LiveApp) -> VerifyingSession:
        with app.session() as session:
            wait_for(lambda: session.get("/readyz").status_code == 200, "the real engine is ready", START_S)
            yield session

    @staticmethod
    def servers() -> list[psutil.Process]:
        """The engine servers the daemon runs."""
        raise NotImplementedError

    def text_of(self, session: VerifyingSession, **fields: object) -> str:
        task_id = submit(session, engine=self.engine, **{"ctx": CTX, **fields})
        with session.events(task_id, timeout=60) as events:
            return "".join(event.data["t"] for event in events if event.name == "token")

    def test_seeds_decide_the_text(self, session: VerifyingSession) -> None:
        """ORCH-3045: the seed reaches the engine; alone on it, equal input gives equal output."""
        fields = {"prompt": "bade fi gono", "max_tokens": 24, "sampling": {"temperature": 1.0}}
        first, again, other = (self.text_of(session, seed=seed, **fields) for seed in (7, 7, 8))
        assert first == again
        assert first != other

    def test_counts_are_the_engines(self, session: VerifyingSession) -> None:
        task_id = submit(session, engine=self.engine, prompt="bade fi gono", max_tokens=9, ctx=CTX)
        with session.events(task_id, timeout=60) as events:
            end = list(events)[-1]
        assert (end.name, end.data["tokens_out"], end.data["finish_reason"]) == ("end", 9, "length")
        status = session.get(f"/v1/tasks/{task_id}").json()
        assert status["tokens_in"] > 3
        capabilities = session.get("/v1/capabilities").json()["engines"][0]
        assert (capabilities["engine"], capabilities["ctx_max"], capabilities["concurrency"]) == (self.engine, CTX, 4)

    def test_what_does_not_fit_is_refused(self, session: VerifyingSession) -> None:
        """ORCH-3016: never cut to fit."""
        answer = session.post("/v1/tasks", json=task(engine=self.engine, prompt="ba " * CTX, max_tokens=8, ctx=CTX))
        assert answer.status_code == 400
        assert answer.json()["details"]["rule"] == "prompt_exceeds_ctx"

    def test_messages_go_through_the_models_own_template(self, session: VerifyingSession) -> None:
        """Or are refused, where the engine applies none."""
        fields = {"prompt": None, "messages": [{"role": "user", "content": "bade"}], "max_tokens": 4}
        if self.templates:
            assert self.text_of(session, **fields)
            return
        answer = session.post("/v1/tasks", json=task(engine=self.engine, ctx=CTX, **fields))
        assert answer.status_code == 400
        assert answer.json()["details"]["rule"] == "no_chat_template"

    def test_a_cancel_frees_the_slot(self, session: VerifyingSession) -> None:
        """ORCH-3026: the stream ends at the seal, and the next task runs."""
        task_id = submit(session, engine=self.engine, max_tokens=CTX - 100, ctx=CTX)
        with session.events(task_id, timeout=60) as events:
            for event in events:
                if event.name == "token":
                    break
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
            rest = list(events)
        assert rest[-1].data["finish_reason"] == "canceled"
        wait_for(lambda: session.get("/v1/pools/home/health").json()["slots_busy"] == 0, "the slot is free")
        assert self.text_of(session, max_tokens=3)

    def test_z_an_engine_that_is_killed_comes_back(self, app: LiveApp, session: VerifyingSession) -> None:
        """OC-POOL-30xx: the stream ends in WORKER_RESET, nothing of the old server is left, a new one serves."""
        old = self.servers()
        assert old
        task_id = submit(session, engine=self.engine, max_tokens=CTX - 100, ctx=CTX)
        with session.events(task_id, timeout=60) as events:
            for event in events:
                if event.name == "token":
                    break
            old[0].send_signal(signal.SIGKILL)
            rest = list(events)
        assert rest[-1].name == "error", rest[-1]
        assert rest[-1].data["code"] == "WORKER_RESET"
        wait_for(lambda: not any(process.is_running() for process in old), "all of the old server is gone", START_S)
        wait_for(lambda: session.get("/readyz").status_code == 200, "the replica is back", START_S)
        assert self.text_of(session, max_tokens=3)
