"""What the daemon calls in use when the cache of models has to make room (OD-41)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from orchestratord.ports import ModelUnavailable, Used
from orchestratord.services.modelcache import CacheBound
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from tests.services.support import records
from tests.services.test_reload import NEXT, as_process, next_engine

HEX = "0123456789abcdef" * 4


def used(app: LiveApp) -> Used:
    return app.call(app.daemon.cache_bound.used)


def names(refs: Collection[str]) -> set[str]:
    return {ref for ref in refs if ref}


def test_pools_and_what_they_are_pinned_to_are_in_use() -> None:
    """OD-41"""
    pools = [
        mock_pool("home", model="hf:acme/coder@main/q4.gguf"),
        mock_pool("other", model="https://Host.test:443/m.gguf", pins={"model_digest": f"sha256:{HEX}"}),
    ]
    app = LiveApp(mock_settings(pools=pools)).start(ready=False)
    try:
        found = used(app)
    finally:
        app.stop()
    assert names(found.refs) == {"hf:acme/coder/q4.gguf", "https://host.test/m.gguf"}
    assert found.digests == {f"sha256:{HEX}"}


def test_a_reload_is_in_use_until_it_is_over_and_then_its_model() -> None:
    """OD-41: the old model is not, once nobody serves it."""
    with LiveApp(mock_settings(models={"roots": ["/srv"]})) as app, app.session() as session:
        engine = next_engine(app)
        engine.load_ms = 5_000
        assert session.post("/v1/pools/home/reload", json={"new_model_ref": NEXT}).status_code == 202
        app.settle()
        assert names(used(app).refs) == {"file:home.gguf", NEXT}
        app.advance(30)
        assert session.get("/v1/pools/home/health").json()["operation"]["state"] == "succeeded"
        assert names(used(app).refs) == {NEXT}


def test_where_an_engine_found_its_model_is_in_use() -> None:
    with LiveApp(mock_settings()) as app:
        specs = app.daemon.replicas.all_specs()
        app.daemon.cache_bound._specs = lambda: [as_process(spec) for spec in specs]
        assert used(app).paths == {"/srv/a.gguf"}


def test_all_a_catalog_entry_names_is_in_use() -> None:
    """OD-41"""
    entry = {
        "id": "m",
        "source_url": "hf:acme/coder/q4.gguf",
        "digest": f"sha256:{HEX}",
        "signature_refs": [{"uri": "https://a.test/m.sig"}],
        "sbom": {"uri": "https://a.test/m.json", "digest": f"sha256:{HEX[::-1]}"},
    }
    with LiveApp(mock_settings()) as app, app.session() as session:
        assert session.post("/v1/catalog/models", json=entry).status_code == 201
        found = used(app)
        assert {"hf:acme/coder/q4.gguf", "https://a.test/m.sig", "https://a.test/m.json"} < set(found.refs)
        assert found.digests == {f"sha256:{HEX}", f"sha256:{HEX[::-1]}"}
        assert session.delete("/v1/catalog/models/m").status_code == 204
        assert used(app).digests == frozenset()


class Cache:
    """Gives what it is told to, or raises it."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Used] = []

    async def trim(self, used: Callable[[], Used]) -> tuple[int, int]:
        self.asked.append(used())
        answer = self.answers.pop(0) if self.answers else (0, 5)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


def test_it_looks_at_the_start_and_every_so_often_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """OD-41"""
    cache = Cache((7, 5), OSError(30, "Read-only file system"))
    app = LiveApp(mock_settings(retention={"sweep_ms": 60_000}))
    monkeypatch.setattr(app.daemon.cache_bound, "_cache", cache)
    with app, app.session() as session:
        assert len(cache.asked) == 1
        app.advance(200)
        assert len(cache.asked) == 4
        (told,) = records(app, "cache_trimmed")
        assert (told["gone_bytes"], told["left_bytes"]) == (7, 5)
        assert next(records(app, "cache_trim_failed"))["error"].endswith("Read-only file system")
        assert "orchestratord_model_cache_dropped_bytes_total 7.0" in session.get("/metrics").text


def test_a_daemon_has_the_bound_of_its_configuration() -> None:
    """And stops while it waits for its moment."""
    settings = mock_settings(models={"fetch": {"schemes": ["https"], "cache_bytes": 77}})
    with LiveApp(settings) as app:
        assert isinstance(app.daemon.cache_bound, CacheBound)
        assert app.daemon.models._policy.cache_bytes == 77
        app.call(lambda: setattr(app.daemon.models._gate, "_inside", 1))
        app.advance(700)
    with pytest.raises(ModelUnavailable):
        app.daemon.models.check("hf:acme/coder")
