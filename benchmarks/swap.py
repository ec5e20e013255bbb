"""What a swap costs: two pools with the real 270M model, and room for one of them.

    python -m benchmarks.swap [--swaps N]

Prints for each swap the time from the task's admission to its first token, with what unloading and loading took of it
(HME-031: a swap to a model on disk takes less than ten seconds), and exits with 1 if one took longer.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestratord.demo import model_file
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession

LIMIT_S = 10.0
SIZE = 600_000_000  # as declared of each; one and a half are there
POOLS = ("red", "blue")


def settings(model: Path) -> Any:
    process = {"model_path": str(model), "slots": 1, "ctx": 2048, "threads": 1}
    pools = [
        {
            "id": name,
            "engine": "llamacpp",
            "model": f"file:{model}#{name}",
            "load": "on_demand",
            "min_resident_ms": 0,
            "replicas": [{"id": "r0", "process": process, "memory_bytes": SIZE}],
        }
        for name in POOLS
    ]
    return mock_settings(pools=pools, models={"memory_bytes": SIZE * 3 // 2}, sessions={"turns_max": 100_000})


def first_token_s(session: VerifyingSession, pool: str) -> float:
    """From the task to its first token."""
    body = {
        "task_id": str(uuid4()),
        "session_id": str(uuid4()),
        "workload": "completion",
        "model_ref": pool,
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 8,
        "deadline_ms": 600_000,
        "prompt": "The capital of France is",
    }
    begun = time.monotonic()
    answer = session.post("/v1/tasks", json=body)
    assert answer.status_code == 202, answer.text
    with session.events(body["task_id"], timeout=120) as events:
        took = next(time.monotonic() - begun for event in events if event.name == "token")
        for _ in events:
            pass
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--swaps", type=int, default=6)
    swaps = parser.parse_args().swaps
    pause = threading.Event()
    with LiveApp(settings(model_file()), manual=False) as app, app.session() as session:
        took = []
        for turn in range(swaps + 1):
            seconds = first_token_s(session, POOLS[turn % 2])
            load_ms = session.get(f"/v1/pools/{POOLS[turn % 2]}/health").json()["metrics"]["load_ms"]
            sys.stdout.write(
                f"{'first load' if not turn else f'swap {turn}'}: first token after {seconds:.2f} s "
                f"(loads take {load_ms / 1000:.2f} s)\n"
            )
            took += [seconds] if turn else []
            pause.wait(0.2)
        counted = sum(pool["swaps"] for pool in session.get("/v1/pools").json()["items"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stdout.write(
        f"{counted} swaps, slowest {max(took):.2f} s, limit {LIMIT_S:g} s; engines used "
        f"{(used.ru_utime + used.ru_stime) / (swaps + 1):.2f} s of CPU for each load and answer; the machine's load is "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    return int(max(took) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
