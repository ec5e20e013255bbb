"""A pool whose engine is a real llama-server and whose models lie elsewhere: on an https server of loopback."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import requests

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.fetch.site import Asked, Reply, Site, write_root

PATIENCE_S = 60.0
OVER = ("succeeded", "failed", "rolled_back")


class Elsewhere:
    """`site` has the files; the daemon is allowed to fetch from it as far as `fetch` says."""

    def __init__(self, folder: Path) -> None:
        self.site = Site().start()
        self.folder = folder
        for seed, name in enumerate(("first", "second"), 1):
            path = folder / f"{name}.gguf"
            tiny_llama(path, seed=seed)
            self.site.files[f"/{name}.gguf"] = path.read_bytes()
        self.site.files["/page.gguf"] = b"<!doctype html>"
        self.fetch: dict[str, Any] = {
            "schemes": ["https"],
            "allow_private": [f"127.0.0.1:{self.site.port}"],
            "ca_roots": {"own": write_root(folder)},
        }
        self.sweep_ms = 600_000
        self.app: LiveApp | None = None
        self.gate = threading.Event()
        self._pausing = threading.Event()  # never set: to wait on
        self.answer: requests.Response | None = None

    def ref(self, name: str) -> str:
        return self.site.at(f"/{name}.gguf")

    def start(self, *, local: bool) -> None:
        """The daemon, with one pool; `local`: its first model is a file of this machine."""
        model = {"model_path": str(self.folder / "first.gguf")} if local else {}
        process = {**model, "slots": 1, "ctx": 512, "threads": 1}
        ref = f"file:{self.folder / 'first.gguf'}" if local else self.ref("first")
        pool = {"id": "home", "engine": "llamacpp", "model": ref, "replicas": [{"id": "r0", "process": process}]}
        data = self.folder / "data"
        sections: dict[str, Any] = {"models": {"fetch": self.fetch}, "retention": {"sweep_ms": self.sweep_ms}}
        settings = mock_settings(data, pools=[pool], **sections)
        self.app = LiveApp(settings, manual=False).start(ready=False)
        if local:
            self.until(lambda: self.health()["ready"], "the pool is ready")

    def hold(self, name: str) -> None:
        """Send the first half of a file, then wait for the gate."""
        data = self.site.files[f"/{name}.gguf"]

        def half(asked: Asked) -> Reply:
            reply = self.site.file(asked, data)
            return Reply(reply.status, reply.body, reply.headers, pause=len(data) // 2, hold=self.gate)

        self.site.routes[f"/{name}.gguf"] = half

    def cached(self) -> list[str]:
        """Which of the models the cache has."""
        found = [path.read_bytes() for path in (self.folder / "data" / "models" / "sha256").glob("*/*")]
        return [name for name in ("first", "second") if self.site.files[f"/{name}.gguf"] in found]

    def reload(self, ref: str) -> None:
        assert self.app is not None
        with self.app.session() as session:
            self.answer = session.post("/v1/pools/home/reload", json={"new_model_ref": ref})

    def health(self) -> dict[str, Any]:
        assert self.app is not None
        with self.app.session() as session:
            found: dict[str, Any] = session.get("/v1/pools/home/health").json()
            return found

    def outcome(self) -> dict[str, Any]:
        """The reload, once it is over."""
        self.until(lambda: self.health()["operation"]["state"] in OVER, "the reload is over")
        operation: dict[str, Any] = self.health()["operation"]
        return operation

    def until(self, true: Any, what: str) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < ends, f"it took more than {PATIENCE_S} s until {what}"
            self._pausing.wait(0.02)

    def stop(self) -> None:
        self.gate.set()
        if self.app is not None:
            self.app.stop()
        self.site.stop()
