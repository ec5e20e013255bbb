"""Engines that die: told apart, started anew, and left alone when that leads nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestratord.infra.engines.mock import MockEngine
from orchestratord.ports import EngineError, ProcessSpec
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import health, records, state_of, submit, task


class Dead:
    """A child that has died before anybody looked."""

    url = "http://127.0.0.1:1"
    pid = 2**22 + 1  # above any there can be

    def __init__(self, code: int, tail: list[str]) -> None:
        self.returncode, self._tail = code, tail

    async def wait(self) -> int:
        return self.returncode

    async def stop(self, grace: float) -> None: ...

    def tail(self) -> list[str]:
        return self._tail


class Graveyard:
    """A host whose engines die at once."""

    def __init__(self, code: int = 1, *tail: str) -> None:
        self.code, self.tail = code, list(tail)
        self.starts = 0

    async def start(self, spec: ProcessSpec) -> Dead:
        self.starts += 1
        return Dead(self.code, self.tail)


@contextmanager
def dying(
    host: Any, engine: type[MockEngine] | None = None, **fields: Any
) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    process = {"model_path": "/srv/models/a.gguf"}
    pool = {
        "id": "home",
        "engine": "llamacpp",
        "model": "file:a.gguf",
        "restarts": {"limit": 3, "window_ms": 60_000},
        "replicas": [{"id": "r0", "process": process, "memory_bytes": 1}],
        **fields,
    }
    app = LiveApp(mock_settings(pools=[pool]))
    app.daemon.replicas._host = host
    if engine is not None:
        clock = app.clock
        assert clock is not None
        app.daemon.replicas._connect = lambda spec, url: engine(clock=clock)
    app.start(ready=False)
    try:
        with app.session() as session:
            yield app, session
    finally:
        app.stop()


def figures(session: VerifyingSession, series: str) -> list[str]:
    return [line for line in session.get("/metrics").text.splitlines() if line.startswith(series)]


@pytest.mark.parametrize(
    ("host", "code", "advice"),
    [
        (Graveyard(1, "cudaMalloc failed: out of memory", "failed to load model"), "VRAM_OOM", "smaller quantisation"),
        (Graveyard(-9, "load_tensors: loading"), "HOST_OOM", "kernel's log"),
        (Graveyard(-6, "  what():  vk::Queue::submit: ErrorDeviceLost"), "DRIVER_RESET", "driver"),
    ],
    ids=["vram", "host", "driver"],
)
def test_health_says_why_it_died_and_what_to_do(host: Graveyard, code: str, advice: str) -> None:
    """ORCH-3049: and the engine's own last lines are there."""
    with dying(host) as (app, session):
        app.advance(0.1)
        error = health(session)["last_error"]
        assert error["code"] == code
        assert advice in error["message"]
        assert error["log_tail"] == host.tail
        assert figures(session, "orchestratord_engine_faults_total")[0].startswith(
            f'orchestratord_engine_faults_total{{code="{code}",pool_id="home"}}'
        )


def test_the_last_lines_are_waited_for() -> None:
    """ORCH-3049: that it has exited is known before all it has said is read."""

    class Slow(Dead):
        async def wait(self) -> int:
            self._tail = ["CUDA error: out of memory"]
            return self.returncode

    class Hospice(Graveyard):
        async def start(self, spec: ProcessSpec) -> Dead:
            return Slow(1, [])

    with dying(Hospice()) as (app, session):
        app.advance(0.1)
        assert health(session)["last_error"]["code"] == "VRAM_OOM"


def test_a_program_that_is_missing_is_told() -> None:
    """ORCH-3049: nothing was started, so there is no exit code."""

    class Missing:
        async def start(self, spec: ProcessSpec) -> Dead:
            raise FileNotFoundError("no llama-server found: put one on PATH")

    with dying(Missing()) as (app, session):
        app.advance(0.1)
        error = health(session)["last_error"]
        assert (error["code"], error["log_tail"]) == ("BINARY_MISSING", [])
        assert "put one on PATH" in error["message"]


def test_a_child_that_comes_up_wrong_says_what_is_wrong() -> None:
    """OC-POOL-30xx: it is waited for, since much of that passes; readiness tells more than that it is starting."""

    class Wrong(MockEngine):
        async def ready(self) -> str | None:
            raise EngineError("protocol", "Triton serves several models (a, b): name one in options")

    class Nursery(Graveyard):
        async def start(self, spec: ProcessSpec) -> Any:
            child: Any = Dead(0, [])
            child.returncode = None
            child.wait = asyncio.get_running_loop().create_future
            return child

    with dying(Nursery(), Wrong) as (app, session):
        app.advance(2)
        assert "name one in options" in session.get("/readyz").text


def test_an_engine_that_dies_again_and_again_is_left_alone() -> None:
    """Until somebody resumes the pool, as often as that is."""
    host = Graveyard(3, "no reason")
    with dying(host) as (app, session):
        app.advance(59)
        assert host.starts == 4, "one start, and three more within the window"
        app.advance(3600)
        assert host.starts == 4
        found = health(session)
        assert (found["live"], found["ready"], found["last_error"]["code"]) == (False, False, "RESTART_STORM")
        assert "exited with code 3" in found["last_error"]["message"]
        assert found["last_error"]["log_tail"] == ["no reason"]
        assert figures(session, "orchestratord_replica_restarts_total")[0].endswith(" 3.0")
        assert len(list(records(app, "replica_given_up"))) == 1
        for starts in (8, 12):
            assert session.post("/v1/pools/home/resume").status_code == 202
            app.advance(59)
            assert host.starts == starts


def test_now_and_then_is_no_storm() -> None:
    """Restarts that are further apart than the window allow go on for ever."""
    host = Graveyard()
    with dying(host, restarts={"limit": 3, "window_ms": 1}) as (app, _):
        app.advance(600)
        assert host.starts > 20


def test_an_on_demand_model_whose_engine_dies_says_why() -> None:
    """ORCH-3049: to those who wait for it, too; and three attempts are all it gets."""
    host = Graveyard(1, "cudaMalloc failed: out of memory")
    with dying(host, load="on_demand", model="file:a.gguf") as (app, session):
        app.advance(60)
        assert host.starts == 0
        task_id = submit(session, model_ref="home")
        app.advance(5)
        assert host.starts == 3
        assert state_of(session, task_id) == "failed"
        error = session.get(f"/v1/tasks/{task_id}").json()["error"]
        assert (error["code"], error["retriable"]) == ("POOL_UNAVAILABLE", True)
        assert "out of memory" in error["message"]
        assert health(session)["last_error"]["code"] == "VRAM_OOM"
        refused = session.post("/v1/tasks", json=task(model_ref="home"))
        assert (refused.status_code, refused.json()["code"]) == (503, "POOL_UNAVAILABLE")
        assert 0 < refused.json()["retry_after_ms"] <= 30_000
        assert session.post("/v1/pools/home/resume").status_code == 202
        app.settle()
        assert session.post("/v1/tasks", json=task(model_ref="home")).status_code == 202
        app.advance(5)
        assert host.starts == 6
