"""Engines whose model is a reference, and a daemon that is told to start such ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestratord.app import Daemon
from orchestratord.config import ConfigError, load
from orchestratord.infra.fetch.host import FetchingHost
from orchestratord.ports import ModelUnavailable, ProcessSpec
from orchestratord.testing.live import mock_settings


class Host:
    def __init__(self) -> None:
        self.started: list[str] = []

    async def start(self, spec: ProcessSpec) -> Any:
        self.started.append(spec.model_path)


class Files:
    def __init__(self, fault: ModelUnavailable | None = None) -> None:
        self.fault = fault

    async def resolve(self, ref: str, digest: str | None = None) -> str:
        return f"/cache/of/{ref}"

    async def verify(self, path: str) -> str | None:
        if self.fault is not None:
            raise self.fault
        return None


def spec(path: str) -> ProcessSpec:
    return ProcessSpec("llamacpp", path, 1, 64, 1, None, (), {}, None)


def test_a_reference_is_resolved_and_a_path_is_left_alone() -> None:
    """ORCH-3072"""
    host = Host()
    fetching = FetchingHost(host, Files())  # type: ignore[arg-type]
    for path in ("hf:acme/coder/q4.gguf", "/srv/a.gguf", "a.gguf"):
        asyncio.run(fetching.start(spec(path)))
    assert host.started == ["/cache/of/hf:acme/coder/q4.gguf", "/srv/a.gguf", "a.gguf"]


def test_what_cannot_be_had_is_an_engine_that_cannot_be_started() -> None:
    """So it is tried again like one, and health says why."""
    host = Host()
    fetching = FetchingHost(host, Files(ModelUnavailable("NOT_FOUND", "it is not there")))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="it is not there"):
        asyncio.run(fetching.start(spec("hf:acme/coder")))
    assert host.started == []


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
