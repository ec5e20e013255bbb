"""kill -9 on a real daemon: what was acknowledged is still there, what was shown stays, nothing runs twice."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
import requests

from orchestratord.testing.frames import Frame
from orchestratord.testing.session import VerifyingSession
from tests.http.daemon import DaemonProcess, write_config
from tests.http.support import submit, task, wait_for

TERMINAL = ("end", "error")
LONG = 500


def replay(session: VerifyingSession, task_id: str, after: int = 0) -> list[Frame]:
    """Every event of a task from `after` to its end."""
    with session.events(task_id, last_event_id=after or None, timeout=(2, 20)) as events:
        return list(events)


def status(session: VerifyingSession, task_id: str) -> dict[str, Any]:
    answer = session.get(f"/v1/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def files_with(folder: Path, text: str) -> list[str]:
    """Files that hold these bytes anywhere."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def started_in(output: str) -> list[str]:
    """Task ids in the order the log says they were started."""
    records = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return [record["job_id"] for record in records if record["event"] == "task_started"]


def test_one_running_and_five_queued(tmp_path: Path) -> None:
    """The five run in their order; the one that ran ends with WORKER_RESET and its reader resumes where it was."""
    data = tmp_path / "data"
    config = write_config(tmp_path, data=data, slots=1, token_ms=20)
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        bodies = [task(prompt=f"canary-prompt-{n}", max_tokens=LONG if n == 0 else 3, ctx=4000) for n in range(6)]
        first = [session.post("/v1/tasks", json=body) for body in bodies]
        assert [answer.status_code for answer in first] == [202] * 6
        ids = [str(body["task_id"]) for body in bodies]
        seen: list[Frame] = []
        with session.events(ids[0], cut=True) as events:
            while len(seen) < 30:
                event = next(events)
                seen += [event] if event.id is not None else []
            assert [status(session, task_id)["state"] for task_id in ids] == ["running"] + ["queued"] * 5
            daemon.kill()
    assert files_with(data, "canary-prompt-3"), "a waiting task needs its prompt: it has to be in the journal"

    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        rest = replay(session, ids[0], after=seen[-1].id or 0)
        log = [event for event in rest if event.id is not None]
        assert all((event.id or 0) > (seen[-1].id or 0) for event in log)
        assert {event.name for event in log[:-1]} <= {"token"}
        assert (log[-1].name, log[-1].data["code"], log[-1].data["retriable"]) == ("error", "WORKER_RESET", True)
        assert log[-1].id == LONG + 2, "just above the largest id the task could have used"
        whole = {event.id: event.raw for event in replay(session, ids[0]) if event.id is not None}
        assert all(whole[event.id] == event.raw for event in seen if event.id in whole), "shown events do not change"
        recorded = [event_id for event_id in whole if event_id is not None and event_id <= (seen[-1].id or 0)]
        assert len(recorded) > 5, "tokens are journaled at most 250 ms behind"

        for task_id in ids[1:]:
            assert [event.name for event in replay(session, task_id) if event.id is not None] == [
                "started",
                *["token"] * 3,
                "end",
            ]
        states = [status(session, task_id) for task_id in ids]
        assert [state["state"] for state in states] == ["failed"] + ["ended"] * 5
        times = [state["started_at_ms"] for state in states[1:]]
        assert times == sorted(times)
        assert [state["created_at_ms"] for state in states] == sorted(state["created_at_ms"] for state in states)

        again = [session.post("/v1/tasks", json=body) for body in bodies]
        for before, now in zip(first, again, strict=True):
            assert now.status_code == 202
            assert now.json() == before.json()
            assert now.headers["X-Idempotent-Replay"] == "true"
        assert session.post("/v1/tasks", json={**bodies[2], "max_tokens": 4}).status_code == 409

        wait_for(lambda: not files_with(data, "canary-prompt"), "the prompts of finished tasks are erased")
        daemon.signal()
        assert daemon.ended() == 0
        assert started_in(daemon.output()) == ids[1:], "each once, in the order of admission"
    assert files_with(data, "canary-prompt") == []


def test_a_priority_outlives_the_crash(tmp_path: Path) -> None:
    """Batch came first and still waits behind interactive."""
    config = write_config(tmp_path, data=tmp_path / "data", slots=1, token_ms=20)
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        blocker = submit(session, max_tokens=LONG, ctx=4000)
        with session.events(blocker, cut=True) as events:
            while next(events).name != "token":
                pass
            batch = [submit(session, priority="batch", max_tokens=2) for _ in range(2)]
            interactive = [submit(session, max_tokens=2) for _ in range(2)]
            daemon.kill()
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        for task_id in batch + interactive:
            assert replay(session, task_id)[-1].name == "end"
        daemon.signal()
        assert daemon.ended() == 0
        assert started_in(daemon.output()) == interactive + batch


def test_a_deadline_runs_on_while_the_daemon_is_down(tmp_path: Path) -> None:
    """It counts from admission, not from the restart."""
    config = write_config(tmp_path, data=tmp_path / "data", slots=1, token_ms=20)
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        blocker = submit(session, max_tokens=LONG, ctx=4000)
        with session.events(blocker, cut=True) as events:
            while next(events).name != "token":
                pass
            body = task(deadline_ms=15_000, max_tokens=2)
            answer = session.post("/v1/tasks", json=body)
            assert answer.status_code == 202, answer.text
            created = status(session, str(body["task_id"]))["created_at_ms"]
            daemon.kill()
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        assert replay(session, str(body["task_id"]))[-1].name == "end"
        found = status(session, str(body["task_id"]))
        assert found["created_at_ms"] == created
        assert found["ended_at_ms"] - created < 15_000


def test_a_cancel_that_was_acknowledged_holds(tmp_path: Path) -> None:
    """204 and then kill -9: the task is canceled for ever, under the same last id, and never runs."""
    config = write_config(tmp_path, data=tmp_path / "data", slots=1, token_ms=20)
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        ids = [submit(session, max_tokens=LONG, ctx=4000) for _ in range(3)]
        with session.events(ids[0], cut=True) as events:
            while next(events).name != "token":
                pass
        seals = [session.post(f"/v1/tasks/{task_id}/cancel").headers["X-Last-Event-Id"] for task_id in ids]
        daemon.kill()
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        for task_id, seal in zip(ids, seals, strict=True):
            last = replay(session, task_id)[-1]
            assert (last.name, last.data["finish_reason"], str(last.id)) == ("end", "canceled", seal)
            assert status(session, task_id)["state"] == "canceled"
        daemon.signal()
        assert daemon.ended() == 0
        assert started_in(daemon.output()) == []


def test_a_deleted_session_stays_deleted(tmp_path: Path) -> None:
    config = write_config(tmp_path, data=tmp_path / "data")
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        body = task()
        assert session.post("/v1/tasks", json=body).status_code == 202
        replay(session, str(body["task_id"]))
        assert session.get(f"/v1/sessions/{body['session_id']}").status_code == 200
        assert session.delete(f"/v1/sessions/{body['session_id']}").status_code == 204
        daemon.kill()
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        assert session.get(f"/v1/sessions/{body['session_id']}").status_code == 404


def test_artifacts_and_transcripts_survive(tmp_path: Path) -> None:
    """What got a 201 is there; a finished task has its transcript, whether or not it had reached the store."""
    config = write_config(tmp_path, data=tmp_path / "data", token_ms=0)
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        mine = session.post("/v1/artifacts", json={"kind": "plan", "content": {"a": [1, 2, {"b": "ü"}]}}).json()["id"]
        task_id = submit(session)
        text = "".join(event.data["t"] for event in replay(session, task_id) if event.name == "token")
        daemon.kill()
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        assert session.get(f"/v1/artifacts/{mine}").json()["content"] == {"a": [1, 2, {"b": "ü"}]}
        transcript = session.get(f"/v1/artifacts/{status(session, task_id)['transcript_id']}").json()
        assert transcript["content"]["text"] == text


@pytest.mark.parametrize("seed", [1])
def test_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Five times, amid coming and going: every acknowledged task is known and comes to one end, the one that was seen.

    A life ends shortly after it has acknowledged some tasks, however fast or slow the machine is.
    """
    draw = Random(seed)
    config = write_config(tmp_path, data=tmp_path / "data", slots=2, token_ms=4)
    acknowledged: list[str] = []
    told: dict[str, tuple[int | None, bytes]] = {}  # terminal events readers got
    for _ in range(5):
        with DaemonProcess(config) as daemon, daemon.up().session() as session:
            timer = threading.Timer(draw.uniform(0, 0.2), daemon.process.kill)
            enough = len(acknowledged) + draw.randint(5, 30)
            try:
                while True:
                    if len(acknowledged) >= enough and not timer.ident:
                        timer.start()
                    body = task(max_tokens=draw.randint(1, 40), priority=draw.choice(["batch", "interactive"]))
                    answer = session.post("/v1/tasks", json=body)
                    if answer.status_code == 202:
                        acknowledged.append(str(body["task_id"]))
                    if draw.random() < 0.2 or answer.status_code == 429:
                        with session.events(draw.choice(acknowledged), cut=True) as events:
                            for event in events:
                                if event.name in TERMINAL:
                                    told[events.response.url] = (event.id, event.raw)
            except requests.RequestException:
                pass  # it is dead
            timer.join()
            daemon.process.wait()
    assert len(acknowledged) >= 5 * 5
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        for task_id in acknowledged:
            events = [event for event in replay(session, task_id) if event.id is not None]
            assert [event.name in TERMINAL for event in events].count(True) == 1
            assert events[-1].name in TERMINAL
            assert status(session, task_id)["state"] in ("ended", "failed")
            seen = next((end for url, end in told.items() if task_id in url), None)
            assert seen in (None, (events[-1].id, events[-1].raw))
        health = session.get("/v1/pools/home/health").json()
        assert (health["slots_busy"], health["queue"]["interactive"], health["queue"]["batch"]) == (0, 0, 0)


def test_the_catalog_survives(tmp_path: Path) -> None:
    """ORCH-3060, ORCH-3062: every change that was answered, and nothing that was taken back."""
    config = write_config(tmp_path, data=tmp_path / "data")
    models = "/v1/catalog/models"
    with DaemonProcess(config) as daemon, daemon.up().session() as session:
        for name in ("kept", "gone", "mine"):
            source = "file:home.gguf" if name == "mine" else f"file:{name}.gguf"
            assert session.post(models, json={"id": name, "source_url": source}).status_code == 201
        assert session.delete(f"{models}/gone").status_code == 204
        assert session.post(f"{models}/mine/state", json={"state": "Retired"}).status_code == 202
        daemon.kill()

    with DaemonProcess(config) as daemon, daemon.up("/healthz").session() as session:
        items = session.get(models).json()["items"]
        assert [(item["id"], item["state"]) for item in items] == [("mine", "Retired"), ("kept", "Active")]
        refused = session.post("/v1/tasks", json=task())
        assert (refused.status_code, refused.json()["code"]) == (409, "MODEL_DEPRECATED")
        wait_for(lambda: session.get("/v1/pools/home/health").json()["draining"], "its pool is drained")
