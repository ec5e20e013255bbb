"""Embedding and rerank through the whole daemon with real llama-servers as supervised children."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.tiny_gguf import tiny_embed, tiny_rerank
from tests.http.support import submit, task, wait_for
from tests.http.test_real_engine import START_S

pytestmark = pytest.mark.llamacpp
CTX = 256


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApp]:
    folder = tmp_path_factory.mktemp("models")
    tiny_embed(folder / "embedding.gguf")
    tiny_rerank(folder / "rerank.gguf")
    pools = [
        {
            "id": mode,
            "engine": "llamacpp",
            "model": f"file:{mode}.gguf",
            "replicas": [
                {
                    "id": "r0",
                    "process": {"model_path": str(folder / f"{mode}.gguf"), "mode": mode, "slots": 2, "ctx": CTX},
                }
            ],
        }
        for mode in ("embedding", "rerank")
    ]
    with LiveApp(mock_settings(pools=pools), manual=False) as app:
        with app.session() as session:
            wait_for(lambda: all(pool["ready"] for pool in session.get("/v1/pools").json()["items"]), "both", START_S)
        yield app


@pytest.fixture
def session(app: LiveApp) -> Iterator[VerifyingSession]:
    with app.session() as session:
        yield session


def body(workload: str, inputs: list[str], **fields: Any) -> dict[str, Any]:
    prompt = "ba" if workload == "rerank" else None
    given = {"workload": workload, "model_ref": workload, "prompt": prompt, "inputs": inputs, "max_tokens": 1}
    return {**given, "ctx": CTX, **fields}


def events(session: VerifyingSession, task_id: str) -> list[Any]:
    with session.events(task_id, timeout=60) as stream:
        return [event for event in stream if event.name != "metrics"]


@pytest.mark.parametrize(("workload", "field"), [("embedding", "embedding"), ("rerank", "relevance_score")])
def test_results_come_as_events(session: VerifyingSession, workload: str, field: str) -> None:
    """SPEC 4, OC-CTRL-2023: one `result` for each input through the same queue, then `end` with no tokens out."""
    task_id = submit(session, **body(workload, ["fi", "gono ba", "fi"]))
    started, *results, end = events(session, task_id)
    assert (started.name, end.name) == ("started", "end")
    assert [event.name for event in results] == ["result"] * 3
    assert [event.data["index"] for event in results] == [0, 1, 2]
    assert results[0].data[field] == pytest.approx(results[2].data[field], abs=1e-5)
    assert results[0].data[field] != pytest.approx(results[1].data[field], abs=1e-2)
    if workload == "rerank":
        assert {event.data["scale"] for event in results} == {"logit"}
    assert (end.data["finish_reason"], end.data["tokens_out"]) == ("stop", 0)
    status = session.get(f"/v1/tasks/{task_id}").json()
    assert status["tokens_in"] > 3
    artifact = session.get(f"/v1/artifacts/{status['transcript_id']}").json()
    assert [event["event"] for event in artifact["content"]["events"]].count("result") == 3


def test_capabilities_say_what_the_pools_do(session: VerifyingSession) -> None:
    """OC-CTRL-2061."""
    (engine,) = session.get("/v1/capabilities").json()["engines"]
    assert engine["supported_workloads"] == ["embedding", "rerank"]
    assert engine["features"] == []


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
def test_a_pool_is_asked_for_nothing_else(session: VerifyingSession, workload: str) -> None:
    """A rerank server would answer an embedding, with garbage: it never gets one."""
    other = {"embedding": "rerank", "rerank": "embedding"}[workload]
    for fields in (body(workload, ["fi"], model_ref=other), {"model_ref": other, "ctx": CTX}):
        answer = session.post("/v1/tasks", json=task(**fields))
        assert (answer.status_code, answer.json()["details"]["rule"]) == (400, "unsupported_workload")


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
def test_an_input_that_does_not_fit_is_refused_before_any_work(session: VerifyingSession, workload: str) -> None:
    """ORCH-3016: by the engine's own count; what admission lets through, the engine takes."""
    marks = 2 if workload == "embedding" else 2 + 3
    longest = "ba " * (CTX - marks)
    task_id = submit(session, **body(workload, ["fi", longest]))
    assert events(session, task_id)[-1].data["finish_reason"] == "stop"
    answer = session.post("/v1/tasks", json=task(**body(workload, ["fi", longest + "ba"])))
    assert (answer.status_code, answer.json()["details"]["rule"]) == (400, "prompt_exceeds_ctx")
    assert answer.json()["details"]["field"] == "inputs[1]"
    assert answer.json()["details"]["tokens_in"] == CTX + 1
    wide = session.post("/v1/tasks", json=task(**body(workload, ["fi"], ctx=CTX + 1)))
    assert wide.json()["details"]["rule"] == "ctx_exceeds_model"


def test_many_at_once_share_the_slots(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3026: slots of pooled work are the engine's choice; cancelled ones come back, none is quarantined."""
    tasks = [submit(session, **body("embedding", ["ba fi gono " * 50] * 40)) for _ in range(8)]
    for task_id in tasks[::2]:
        assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
    ends = [events(session, task_id)[-1].data["finish_reason"] for task_id in tasks]
    assert ends[1::2] == ["stop"] * 4
    wait_for(lambda: session.get("/v1/pools/embedding/health").json()["slots_busy"] == 0, "every slot is free", 20)
    (replica,) = session.get("/v1/pools/embedding/health").json()["replicas"]
    assert replica["slots_quarantined"] == 0
