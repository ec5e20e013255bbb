"""A real llama-server behind a live pool, clients that never stop asking, and a change of model under their feet."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.tiny_gguf import tiny_llama

PATIENCE_S = 60.0
OVER = ("succeeded", "failed", "rolled_back")


@dataclass(slots=True)
class Heard:
    """What one task's client heard."""

    submitted: int  # status of the answer
    code: str = ""  # of the refusal or of the error event
    end: str = ""  # name of the last event
    text: str = ""
    arrivals: list[float] = field(default_factory=list)  # of tokens, monotonic seconds


class Swap:
    """One pool with two slots, `clients` agents on it, each asking again as soon as it has its answer."""

    def __init__(self, folder: Path, *, beside: bool, clients: int = 4) -> None:
        self.models = {name: folder / f"{name}.gguf" for name in ("first", "second", "broken")}
        tiny_llama(self.models["first"], seed=1)
        tiny_llama(self.models["second"], seed=2)
        self.models["broken"].write_bytes(self.models["second"].read_bytes()[:9000])
        process = {"model_path": str(self.models["first"]), "slots": 2, "ctx": 1024, "threads": 1}
        replica = {"id": "r0", "process": process, **({} if beside else {"memory_bytes": 1 << 30})}
        pool = {"id": "home", "engine": "llamacpp", "model": f"file:{self.models['first']}", "replicas": [replica]}
        sessions = {"turns_max": 100_000}
        models = {"roots": [str(folder)], **({} if beside else {"memory_bytes": 1 << 30})}
        self.app = LiveApp(mock_settings(pools=[pool], models=models, sessions=sessions), manual=False).start()
        self.heard: list[Heard] = []
        self._stopping = threading.Event()
        self._pausing = threading.Event()  # never set: to wait on
        self._agents = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(clients)]
        self.until(lambda: self.health()["ready"], "the pool is ready")
        for agent in self._agents:
            agent.start()
        self.until(lambda: len(self.heard) > 2 * clients, "everybody has been served")

    def until(self, true: Any, what: str) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < ends, f"it took more than {PATIENCE_S} s until {what}"
            self._pausing.wait(0.02)

    def health(self) -> dict[str, Any]:
        with self.app.session() as session:
            found: dict[str, Any] = session.get("/v1/pools/home/health").json()
            return found

    def reload(self, name: str) -> dict[str, Any]:
        """Change the model, and return the operation once it is over and everybody has been served since."""
        with self.app.session() as session:
            answer = session.post("/v1/pools/home/reload", json={"new_model_ref": f"file:{self.models[name]}"})
            assert answer.status_code == 202, answer.text
        self.until(lambda: self.health()["operation"]["state"] in OVER, "the reload is over")
        served = len(self.heard)
        self.until(lambda: len(self.heard) > served + 2 * len(self._agents), "everybody has been served since")
        operation: dict[str, Any] = self.health()["operation"]
        return operation

    def stop(self) -> None:
        """Let every agent have its last answer. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for agent in self._agents:
            agent.join(PATIENCE_S)
        self.app.stop()

    @property
    def pause_s(self) -> float:
        """The longest time in which no client got a token."""
        arrivals = sorted(at for heard in self.heard for at in heard.arrivals)
        return max(after - before for before, after in itertools.pairwise(arrivals))

    def _ask(self, number: int) -> None:
        session_id = str(uuid4())
        with self.app.session() as session:
            while not self._stopping.is_set():
                body = {
                    "task_id": str(uuid4()),
                    "session_id": session_id,
                    "workload": "completion",
                    "model_ref": "home",
                    "engine": "llamacpp",
                    "ctx": 512,
                    "priority": "batch" if number % 2 else "interactive",
                    "max_tokens": 48,
                    "deadline_ms": 120_000,
                    "prompt": "bade fi gono",
                    "seed": 7,
                    "sampling": {"temperature": 0},
                }
                answer = session.post("/v1/tasks", json=body)
                heard = Heard(answer.status_code)
                if answer.status_code == 202:
                    with session.events(body["task_id"], timeout=PATIENCE_S) as events:
                        for event in events:
                            heard.end = event.name if event.name in ("end", "error") else heard.end
                            if event.name == "token":
                                heard.arrivals.append(time.monotonic())
                                heard.text += event.data["t"]
                            elif event.name == "error":
                                heard.code = event.data["code"]
                else:
                    heard.code = answer.json()["code"]
                    self._pausing.wait(0.05)
                self.heard.append(heard)
