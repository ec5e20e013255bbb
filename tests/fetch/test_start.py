"""Engines whose model is a reference, and a daemon that is told to start such ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestratord.app import Daemon
from orchestratord.config import ConfigError, load
from orchestratord.ports import ModelUnavailable, ProcessSpec
from orchestratord.services.members import ReplicaSpec, at_hand
from orchestratord.testing.live import LiveApp, mock_settings
from tests.services.support import health

REF = "hf:acme/coder/q4.gguf"


class Files:
    """Everything is in one folder, and has one digest."""

    def __init__(self, fault: ModelUnavailable | None = None) -> None:
        self.fault = fault
        self.asked: list[tuple[str, str | None]] = []

    def check(self, ref: str) -> None: ...

    async def resolve(self, ref: str, digest: str | None = None) -> str:
        self.asked.append((ref, digest))
        if self.fault is not None:
            raise self.fault
        return "/cache/q4"

    async def verify(self, path: str) -> str | None:
        return "sha256:found"

    def progress(self, ref: str) -> tuple[int, int] | None:
        return None


def spec(path: str) -> ReplicaSpec:
    process = ProcessSpec("llamacpp", path, 1, 64, 1, None, (), {}, None)
    return ReplicaSpec("r0", "home", process=process)


def test_a_reference_becomes_a_path_and_a_path_is_left_alone() -> None:
    """ORCH-3072: the pool's pin, if it has one, is what the file must have."""
    files = Files()
    found = asyncio.run(at_hand(spec(REF), files, "sha256:pinned"))
    assert found.process is not None
    assert (found.process.model_path, found.model_digest) == ("/cache/q4", "sha256:found")
    assert files.asked == [(REF, "sha256:pinned")]
    for path in ("/srv/a.gguf", "a.gguf"):
        assert asyncio.run(at_hand(spec(path), files, "sha256:pinned")) == spec(path)
    assert len(files.asked) == 1


def test_what_cannot_be_fetched_is_tried_again_for_ever(monkeypatch: Any) -> None:
    """A hub that is away is no engine that dies again and again: no storm, and health says why."""
    starts: list[str] = []

    class Host:
        async def start(self, process: ProcessSpec) -> Any:
            starts.append(process.model_path)
            raise OSError("no engine here")

    app = LiveApp(mock_settings())
    files = Files(ModelUnavailable("FETCH_FAILED", "the hub is away"))
    monkeypatch.setattr(app.daemon.replicas, "_files", files)
    monkeypatch.setattr(app.daemon.replicas, "_host", Host())
    original = app.daemon.residents.start
    storms = replace(spec(REF), restarts=(2, 600.0))
    monkeypatch.setattr(app.daemon.residents, "start", lambda _: original([storms]))
    app.start(ready=False)
    try:
        app.advance(300)
        with app.session() as session:
            assert health(session)["last_error"]["message"] == "the hub is away"
        assert len(files.asked) > 5
        assert starts == []
        files.fault = None
        app.advance(60)
        assert set(starts) == {"/cache/q4"}
        assert len(files.asked) > 5
    finally:
        app.stop()


def pool(model: str) -> dict[str, Any]:
    return {"id": "home", "engine": "llamacpp", "model": model, "replicas": [{"id": "r0", "process": {}}]}


def test_a_pool_that_may_not_fetch_its_model_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    """ORCH-3090: it is said at the start, not when the first replica fails."""
    with pytest.raises(ConfigError, match=r"pool 'home'.*models\.fetch\.schemes"):
        Daemon(mock_settings(tmp_path, pools=[pool("hf:acme/coder/q4.gguf")]))
    with pytest.raises(ConfigError, match=r"pool 'home'.*models\.roots"):
        Daemon(mock_settings(tmp_path, pools=[pool("file:/etc/passwd")]))
    Daemon(mock_settings(tmp_path, pools=[pool("hf:acme/coder")], models={"fetch": {"schemes": ["hf"]}}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "pools: [{id: home, engine: llamacpp, model: coder, replicas: [{id: r0, process: {}}]}]",
            "process.model_path",
        ),
        ("models: {fetch: {schemes: [http]}}", "schemes"),
        ("models: {fetch: {hosts: ['https://a.example']}}", "models.fetch.hosts"),
        ("models: {fetch: {allow_private: ['*.example']}}", "models.fetch.allow_private"),
        ("models: {fetch: {tokens: {'a b': TOKEN}}}", "models.fetch.tokens"),
        ("models: {fetch: {hub: 'http://hub.example'}}", "models.fetch.hub"),
        ("models: {fetch: {hub: 'https://hub.example/path'}}", "models.fetch.hub"),
        ("models: {fetch: {s3: {endpoint: 's3.example'}}}", "models.fetch.s3.endpoint"),
        ("models: {fetch: {max_byte: 5}}", "max_bytes"),
    ],
)
def test_mistakes_in_the_policy_are_said(tmp_path: Path, text: str, said: str) -> None:
    """ORCH-3090"""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "c.yaml", {})
    assert said in str(error.value)
