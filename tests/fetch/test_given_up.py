"""A server holds a model back for ever: whoever waits for it can be stopped all the same, and so can the daemon."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.fetch.site import MODEL, Asked, Reply, Site, digest, serving, write_root
from tests.services.support import health, wait_for
from tests.services.test_reload import as_process

CATALOG = "/v1/catalog/models"


class Held:
    """A site that answers nothing (`head`), or half of its file (`body`), and then waits."""

    def __init__(self, site: Site, phase: str) -> None:
        self.site, self.phase = site, phase
        self.gate, self.reached = threading.Event(), threading.Event()
        site.routes["/m.gguf"] = self.answer

    def answer(self, asked: Asked) -> Reply:
        self.reached.set()
        if self.phase == "head":
            self.gate.wait(60)
        return Reply(200, MODEL, {"ETag": '"1"'}, pause=len(MODEL) // 2, hold=self.gate)

    @property
    def ref(self) -> str:
        return self.site.at("/m.gguf")

    def being_fetched(self, app: LiveApp) -> None:
        """Return when the server has begun to keep the daemon waiting."""
        assert self.reached.wait(10)
        if self.phase == "body":
            wait_for(lambda: (app.call(lambda: app.daemon.models.progress(self.ref)) or (0, 0))[1], "its size is known")


@pytest.fixture(params=["head", "body"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    with serving() as site:
        found = Held(site, request.param)
        try:
            yield found
        finally:
            found.gate.set()


def daemon(folder: Path, held: Held, **sections: Any) -> LiveApp:
    fetch = {
        "schemes": ["https"],
        "allow_private": [f"127.0.0.1:{held.site.port}"],
        "ca_roots": {"own": write_root(folder)},
    }
    return LiveApp(mock_settings(folder / "data", models={"fetch": fetch}, **sections), manual=False)


def check(app: LiveApp, session: VerifyingSession, held: Held) -> None:
    assert session.post(CATALOG, json={"id": "m", "source_url": held.ref}).status_code == 201
    assert session.post(f"{CATALOG}/m/verify").status_code == 202
    held.being_fetched(app)


def reload(app: LiveApp, session: VerifyingSession, held: Held) -> None:
    wait_for(lambda: health(session)["ready"], "the pool is ready")
    replicas = app.daemon.replicas
    known = replicas.specs
    replicas.specs = lambda pool: [as_process(spec) for spec in known(pool)]  # type: ignore[method-assign]
    assert session.post("/v1/pools/home/reload", json={"new_model_ref": held.ref}).status_code == 202
    held.being_fetched(app)
    assert health(session)["operation"]["state"] == "fetching"


@pytest.mark.parametrize("what", [check, reload])
def test_a_daemon_stops_while_something_is_fetched(
    tmp_path: Path, held: Held, what: Callable[[LiveApp, VerifyingSession, Held], None]
) -> None:
    """OD-17, ORCH-3039: and comes back as if the check or the reload had never begun."""
    with daemon(tmp_path, held) as app, app.session() as session:
        what(app, session, held)
    assert not held.gate.is_set(), "the daemon is down, and the server still holds it back"
    with daemon(tmp_path, held) as app, app.session() as session:
        wait_for(lambda: health(session)["ready"], "the pool is ready")
        assert health(session)["model_ref"] == "file:home.gguf"
        if what is check:
            assert session.get(f"{CATALOG}/m").json()["verification"]["status"] in ("unverified", "failed")
        else:
            operation = health(session)["operation"]
            assert (operation["state"], operation["error"]["code"]) == ("rolled_back", "WORKER_RESET")


def test_a_daemon_stops_while_a_pool_waits_for_its_first_model(tmp_path: Path, held: Held) -> None:
    """OD-17"""
    pool = {"id": "home", "engine": "llamacpp", "model": held.ref, "replicas": [{"id": "r0", "process": {}}]}
    app = daemon(tmp_path, held, pools=[pool]).start(ready=False)
    try:
        held.being_fetched(app)
    finally:
        app.stop()
    assert not held.gate.is_set()


def test_a_daemon_stops_while_a_server_does_not_even_greet(tmp_path: Path) -> None:
    """OD-17: it takes the connection and says nothing of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fetch = {"schemes": ["https"], "allow_private": [f"127.0.0.1:{port}"]}
        with LiveApp(mock_settings(tmp_path, models={"fetch": fetch}), manual=False) as app, app.session() as session:
            entry = {"id": "m", "source_url": f"https://127.0.0.1:{port}/m.gguf"}
            assert session.post(CATALOG, json=entry).status_code == 201
            assert session.post(f"{CATALOG}/m/verify").status_code == 202
            connection, _ = server.accept()
        connection.close()


def test_a_check_is_given_up_with_its_entry(tmp_path: Path, held: Held) -> None:
    """ORCH-3060"""
    with daemon(tmp_path, held) as app, app.session() as session:
        check(app, session, held)
        assert session.delete(f"{CATALOG}/m").status_code == 204
        wait_for(lambda: app.call(lambda: app.daemon.models.progress(held.ref)) is None, "the fetch is given up")


def test_a_check_that_waits_for_a_server_keeps_no_other(tmp_path: Path, held: Held) -> None:
    """ORCH-3061: one model is read at a time, and no more than that."""
    held.site.files["/other.gguf"] = MODEL
    with daemon(tmp_path, held) as app, app.session() as session:
        check(app, session, held)
        other = {"id": "other", "source_url": held.site.at("/other.gguf"), "digest": digest(MODEL)}
        assert session.post(CATALOG, json=other).status_code == 201
        assert session.post(f"{CATALOG}/other/verify").status_code == 202
        wait_for(
            lambda: session.get(f"{CATALOG}/other").json()["verification"]["status"] == "passed", "the other is checked"
        )
        assert session.get(f"{CATALOG}/m").json()["verification"]["status"] == "running"


def test_what_else_can_be_done_to_a_pool_that_is_fetching(tmp_path: Path, held: Held) -> None:
    """ORCH-3040: an equal repeat joins it, everything else is told what runs; tasks are served meanwhile."""
    with daemon(tmp_path, held, pools=[mock_pool("home"), mock_pool("other")]) as app, app.session() as session:
        reload(app, session, held)
        running = health(session)["operation"]["operation_id"]
        again = session.post("/v1/pools/home/reload", json={"new_model_ref": held.ref})
        assert (again.status_code, again.json()["operation_id"]) == (202, running)
        for path, body in (("drain", {"deadline_ms": 1000}), ("reload", {"new_model_ref": "other"}), ("resume", None)):
            refused = session.post(f"/v1/pools/home/{path}", json=body)
            assert (refused.status_code, refused.json()["details"]["operation_id"]) == (409, running), path
        assert health(session)["ready"] is True
        assert session.post("/v1/pools/other/drain", json={"deadline_ms": 1000}).status_code == 202
