"""Models that real llama-servers load on demand: what is left of a load when the daemon is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.http.daemon import DaemonProcess
from tests.http.support import state_of, submit, wait_for

pytestmark = pytest.mark.llamacpp
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_llama(path)
    return path


def below(pid: int) -> list[int]:
    """Every process that descends from `pid`: wardens and engines."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_daemon_killed_while_it_loads_leaves_no_engine_and_loads_again(model: Path, tmp_path: Path) -> None:
    """OD-2, OD-21: kill -9 in the middle of a load. The task waits in the journal, and the next daemon serves it."""
    config = tmp_path / "c.toml"
    config.write_text(
        f"""
data_dir = "{tmp_path / "data"}"
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:tiny"
load = "on_demand"
[[pools.replicas]]
id = "r0"
process = {{ model_path = "{model}", slots = 1, ctx = 1024 }}
"""
    )
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        assert below(daemon.process.pid) == [], "nothing is loaded that nobody wants"
        task_id = submit(session, max_tokens=4, on_disconnect="continue")
        wait_for(lambda: len(below(daemon.process.pid)) >= 2, "a warden and an engine run")
        left = below(daemon.process.pid)
        daemon.kill()
        wait_for(lambda: all(gone(pid) for pid in left), "nothing of the load is left")
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        wait_for(lambda: state_of(session, task_id) == "ended", "the task has been served", PATIENCE_S)


@contextmanager
def running(model: Path) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    process = {"model_path": str(model), "slots": 1, "ctx": 1024, "threads": 1}
    pool = {
        "id": "home",
        "engine": "llamacpp",
        "model": f"file:{model}",
        "load": "on_demand",
        "min_resident_ms": 0,
        "idle_unload_ms": 1000,
        "replicas": [{"id": "r0", "process": process}],
    }
    with LiveApp(mock_settings(pools=[pool]), manual=False) as app, app.session() as session:
        yield app, session


def test_an_idle_model_is_measured_unloaded_and_leaves_no_process(model: Path) -> None:
    """OD-2: its size is what its engine was seen to take; when it goes, everything goes."""
    with running(model) as (app, session):
        submit(session, model_ref="home", max_tokens=4)
        wait_for(lambda: session.get("/v1/pools/home/health").json()["resident"], "it is loaded", PATIENCE_S)
        engines = app.call(app.daemon.replicas.all_pids)
        claim = app.call(lambda: dict(app.daemon.core.pools["home"].stay.claim))
        assert (claim["ram"] or 0) > 5 * model.stat().st_size, "measured: more than the file"
        wait_for(lambda: not session.get("/v1/pools/home/health").json()["resident"], "it is unloaded", PATIENCE_S)
        assert len(engines) == 1
        assert all(gone(pid) for pid in engines)


def test_an_engine_killed_while_it_loads_is_tried_again(model: Path) -> None:
    """OD-2, ORCH-3049: the kill is told, and the task is served by the next attempt."""
    with running(model) as (app, session):
        task_id = submit(session, model_ref="home", max_tokens=4)
        wait_for(lambda: app.call(app.daemon.replicas.all_pids) != [], "the engine is there")
        (engine,) = app.call(app.daemon.replicas.all_pids)
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: state_of(session, task_id) == "ended", "the task has been served", PATIENCE_S)
        figures = session.get("/metrics").text
        assert 'orchestratord_engine_faults_total{code="HOST_OOM",pool_id="home"} 1.0' in figures
