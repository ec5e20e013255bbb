"""Two real llama-servers that may not be there together, and agents that want both."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.tiny_gguf import tiny_llama

PATIENCE_S = 120.0
MODELS = ("red", "blue")
STARVE_MS, RESIDENT_MS = 1500, 200
SIZE = 1 << 30  # as declared of each, and one and a half are there


@dataclass(slots=True)
class Served:
    """What became of one task."""

    model: str
    end: str
    text: str
    wait_ms: int
    run_ms: int


class Shared:
    """A daemon with both models, loaded on demand, and the agents."""

    def __init__(self, folder: Path, *, agents: int, tasks: int) -> None:
        pools = []
        for seed, name in enumerate(MODELS, 1):
            path = folder / f"{name}.gguf"
            tiny_llama(path, seed=seed)
            process = {"model_path": str(path), "slots": 1, "ctx": 1024, "threads": 1}
            pools.append(
                {
                    "id": name,
                    "engine": "llamacpp",
                    "model": f"file:{path}",
                    "load": "on_demand",
                    "min_resident_ms": RESIDENT_MS,
                    "prior": {"load_ms": 500},
                    "replicas": [{"id": "r0", "process": process, "memory_bytes": SIZE}],
                }
            )
        models = {"memory_bytes": SIZE * 3 // 2, "starve_ms": STARVE_MS}
        sessions = {"turns_max": 100_000}
        self.app = LiveApp(mock_settings(pools=pools, models=models, sessions=sessions), manual=False).start()
        self.served: list[Served] = []
        self.faults: list[BaseException] = []
        self.together = 0  # how often both were seen in memory
        self._tasks = tasks
        self._agents = [threading.Thread(target=self._ask_all, args=(n,), daemon=True) for n in range(agents)]
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def run(self) -> None:
        """Return when every agent has had all its answers."""
        self._watcher.start()
        for agent in self._agents:
            agent.start()
        for agent in self._agents:
            agent.join(PATIENCE_S)
            assert not agent.is_alive(), f"an agent has waited for {PATIENCE_S} s"
        self._over.set()
        self._watcher.join()
        if self.faults:
            raise self.faults[0]

    def stop(self) -> None:
        self._over.set()
        self.app.stop()

    def look(self, path: str) -> Any:
        with self.app.session() as session:
            return session.get(path).json()

    def figure(self, series: str) -> float:
        """The sum of a series over all its labels."""
        with self.app.session() as session:
            lines = session.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))

    @property
    def longest_load_ms(self) -> int:
        """Of all loads, as the log tells them."""
        records = [json.loads(line) for line in self.app.log.getvalue().splitlines()]
        return max(record["load_ms"] for record in records if record["event"] == "model_loaded")

    def _watch(self) -> None:
        """Engines that are really there, as the system sees them."""
        while not self._over.wait(0.05):
            pids = self.app.call(self.app.daemon.replicas.all_pids)
            self.together += sum(Path(f"/proc/{pid}").exists() for pid in pids) > 1

    def _ask_all(self, number: int) -> None:
        try:
            session_id = str(uuid4())
            for turn in range(self._tasks):
                self.served.append(self._ask(MODELS[(turn // 2 + number) % 2], session_id))
        except BaseException as fault:
            self.faults.append(fault)

    def _ask(self, model: str, session_id: str) -> Served:
        body = {
            "task_id": str(uuid4()),
            "session_id": session_id,
            "workload": "completion",
            "model_ref": model,
            "engine": "llamacpp",
            "ctx": 512,
            "priority": "interactive",
            "max_tokens": 48,
            "deadline_ms": 600_000,
            "prompt": "bade fi gono",
            "seed": 7,
            "sampling": {"temperature": 0},
        }
        text, end = "", "nothing"
        with self.app.session() as session:
            answer = session.post("/v1/tasks", json=body)
            assert answer.status_code == 202, answer.text
            with session.events(str(body["task_id"]), timeout=PATIENCE_S) as events:
                for event in events:
                    text += event.data["t"] if event.name == "token" else ""
                    end = event.name if event.name in ("end", "error") else end
            status = session.get(f"/v1/tasks/{body['task_id']}").json()
        wait_ms = status["started_at_ms"] - status["created_at_ms"]
        return Served(model, end, text, wait_ms, status["ended_at_ms"] - status["started_at_ms"])
