"""kill -9 at random moments under load, again and again on one data directory; then every promise is checked.

`python -m tests.kills --count 200 --seed 1`. Each round starts a real daemon on real time, lets clients submit, read,
resume and cancel, and kills it. The last round lets everything end. An odd seed gives one slot, an even one four.
`--break ack-before-commit` runs a daemon that acknowledges too early: the check must report lost tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from orchestratord.infra.clock import SystemClock
from orchestratord.testing.checker import Reader, Seen
from tests.http.daemon import DaemonProcess
from tests.races import Http

CLIENTS = 12
SESSIONS = 8
TOKENS_PER_SESSION = 1_000_000
LOAD_S = (0.05, 0.7)  # how long a round is under load
SETTLE_S = 180.0  # patience, on machines that are shared
TERMINAL = ("end", "error")
PROMPT = "kill me softly"
BOUND = len(PROMPT) + 1  # of its tokens, as the mock engine says
CONFIG = """
allow_mock = true
data_dir = "{data}"
server = {{ shutdown_grace_ms = 1000 }}
sessions = {{ ttl_ms = 86400000, turns_max = 1000000, budgets = {{ tokens = {tokens} }} }}
[[pools]]
id = "home"
engine = "llamacpp"
model = "file:home.gguf"
queue = {{ capacity = 64 }}
replicas = [{{ id = "r0", mock = {{ slots = {slots}, token_ms = 2 }} }}]
"""


@dataclass(slots=True)
class Followed:
    """One task and all its clients saw of it, over the lives of the daemon."""

    body: dict[str, Any]
    cancels: bool
    admitted: bool = False  # a 202 was seen
    seal: int | None = None  # the id a 204 named
    seen: dict[int, bytes] = field(default_factory=dict)
    terminal: int | None = None

    @property
    def id(self) -> str:
        return str(self.body["task_id"])

    @property
    def last(self) -> int:
        return max(self.seen, default=0)


@dataclass(slots=True)
class Kills:
    draw: Random
    clock: SystemClock = field(default_factory=SystemClock)
    tasks: list[Followed] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unsure: Counter[str] = field(default_factory=Counter)  # tasks a session may have paid the prompt's bound for
    sessions: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = [self._uuid() for _ in range(SESSIONS)]

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.draw.getrandbits(128), version=4))

    def _task(self) -> Followed:
        body = {
            "task_id": self._uuid(),
            "session_id": self.draw.choice(self.sessions),
            "workload": "completion",
            "model_ref": "home",
            "engine": "llamacpp",
            "ctx": 512,
            "priority": self.draw.choice(["interactive", "batch"]),
            "max_tokens": self.draw.randint(1, 60),
            "deadline_ms": 600_000,
            "prompt": PROMPT,
            "on_disconnect": "continue",
        }
        return Followed(body, cancels=self.draw.random() < 0.25)

    # -- one life of the daemon ------------------------------------------------------------------------------
    async def load(self, http: Http, seconds: float) -> None:
        """Clients come, and the readers of earlier lives come back; all stop when the daemon is about to die."""
        waiting = [task for task in self.tasks if task.terminal is None]
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(self._come_back(http, task)) for task in waiting]
            jobs += [group.create_task(self._client(http)) for _ in range(CLIENTS)]
            await self.clock.sleep(seconds)
            for job in jobs:
                job.cancel()

    async def _client(self, http: Http) -> None:
        while True:
            task = self._task()
            self.tasks.append(task)
            await self._submit(http, task)
            if not task.admitted:
                return  # the daemon is gone
            await self._follow(http, task)

    async def _come_back(self, http: Http, task: Followed) -> None:
        await self._submit(http, task)
        if task.admitted:
            await self._follow(http, task)

    async def _submit(self, http: Http, task: Followed) -> None:
        """Until it is admitted; again in a later life it is the same task, or the first admission of one unheard of."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                status, headers, answer = await http.ask("POST", "/v1/tasks", task.body)
                if status == 202:
                    if task.admitted and "x-idempotent-replay" not in headers:
                        self.faults.append(f"{task.id} was lost: it was acknowledged before, and is new now")
                    task.admitted = True
                    return
                if status != 429:
                    self.faults.append(f"{task.id} was answered {status}: {answer}")
                    return
                await self.clock.sleep(answer["retry_after_ms"] / 1000)

    async def _follow(self, http: Http, task: Followed) -> None:
        reader = Reader("r", task.last)
        point = self.draw.randint(1, 60) if task.cancels and task.seal is None else None
        try:
            async for event in http.follow(task.id, reader, by_header=True, reset=False):
                self._note(task, event)
                if point is not None and len(reader.events) >= point:
                    point = None
                    status, headers, _ = await http.ask("POST", f"/v1/tasks/{task.id}/cancel")
                    if status == 204:
                        task.seal = int(headers["x-last-event-id"])
        except AssertionError as refused:  # the daemon is there and does not know what it has shown
            self.faults.append(str(refused))
            task.terminal = task.last
        except (OSError, asyncio.IncompleteReadError):
            pass  # it was killed

    def _note(self, task: Followed, event: Seen) -> None:
        if event.id is None:
            return
        if event.id <= task.last:
            self.faults.append(f"{task.id} had event {event.id} after {task.last}")
        if task.terminal is not None:
            self.faults.append(f"{task.id} had event {event.id} after its terminal event {task.terminal}")
        task.seen[event.id] = event.raw
        if event.event in TERMINAL:
            task.terminal = event.id

    # -- the end ---------------------------------------------------------------------------------------------
    async def settle(self, http: Http) -> None:
        """Let everything end."""
        async with self.clock.limit(SETTLE_S), asyncio.TaskGroup() as group:
            for task in self.tasks:
                if task.terminal is None:
                    group.create_task(self._come_back(http, task))

    async def judge(self, http: Http) -> dict[str, int]:
        """Compare what was seen with what the daemon says now. Gives the tokens each session has spent."""
        spent: Counter[str] = Counter()
        for task in self.tasks:
            status, _, found = await http.ask("GET", f"/v1/tasks/{task.id}")
            if status == 404:
                if task.admitted:
                    self.faults.append(f"{task.id} was lost: acknowledged, and unknown now")
                continue
            self._judge_log(task, await self._log(http, task))
            if found["state"] not in ("ended", "canceled", "failed"):
                self.faults.append(f"{task.id} has not ended: {found['state']}")
            if "started_at_ms" in found:
                spent[task.body["session_id"]] += _charge(task, found)
            elif found["state"] == "canceled":  # waiting, or leased without output: a restart does not know any more
                self.unsure[task.body["session_id"]] += 1
        return dict(spent)

    async def _log(self, http: Http, task: Followed) -> list[Seen]:
        reader = Reader("afterwards", 0)
        async for _ in http.follow(task.id, reader, by_header=True, reset=False):
            pass
        return [event for event in reader.events if event.id is not None]

    def _judge_log(self, task: Followed, log: list[Seen]) -> None:
        ends = [event for event in log if event.event in TERMINAL]
        if len(ends) != 1 or log[-1] is not ends[0]:
            self.faults.append(f"{task.id} has {len(ends)} terminal events")
            return
        ids = [event.id for event in log]
        reset = log[-1].event == "error" and log[-1].payload["code"] == "WORKER_RESET"
        body = ids[:-1] if reset else ids
        if body != list(range(1, len(body) + 1)):
            self.faults.append(f"{task.id} has a gap: {ids}")
        now = {event.id: event.raw for event in log}
        for event_id, raw in task.seen.items():
            if now.get(event_id, raw) != raw:
                self.faults.append(f"{task.id} showed another event {event_id} before")
            if event_id not in now and not (reset and event_id < (log[-1].id or 0)):
                self.faults.append(f"{task.id} showed an event {event_id} that is gone")
        if task.seal is not None and task.seal != log[-1].id:
            self.faults.append(f"{task.id} was cancelled at {task.seal} and ends with {log[-1].id}")

    async def accounts(self, http: Http) -> dict[str, tuple[int, int]]:
        """(turns, tokens spent or held) of every session."""
        found = {}
        for session in self.sessions:
            status, _, info = await http.ask("GET", f"/v1/sessions/{session}")
            if status == 200:
                found[session] = info["turns"], TOKENS_PER_SESSION - info["budgets"]["tokens_remaining"]
        return found

    def judge_accounts(self, spent: dict[str, int], *books: dict[str, tuple[int, int]]) -> None:
        turns = Counter(task.body["session_id"] for task in self.tasks if task.admitted)
        for session in self.sessions:
            at_least = spent.get(session, 0)
            dues = {at_least + n * BOUND for n in range(self.unsure[session] + 1)}
            found = [account.get(session, (0, 0)) for account in books]
            if len(set(found)) != 1 or found[0][0] != turns[session] or found[0][1] not in dues:
                self.faults.append(
                    f"session {session} has (turns, tokens) {found} before and after a crash, its tasks make "
                    f"{turns[session]}, {at_least} and up to {self.unsure[session]} prompts"
                )


def _charge(task: Followed, found: dict[str, Any]) -> int:
    """Tokens the task should have cost: the engine's counts, or the bound of the prompt where it gave none."""
    charge = int(found.get("tokens_in", BOUND)) + int(found.get("tokens_out", 0))
    return min(charge, BOUND + int(task.body["max_tokens"]))


@contextlib.contextmanager
def _life(config: Path, module: str) -> Iterator[tuple[DaemonProcess, Http]]:
    with DaemonProcess(config, module=(module,)) as daemon:
        daemon.up()
        yield daemon, Http(daemon.url)


def run(count: int, seed: int, fault: str | None = None) -> Kills:
    """All rounds and the verdict."""
    draw = Random(seed)
    kills = Kills(draw)
    module = "tests.crash.hasty" if fault == "ack-before-commit" else "orchestratord"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "orchestratord.toml"
        slots = 1 if seed % 2 else 4
        config.write_text(CONFIG.format(data=Path(folder) / "data", tokens=TOKENS_PER_SESSION, slots=slots))
        for _ in range(count):
            with _life(config, module) as (daemon, http):
                uvloop.run(_until_killed(kills, http, daemon, draw.uniform(*LOAD_S)))
        with _life(config, module) as (daemon, http):
            uvloop.run(kills.settle(http))
            before = uvloop.run(kills.accounts(http))
            daemon.kill()
        with _life(config, module) as (_, http):
            spent = uvloop.run(kills.judge(http))
            kills.judge_accounts(spent, before, uvloop.run(kills.accounts(http)))
    return kills


async def _until_killed(kills: Kills, http: Http, daemon: DaemonProcess, seconds: float) -> None:
    """Load, and death in the middle of it."""
    asyncio.get_running_loop().call_later(seconds, daemon.process.kill)
    await kills.load(http, seconds + 0.05)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=8, help="kills (default 8)")
    parser.add_argument("--seed", type=int, default=1, help="decides what clients do and when it dies (default 1)")
    parser.add_argument("--break", dest="fault", choices=["ack-before-commit"], help="a daemon with this fault")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    kills = run(arguments.count, arguments.seed, arguments.fault)
    for fault in kills.faults[:50]:
        sys.stdout.write(f"{fault}\n")
    acknowledged = sum(task.admitted for task in kills.tasks)
    sys.stdout.write(
        f"kills {arguments.count + 1}, tasks {len(kills.tasks)}, acknowledged {acknowledged}, "
        f"cancelled {sum(task.seal is not None for task in kills.tasks)}, "
        f"lost {sum('was lost' in fault for fault in kills.faults)}, findings {len(kills.faults)}, "
        f"seconds {time.monotonic() - began:.1f}\n"
    )
    return 1 if kills.faults else 0


if __name__ == "__main__":
    sys.exit(main())
