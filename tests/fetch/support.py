"""Models on top of sites: policies, names that lead where a test wants, and one call that fetches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestratord.domain.url import parse_url
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.models import Models
from orchestratord.infra.fetch.policy import FetchPolicy, S3Access
from orchestratord.infra.fetch.remote import Remote
from orchestratord.ports import ModelUnavailable
from tests.fetch.site import Site, write_root

T = TypeVar("T")
ALL = frozenset({"hf", "https", "s3", "oci"})


class Names:
    """A resolver. What a name leads to, one entry per question; the last one stays."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.names = {name.replace("_", "."): answers for name, answers in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.names.get(host, [["127.0.0.1"]] if host == "localhost" or host.endswith(".test") else [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Lab:
    """A cache folder and a policy that allows the given sites, under any of their names."""

    def __init__(self, folder: Path, *sites: Site, environ: Mapping[str, str] | None = None, **policy: Any) -> None:
        self.folder = folder
        self.cache = Cache(folder / "cache")
        root = write_root(folder)
        names = [f"{host}:{site.port}" for site in sites for host in ("127.0.0.1", "localhost", "a.test", "b.test")]
        hub = parse_url(f"https://{names[0]}/") if names else parse_url("https://hub.invalid/")
        self.policy = replace(
            FetchPolicy(ALL, private=frozenset(names), ca_roots=(root,), hub=hub, s3=S3Access(hub), idle_s=10.0),
            **policy,
        )
        self.names = Names()
        self.environ = environ or {}
        self.roots: list[str] = []
        self.clock = SystemClock()

    def models(self) -> Models:
        names, environ = self.names, self.environ
        remote = Remote(self.policy, self.cache, self.clock, resolve=names, environ=environ, pause_s=0.001)
        return Models(LocalFiles(self.roots), self.policy, self.cache, remote)

    def run(self, work: Callable[[Models], Coroutine[Any, Any, T]]) -> T:
        async def whole() -> T:
            models = self.models()
            try:
                return await work(models)
            finally:
                await models.close()

        return asyncio.run(whole())

    def fetch(self, ref: str, digest: str | None = None) -> Path:
        return Path(self.run(lambda models: models.resolve(ref, digest)))

    def refusal(self, ref: str, digest: str | None = None) -> ModelUnavailable:
        with pytest.raises(ModelUnavailable) as refused:
            self.fetch(ref, digest)
        return refused.value

    @property
    def kept(self) -> list[Path]:
        """Every file in the cache but what is known of references."""
        return sorted(p for p in (self.folder / "cache").rglob("*") if p.is_file() and p.parent.name != "refs")
