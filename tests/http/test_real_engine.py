"""The main flows through the whole daemon with a real llama-server as a supervised child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.http.daemon import DaemonProcess
from tests.http.support import state_of, submit, task, wait_for

pytestmark = pytest.mark.llamacpp
START_S = 60.0


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_llama(path)
    return path


def real_pool(model: Path, *, slots: int = 2) -> dict[str, Any]:
    process = {"model_path": str(model), "slots": slots, "ctx": 2048, "threads": 1}
    return {
        "id": "home",
        "engine": "llamacpp",
        "model": f"file:{model}",
        "replicas": [{"id": "r0", "process": process}],
    }


@pytest.fixture(scope="module")
def app(model: Path) -> Iterator[LiveApp]:
    with LiveApp(mock_settings(pools=[real_pool(model)], server={"shutdown_grace_ms": 2000}), manual=False) as app:
        with app.session() as session:
            wait_for(lambda: session.get("/readyz").status_code == 200, "the real engine is ready", START_S)
        yield app


@pytest.fixture
def session(app: LiveApp) -> Iterator[VerifyingSession]:
    with app.session() as session:
        yield session


def text_of(session: VerifyingSession, task_id: str) -> str:
    with session.events(task_id, timeout=60) as events:
        return "".join(event.data["t"] for event in events if event.name == "token")


def test_the_same_seed_gives_the_same_text_and_another_seed_another(session: VerifyingSession) -> None:
    """ORCH-3045: seeds reach the engine; alone on its slot, equal input gives equal output."""
    fields = {"prompt": "bade fi gono", "max_tokens": 32, "ctx": 1024}
    first, again, other = (text_of(session, submit(session, seed=seed, **fields)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_counts_and_limits_are_the_engines_own(session: VerifyingSession) -> None:
    """OC-CTRL-2010: tokens by the engine's count; ctx from the running server."""
    task_id = submit(session, prompt="bade fi gono", max_tokens=9, seed=1, ctx=1024)
    text_of(session, task_id)
    status = session.get(f"/v1/tasks/{task_id}").json()
    assert status["tokens_out"] == 9
    assert status["tokens_in"] > 3
    assert status["finish_reason"] == "length"
    capabilities = session.get("/v1/capabilities").json()["engines"][0]
    assert (capabilities["ctx_max"], capabilities["concurrency"]) == (2048, 2)


def test_a_session_shows_what_it_takes_in_the_engines_memory(session: VerifyingSession) -> None:
    """ORCH-3023: two layers, two heads of 16 numbers for K and V each, in 16 bits, times what the slot holds."""
    session_id = str(uuid.uuid4())
    for _ in range(2):
        task_id = submit(session, prompt="bade fi gono", max_tokens=9, ctx=1024, session_id=session_id)
        text_of(session, task_id)
        task = session.get(f"/v1/tasks/{task_id}").json()
        shown = session.get(f"/v1/sessions/{session_id}").json()
        assert shown["kv_bytes"] == 2 * 2 * 2 * 16 * 2 * (task["tokens_in"] + task["tokens_out"] - 1)


def test_messages_go_through_the_models_own_template(session: VerifyingSession) -> None:
    messages = [{"role": "user", "content": "bade"}]
    task_id = submit(session, prompt=None, messages=messages, max_tokens=4, ctx=1024)
    text_of(session, task_id)
    assert session.get(f"/v1/tasks/{task_id}").json()["tokens_in"] > 4


def test_a_prompt_that_does_not_fit_is_refused_by_the_exact_count(session: VerifyingSession) -> None:
    """ORCH-3016: the cheap bound does not decide, the engine's tokenizer does; nothing is cut."""
    prompt = text_of(session, submit(session, max_tokens=120, seed=1, ctx=1024))
    probe = submit(session, prompt=prompt, max_tokens=1, ctx=2048)
    text_of(session, probe)
    tokens = session.get(f"/v1/tasks/{probe}").json()["tokens_in"]
    assert tokens < len(prompt.encode()) + 8, "the cheap bound must not decide here"
    text_of(session, submit(session, prompt=prompt, max_tokens=8, ctx=tokens + 8))
    answer = session.post("/v1/tasks", json=task(prompt=prompt, max_tokens=8, ctx=tokens + 7))
    assert answer.status_code == 400
    assert answer.json()["details"]["rule"] == "prompt_exceeds_ctx"
    assert answer.json()["details"]["tokens_in"] == tokens


def test_a_cancelled_stream_frees_the_engines_slot(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3026: the engine is aborted, the slot proven free, and the next task runs."""
    task_id = submit(session, max_tokens=1800, ctx=2048)
    with session.events(task_id, timeout=60) as events:
        for event in events:
            if event.name == "token":
                break
        assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
        rest = list(events)
    assert rest[-1].data["finish_reason"] == "canceled"
    wait_for(lambda: session.get("/v1/pools/home/health").json()["slots_busy"] == 0, "the slot is free")
    assert text_of(session, submit(session, max_tokens=3))


def test_an_engine_that_dies_mid_stream_is_reported_and_comes_back(app: LiveApp, session: VerifyingSession) -> None:
    """OC-POOL-30xx: the stream ends in WORKER_RESET; the replica is started again and serves."""
    task_id = submit(session, max_tokens=1800, ctx=2048)
    with session.events(task_id, timeout=60) as events:
        for event in events:
            if event.name == "token":
                break
        (engine,) = _engines(os.getpid())
        os.kill(engine, signal.SIGKILL)
        rest = list(events)
    assert rest[-1].data["code"] == "WORKER_RESET"
    assert rest[-1].data["retriable"] is True
    wait_for(lambda: _engines(os.getpid()) not in ([], [engine]), "another engine is started", START_S)
    wait_for(lambda: session.get("/readyz").status_code == 200, "the replica is back", START_S)
    assert text_of(session, submit(session, max_tokens=3))


def test_no_engine_outlives_a_daemon_that_is_killed(model: Path, tmp_path: Path) -> None:
    """ORCH-2101, OD-21: kill -9 of the daemon in the middle of a stream leaves no engine process."""
    config = tmp_path / "c.toml"
    config.write_text(
        f"""
data_dir = "{tmp_path / "data"}"
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:tiny"
[[pools.replicas]]
id = "r0"
process = {{ model_path = "{model}", slots = 1, ctx = 2048 }}
"""
    )
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        wait_for(lambda: session.get("/readyz").status_code == 200, "the engine is ready", START_S)
        engines = _engines(daemon.process.pid)
        assert engines
        task_id = submit(session, max_tokens=1800, ctx=2048)
        wait_for(lambda: state_of(session, task_id) == "running", "the task runs")
        daemon.process.kill()
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in engines), "every engine is gone")


def _engines(pid: int) -> list[int]:
    """Process ids of the llama-servers below `pid`."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.NoSuchProcess:  # gone, or a zombie, since we asked
            continue
        if "llama" in line and "warden.py" not in line:
            found.append(child.pid)
    return found


def test_the_command_line_answers(app: LiveApp) -> None:
    """`orchestratord run` prints the model's text and its figures."""
    done = subprocess.run(
        ["orchestratord", "run", "--url", app.url, "--max-tokens", "8", "--seed", "3", "bade fi"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.stdout.strip()
    assert "8 tokens, length" in done.stderr
