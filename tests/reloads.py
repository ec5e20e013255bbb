"""Reloads that fail, and daemons killed in the middle of one: the pool is always wholly old or wholly new.

    python -m tests.reloads [--count N] [--kills N] [--seed S]

--count: failed reloads, on virtual time with mock engines that fail in a drawn way, beside the old model or instead
of it, while tasks run and wait. --kills: kill -9 at each step of `STEPS`, on a real daemon with a real llama-server and
two tiny models: the daemon is started again over the same disk, and must serve one of the two models, by name and by
what it writes; no engine is left and no accepted task is lost. Exit code 1 if anything is found.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil

from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.http.daemon import DaemonProcess
from tests.http.support import submit, wait_for

NEXT = "file:next.gguf"
OVER = ("succeeded", "failed", "rolled_back")

# Where a daemon kills itself (tests.killed_reload), and which model must be there afterwards; either: the fact of the
# swap may just have been written, or not.
STEPS = {
    "accepting": "old",
    "fetching": "old",
    "verifying": "old",
    "draining": "old",
    "preloading": "old",
    "probing": "old",
    "uncommitted": "old",
    "committing": "either",
    "committed": "new",
    "swapped": "new",
    "retiring": "new",
    "concluding": "new",
    "concluded": "new",
}

FAULTS: dict[str, MockScript | None] = {
    "refuses": MockScript(jobs=math.inf, refuse="no"),
    "is full": MockScript(jobs=math.inf, full=True),
    "breaks off": MockScript(jobs=math.inf, die_after=1),
    "sends garbage": MockScript(jobs=math.inf, garbage_after=2),
    "reports an error": MockScript(jobs=math.inf, error_after=0),
    "hangs": MockScript(jobs=math.inf, hang_after=1),
    "ignores the abort": MockScript(jobs=math.inf, ignore_abort=True, hang_after=3),
    "never loads": None,
    "is not there": None,
}


# -- failed reloads ------------------------------------------------------------------------------------------
def failures(count: int, draw: Random, *, beside: bool) -> Iterator[str]:
    """Findings of `count` failed reloads of one pool."""
    pool = mock_pool(replicas=2, slots=1)
    for replica in pool["replicas"]:
        replica["memory_bytes"] = 10
    models = {"roots": ["/srv"], "memory_bytes": 100 if beside else 30, "load_ms": 100_000}
    sessions = {"turns_max": 1_000_000}
    app = LiveApp(mock_settings(pools=[pool], models=models, sessions=sessions))
    assert app.clock is not None
    with app, app.session() as session:
        for number in range(count):
            fault = draw.choice(sorted(FAULTS))
            for replica in draw.choice((("r0",), ("r1",), ("r0", "r1"))):
                engine = app.daemon.mocks["home", f"{replica}@{NEXT}"] = MockEngine(clock=app.clock, model_id="next")
                engine.loading = "loading model" if fault == "never loads" else None
                engine.down = fault == "is not there"
                if (script := FAULTS[fault]) is not None:
                    engine.play(script)
            tasks = [
                submit(session, model_ref=draw.choice(("home", "file:home.gguf"))) for _ in range(draw.randrange(5))
            ]
            answer = session.post("/v1/pools/home/reload", json={"new_model_ref": NEXT})
            for _ in range(200):
                app.advance(1)
                if session.get("/v1/pools/home/health").json()["operation"]["state"] in OVER:
                    break
            app.advance(1)
            yield from (f"reload {number} ({fault}): {odd}" for odd in wholly_old(app, session, answer, tasks))
            for key in [key for key in app.daemon.mocks if "@" in key[1]]:
                if app.daemon.mocks[key].busy_slots and fault != "ignores the abort":
                    yield f"reload {number} ({fault}): {key} still works"
                del app.daemon.mocks[key]


def wholly_old(app: LiveApp, session: VerifyingSession, answer: Any, tasks: list[str]) -> Iterator[str]:
    """What is not as if the reload had never been tried."""
    if answer.status_code != 202:
        yield f"refused: {answer.text}"
    found = session.get("/v1/pools/home/health").json()
    operation = found["operation"]
    if (operation["state"], operation["generation"]) != ("rolled_back", 1) or "error" not in operation:
        yield f"the operation is {operation}"
    state = (found["model_ref"], found["ready"], found["draining"], [r["ready"] for r in found["replicas"]])
    if state != ("file:home.gguf", True, False, [True, True]):
        yield f"the pool is {state}"
    members = app.call(lambda: (len(app.daemon.replicas._members), len(app.daemon.core.pools["home"].shadows)))
    if members != (2, 0):
        yield f"{members[0]} engines and {members[1]} shadows are left"
    ends = Counter(session.get(f"/v1/tasks/{task_id}").json()["state"] for task_id in tasks)
    if set(ends) - {"ended"}:
        yield f"tasks ended as {dict(ends)}"


# -- kills ---------------------------------------------------------------------------------------------------
class Killed:
    """One data directory and its daemons, one after the other."""

    def __init__(self, folder: Path, draw: Random) -> None:
        self._folder, self._draw = folder, draw
        self._armed = folder / "armed"
        self._models = [folder / "models" / f"{name}.gguf" for name in ("one", "two")]
        self._models[0].parent.mkdir()
        for seed, path in enumerate(self._models, 1):
            tiny_llama(path, seed=seed)
        self._config = folder / "orchestratord.toml"
        self._config.write_text(
            f"""
data_dir = "{folder / "data"}"
models = {{ roots = ["{folder / "models"}"] }}
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:{self._models[0]}"
[[pools.replicas]]
id = "r0"
memory_bytes = 100000000
process = {{ model_path = "{self._models[0]}", slots = 1, ctx = 1024, threads = 1 }}
""",
            "utf-8",
        )
        self._texts: dict[str, str] = {}  # model -> what it writes
        self._serving = 0
        self._queued: list[str] = []
        self._step = ""
        self.kills: Counter[str] = Counter()
        self.odd: list[str] = []

    def run(self, steps: list[str]) -> None:
        """Kill a daemon at each of these steps, and look at what is there afterwards."""
        for step in [*steps, None]:
            room = 100_000_000 if step == "draining" or self._draw.random() < 0.5 else 1_000_000_000
            daemon = DaemonProcess(
                self._config,
                module=("tests.killed_reload", str(self._armed)),
                env={"ORCHD_MODELS__MEMORY_BYTES": str(room)},
            )
            with daemon, daemon.up().session() as session:
                if self._step:
                    self._inspect(session)
                if step is not None:
                    self._kill(daemon, session, step)
            self._no_engine_left()

    def _kill(self, daemon: DaemonProcess, session: VerifyingSession, step: str) -> None:
        self._step = step
        model = f"file:{self._models[self._serving]}"
        if model not in self._texts:
            self._texts[model] = self._text(session, submit(session, **self._asked()))
        running = submit(session, max_tokens=300, ctx=900, on_disconnect="continue")
        self._queued = [submit(session, **self._asked()) for _ in range(2)]
        wait_for(lambda: self._state(session, running) != "queued", "a task runs")
        self._armed.write_text(step, "utf-8")
        body = {"new_model_ref": f"file:{self._models[1 - self._serving]}"}
        with contextlib.suppress(OSError):  # killed before it could answer
            session.post("/v1/pools/home/reload", json=body)
        daemon.ended()
        self.kills[step] += 1

    def _inspect(self, session: VerifyingSession) -> None:
        """Wholly old or wholly new, by name and by deed."""
        health = session.get("/v1/pools/home/health").json()
        wanted = {"old": {self._serving}, "new": {1 - self._serving}, "either": {0, 1}}[STEPS[self._step]]
        names = [f"file:{path}" for path in self._models]
        served = names.index(health["model_ref"])
        state = health.get("operation", {}).get("state")
        if served not in wanted:
            self._find(f"it serves {health['model_ref']}")
        if state not in OVER and not (state is None and self._step == "accepting"):
            self._find(f"the operation is {state}")
        begun = self._step != "accepting"  # else what is shown may be the operation before it
        if begun and (state == "succeeded") != (served != self._serving):
            self._find(f"the operation says {state}, and it serves {health['model_ref']}")
        self._serving = served
        text = self._text(session, submit(session, **self._asked()))
        known = self._texts.setdefault(names[served], text)
        if text != known or len(set(self._texts.values())) < len(self._texts):
            self._find(f"{names[served]} writes as the other one does")
        for task_id in self._queued:
            final = wait_for(lambda task_id=task_id: self._over(session, task_id), "a queued task ends", 30)
            if final["state"] != "ended" and final.get("error", {}).get("code") != "WORKER_RESET":
                self._find(f"a task ended as {final['state']}: {final.get('error')}")

    def _no_engine_left(self) -> None:
        def left() -> list[int]:
            found = []
            for process in psutil.process_iter(["pid", "cmdline"]):
                line = " ".join(process.info["cmdline"] or ())
                if str(self._folder / "models") in line:
                    found.append(process.info["pid"])
            return found

        try:
            wait_for(lambda: not left(), "every engine is gone", 10)
        except AssertionError:
            self._find(f"engines {left()} are left")

    def _find(self, what: str) -> None:
        self.odd.append(f"killed at {self._step}: {what}")

    @staticmethod
    def _asked() -> dict[str, Any]:
        return {"max_tokens": 24, "seed": 7, "sampling": {"temperature": 0}, "prompt": "bade fi gono"}

    @staticmethod
    def _state(session: VerifyingSession, task_id: str) -> str:
        return str(session.get(f"/v1/tasks/{task_id}").json()["state"])

    @staticmethod
    def _over(session: VerifyingSession, task_id: str) -> dict[str, Any] | None:
        final: dict[str, Any] = session.get(f"/v1/tasks/{task_id}").json()
        return final if final["state"] in ("ended", "failed", "canceled") else None

    @staticmethod
    def _text(session: VerifyingSession, task_id: str) -> str:
        with session.events(task_id, timeout=30) as events:
            return "".join(event.data["t"] for event in events if event.name == "token")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reloads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="failed reloads (default 100)")
    parser.add_argument("--kills", type=int, default=1, help="kill -9 at each step (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is drawn (default 1)")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    draw = Random(arguments.seed)
    odd = list(failures(arguments.count // 2, draw, beside=True))
    odd += failures(arguments.count - arguments.count // 2, draw, beside=False)
    failed_s = time.monotonic() - began
    steps = list(STEPS) * arguments.kills
    draw.shuffle(steps)
    with tempfile.TemporaryDirectory() as folder:
        killed = Killed(Path(folder), draw)
        killed.run(steps)
    odd += killed.odd
    for line in odd:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"failed reloads {arguments.count} ({failed_s:.1f} s), kills {sum(killed.kills.values())} at "
        f"{len(killed.kills)} steps, findings {len(odd)}, seconds {time.monotonic() - began:.1f}\n"
    )
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
