"""The way of a transcript: durable in the journal, served at once, and in the store as soon as that can be written."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from orchestratord.infra.engines.mock import MockScript
from orchestratord.infra.journal import database
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.ports import Artifact, ArtifactTooLarge, Encoded, JournalUnavailable
from orchestratord.services import outbox
from orchestratord.services.outbox import Outbox
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import records, submit, wait_for


class Store(MemoryArtifacts):
    """Can be full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.attempts = 0

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        self.attempts += 1
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().put(artifact, automatic=automatic)


def transcript_id(app: LiveApp, session: VerifyingSession, **fields: Any) -> str:
    task_id = submit(session, **fields)
    app.settle()
    found: str = session.get(f"/v1/tasks/{task_id}").json()["transcript_id"]
    return found


def test_a_transcript_is_served_before_it_is_stored_and_after() -> None:
    """A full disk holds it up and loses nothing; it is tried again until it works."""
    store = Store()
    with LiveApp(store=store) as app, app.session() as session:
        store.full = True
        ids = [transcript_id(app, session) for _ in range(3)]
        waiting = [session.get(f"/v1/artifacts/{one}").json() for one in ids]
        listed = session.get("/v1/artifacts").json()["items"]
        assert {item["id"] for item in listed} == set(ids)
        assert store._whole == {}
        app.advance(60)
        assert 5 < store.attempts < 30, "it is tried again every few seconds, one transcript at a time"
        assert list(records(app, "archive_failed"))
        store.full = False
        app.advance(6)
        assert set(store._whole) == set(ids)
        assert app.call(lambda: len(app.daemon.artifacts.outbox)) == 0
        assert [session.get(f"/v1/artifacts/{one}").json() for one in ids] == waiting
        assert session.get("/v1/artifacts").json()["items"] == listed


def test_a_client_is_told_that_the_store_is_full() -> None:
    store = Store()
    with LiveApp(store=store) as app, app.session() as session:
        store.full = True
        refusal = session.post("/v1/artifacts", json={"kind": "plan", "content": "x"})
        assert (refusal.status_code, refusal.json()["code"]) == (503, "STORAGE_UNAVAILABLE")
        assert "No space" not in refusal.text
        store.full = False
        assert session.post("/v1/artifacts", json={"kind": "plan", "content": "x"}).status_code == 201


@pytest.mark.parametrize("room", [database.ROOM, 0])
def test_a_restart_finds_what_had_not_reached_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Whether or not there is room for all of it at once."""
    monkeypatch.setattr(database, "ROOM", room)
    settings = mock_settings(tmp_path)
    full = Store()
    full.full = True
    with LiveApp(settings, store=full) as app, app.session() as session:
        ids = [transcript_id(app, session) for _ in range(2)]
        before = [session.get(f"/v1/artifacts/{one}").json() for one in ids]
    empty = Store()
    with LiveApp(settings, store=empty) as app, app.session() as session:
        wait_for(lambda: app.advance(1) or len(empty._whole) == len(ids), "all are stored")
        assert set(empty._whole) == set(ids)
        assert [session.get(f"/v1/artifacts/{one}").json() for one in ids] == before
    third = Store()
    with LiveApp(settings, store=third) as app:
        app.advance(1)
        assert third.attempts == 0, "what was archived is not archived again"


@pytest.mark.parametrize("room", [3, 2])
def test_a_task_stays_until_its_transcript_is_stored(tmp_path: Path, room: int) -> None:
    """OD-40: the journal's copy goes with it. A store that is full for hours loses none, unless they are too many."""
    settings = mock_settings(tmp_path, retention={"tasks_ms": 60_000, "tasks": room})
    store = Store()
    store.full = True
    with LiveApp(settings, store=store) as app, app.session() as session:
        tasks = [submit(session) for _ in range(3)]
        app.advance(200)
        known = [session.get(f"/v1/tasks/{one}").status_code for one in tasks]
        assert known == [404] * (3 - room) + [200] * room
    store = Store()
    with LiveApp(settings, store=store) as app, app.session() as session:
        app.advance(1)
        assert {tag for one in store._whole.values() for tag in one.tags if tag.startswith("task:")} == {
            f"task:{one}" for one in tasks[3 - room :]
        }
        app.advance(80)
        assert session.get("/v1/tasks").json()["items"] == []
        assert app.call(lambda: app.daemon.core.tasks.owed) == set()


def test_one_that_cannot_be_stored_is_forgotten_in_time(tmp_path: Path) -> None:
    """And keeps no other."""

    class Small(Store):
        async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
            if "task:" + tasks[0] in artifact.tags:
                raise ArtifactTooLarge("too large")
            return await super().put(artifact, automatic=automatic)

    tasks: list[str] = [str(uuid4())]
    with LiveApp(mock_settings(retention={"tasks_ms": 60_000}), store=Small()) as app, app.session() as session:
        assert submit(session, task_id=tasks[0]) == tasks[0]
        app.settle()
        other = transcript_id(app, session)
        app.advance(1)
        assert next(records(app, "archive_failed"))["error"] == "ArtifactTooLarge: too large"
        assert session.get(f"/v1/artifacts/{other}").status_code == 200
        app.advance(100)
        assert session.get("/v1/tasks").json()["items"] == []


def test_what_a_transcript_holds() -> None:
    """The text, every log event, and the circumstances; never the prompt."""
    with LiveApp() as app, app.session() as session:
        body_id = submit(session, prompt="canary-prompt", max_tokens=4)
        app.settle()
        status = session.get(f"/v1/tasks/{body_id}").json()
        found = session.get(f"/v1/artifacts/{status['transcript_id']}")
        artifact = found.json()
        with session.events(body_id) as events:
            frames = [event for event in events if event.id is not None]
        assert artifact["kind"] == "trace"
        assert artifact["tags"] == sorted(["sse", "stream", f"task:{body_id}", f"session:{status['session_id']}"])
        told = [{"id": frame.id, "event": frame.name, "data": frame.data} for frame in frames]
        assert artifact["content"]["events"] == told
        assert "canary-prompt" not in found.text
        metadata = artifact["metadata"]
        for name in ("engine", "engine_version", "pool_id", "replica_id", "seed", "placement", "timings"):
            assert metadata[name] is not None, name
        assert len(metadata["prompt_sha256"]) == 64
        assert metadata["prompt_tokens"] == status["tokens_in"]


@pytest.mark.parametrize("way", ["canceled", "failed", "queued"])
def test_every_end_has_its_transcript(way: str) -> None:
    with LiveApp() as app, app.session() as session:
        if way == "failed":
            app.engine().play(MockScript(die_after=2))
        app.call(app.engine().hold)
        blockers = [submit(session) for _ in range(2)] if way == "queued" else []
        task_id = submit(session)
        app.settle()
        app.call(lambda: app.engine().step(2))
        app.settle()
        if way != "failed":
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
        app.call(app.engine().release_hold)
        app.settle()
        status = session.get(f"/v1/tasks/{task_id}").json()
        content = session.get(f"/v1/artifacts/{status['transcript_id']}").json()["content"]
        assert content["events"][-1]["id"] == status["last_event_id"]
        assert bool(content["text"]) == (way != "queued")
        assert len(blockers) in (0, 2)


@pytest.mark.parametrize(("kept", "expected"), [("metadata", True), ("off", False)])
def test_less_can_be_kept(kept: str, expected: bool) -> None:
    with LiveApp(mock_settings(artifacts={"transcripts": kept})) as app, app.session() as session:
        task_id = submit(session)
        app.settle()
        status = session.get(f"/v1/tasks/{task_id}").json()
        assert ("transcript_id" in status) == expected
        if expected:
            artifact = session.get(f"/v1/artifacts/{status['transcript_id']}").json()
            assert (artifact["content"]["text"], artifact["content"]["events"]) == ("", [])
            assert artifact["metadata"]["seed"] == status["seed"]


def test_the_same_content_is_stored_once() -> None:
    """Tags are a set; the first moment counts."""
    with LiveApp() as app, app.session() as session:
        first = session.post("/v1/artifacts", json={"kind": "plan", "content": {"a": 1, "b": 2}, "tags": ["x", "y"]})
        app.advance(5)
        body = {"tags": ["y", "x", "x"], "content": {"b": 2, "a": 1.0}, "kind": "plan"}
        second = session.post("/v1/artifacts", json=body)
        assert first.json() == second.json()
        assert len(session.get("/v1/artifacts").json()["items"]) == 1
        assert session.post("/v1/artifacts", json={**body, "kind": "diff"}).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("values", [2, 9_000])
def test_content_comes_back_in_canonical_form(tmp_path: Path, kind: str, values: int) -> None:
    """OC-CTRL-2065: however much there is of it."""
    with LiveApp(mock_settings(tmp_path if kind == "files" else None)) as app, app.session() as session:
        body = {"kind": "plan", "content": {"b": [2.0] * values, "a": {"z": 1, "y": 1e3}}}
        one = session.post("/v1/artifacts", json=body).json()["id"]
        said = session.get(f"/v1/artifacts/{one}").content
        assert b'{"a":{"y":1000,"z":1},"b":[' + b",".join([b"2"] * values) + b"]}" in said


@pytest.mark.parametrize(
    ("held", "status"),
    [
        ('"{id}"', 304),
        ('W/"{id}"', 304),
        ('"other", "{id}"', 304),
        ("*", 304),
        ("{id}", 200),
        ('"other"', 200),
        ('"*"', 200),
    ],
)
def test_who_holds_an_artifact_gets_no_other(held: str, status: int) -> None:
    """OC-CTRL-2066: the id is the ETag; compared as RFC 9110 13.1.2 has it."""
    with LiveApp() as app, app.session() as session:
        one = session.post("/v1/artifacts", json={"kind": "plan", "content": "x"}).json()["id"]
        answer = session.get(f"/v1/artifacts/{one}", headers={"If-None-Match": held.replace("{id}", one)})
        assert (answer.status_code, answer.headers["ETag"]) == (status, f'"{one}"')
        assert (answer.content == b"") == (status == 304)
        gone = session.get(f"/v1/artifacts/{'0' * 64}", headers={"If-None-Match": "*"})
        assert gone.status_code == 404


def test_a_damaged_artifact_is_not_served(tmp_path: Path) -> None:
    with LiveApp(mock_settings(tmp_path)) as app, app.session() as session:
        artifact = session.post("/v1/artifacts", json={"kind": "plan", "content": "canary-content"}).json()["id"]
        (file,) = [p for p in tmp_path.rglob("*") if p.is_file() and b"canary-content" in p.read_bytes()]
        file.chmod(0o600)
        file.write_bytes(file.read_bytes().replace(b"canary", b"danger"))
        assert session.get(f"/v1/artifacts/{artifact}").status_code == 404
        assert list(records(app, "artifact_corrupt"))


# -- a store that is down for long -----------------------------------------------------------------------------
class Journal:
    """Has every transcript, and tells which were asked for. It can be down, or have lost one."""

    def __init__(self) -> None:
        self.held: dict[str, Artifact] = {}
        self.asked: list[str] = []
        self.healthy = True
        self.lost = ""

    async def transcript(self, task_id: str) -> Artifact | None:
        self.asked.append(task_id)
        if not self.healthy or task_id == self.lost:
            raise JournalUnavailable("it cannot be read")
        return self.held.get(task_id)


def filled(count: int, size: int, bytes_max: int) -> tuple[Outbox, Journal]:
    journal = Journal()
    box = Outbox(journal, bytes_max)  # type: ignore[arg-type]
    for number in range(count):
        content = Encoded(b'"' + b"x" * (size - 2) + b'"')
        task_id = f"task-{number}"
        artifact = Artifact(f"sha256:{number}", "trace", content, (task_id,), None, {"seed": number}, number)
        journal.held[task_id] = artifact
        box.add(task_id, artifact)
    return box, journal


def test_contents_that_wait_have_a_bound_and_lists_show_all() -> None:
    box, journal = filled(count=100, size=1000, bytes_max=10_000)
    assert (len(box), box.bytes) == (100, 10_000)
    assert [artifact.created_ms for artifact in box.shown()] == list(range(100))
    assert [artifact.tags for artifact in box.shown()] == [(task_id,) for task_id in journal.held]
    kept = [artifact for artifact in box.shown() if artifact.content is not None or artifact.metadata]
    assert [artifact.created_ms for artifact in kept] == list(range(10)), "the oldest, as they go first"


def test_the_oldest_come_whole_and_not_too_many_at_once() -> None:
    box, journal = filled(count=40, size=1000, bytes_max=10_000)
    seen: list[Artifact | None] = []

    async def body() -> None:
        while len(box):
            some = await box.oldest(64)
            assert len(some) == 10
            seen.extend(artifact for _, artifact in some)
            for waiting, _ in some:
                box.remove(waiting.artifact.id)

    asyncio.run(body())
    assert seen == list(journal.held.values())
    assert journal.asked == [f"task-{number}" for number in range(10, 40)]
    assert box.bytes == 0


def test_one_that_is_larger_than_the_bound_goes_alone() -> None:
    box, journal = filled(count=3, size=5000, bytes_max=1000)
    assert box.bytes == 0
    (only,) = asyncio.run(box.oldest(64))
    assert only[1] == journal.held["task-0"]


def test_what_came_without_its_content_is_counted_when_it_comes() -> None:
    box, journal = filled(count=40, size=1000, bytes_max=10_000)
    for task_id, artifact in journal.held.items():
        box.add(task_id, replace(artifact, content=None, metadata={}))
    assert box.bytes == 0
    some = asyncio.run(box.oldest(64))
    assert [artifact for _, artifact in some] == list(journal.held.values())[: len(some)]
    assert 10 <= len(some) <= 11


def test_what_the_journal_has_lost_is_told_apart_from_a_journal_that_is_down() -> None:
    box, journal = filled(count=2, size=100, bytes_max=0)
    journal.lost = "task-0"
    ((lost, nothing),) = asyncio.run(box.oldest(64))
    assert (lost.task_id, nothing) == ("task-0", None)
    box.remove(lost.artifact.id)
    ((_, found),) = asyncio.run(box.oldest(64))
    assert found == journal.held["task-1"]
    journal.healthy = False
    with pytest.raises(JournalUnavailable):
        asyncio.run(box.oldest(64))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_that_is_down_for_long_costs_bounded_memory_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """OD-29: every transcript is served meanwhile and stored afterwards, though few are in memory."""
    monkeypatch.setattr(outbox, "BYTES_MAX", 4_000)
    store = Store()
    with LiveApp(mock_settings(tmp_path if kind == "sqlite" else None), store=store) as app, app.session() as session:
        store.full = True
        ids = [transcript_id(app, session, max_tokens=40) for _ in range(12)]
        assert 0 < app.call(lambda: app.daemon.artifacts.outbox.bytes) <= 4_000
        waiting = [session.get(f"/v1/artifacts/{one}").json() for one in ids]
        assert all(len(document["content"]["events"]) > 40 for document in waiting)
        assert {item["id"] for item in session.get("/v1/artifacts").json()["items"]} == set(ids)
        store.full = False
        wait_for(lambda: app.advance(6) or len(store._whole) == len(ids), "all are stored")
        assert app.call(lambda: (len(app.daemon.artifacts.outbox), app.daemon.artifacts.outbox.bytes)) == (0, 0)
        assert [session.get(f"/v1/artifacts/{one}").json() for one in ids] == waiting
