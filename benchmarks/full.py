"""The full form: every scenario at its full size, the daemon and whatever peers are installed in turn."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from math import nan
from pathlib import Path

import uvloop

from benchmarks import goals, life, load, peers, report
from benchmarks.daemon import daemon
from benchmarks.goals import US, Results
from benchmarks.peers import Peer
from benchmarks.processes import helper
from benchmarks.scenarios import Sizes, admissions, gated, light, memory, p50, p99, requests

SLOW = {"litellm": {"Clight", "D"}}  # scenarios of the peers that cannot take the others
SLOW_ROUNDS = 1
SLOW_TASKS = 200
WARM = 50
SCENARIOS = ("E", "B", "C", "Clight", "D", "F")


class Run:
    """One run: its engines and floors, and what was found so far."""

    def __init__(self, sizes: Sizes, scenarios: set[str], wanted: list[peers.Known]) -> None:
        self.sizes = sizes
        self.scenarios = scenarios
        self.wanted = wanted
        self.results: Results = {}
        self.life: dict[str, dict[str, float]] = {}
        self.round = 0

    async def start(self, stack: AsyncExitStack) -> None:
        slots = ("256", "1", "1024")
        _, engines = await stack.enter_async_context(helper("benchmarks.engine", *slots))
        self.work, self.held, self.wide = engines
        copy, (copy_port,) = await stack.enter_async_context(helper("benchmarks.floor", "copy", str(self.wide)))
        stub, (self.stub,) = await stack.enter_async_context(helper("benchmarks.floor", "stub"))
        self.copy = Peer("copy", copy.pid, copy_port, self.wide, peers.ask_llama)
        self.direct = Peer("engine", copy.pid, self.wide, self.wide, peers.ask_llama)
        self.stub_pid = stub.pid

    def note(self, peer: str, figure: str, value: float) -> None:
        values = self.results.setdefault(figure, {}).setdefault(peer, [])
        values += [nan] * (self.round - len(values)) + [value]

    # -- one peer ------------------------------------------------------------------------------------------
    async def measure(self, peer: Peer, scenario: str) -> None:
        sizes, say = self.sizes, partial(self.note, peer.name)
        match scenario:
            case "B" | "C":
                shape, pace = (sizes.unpaced, 0) if scenario == "B" else (sizes.paced, sizes.pace_ms)
                found = await gated(peer, *shape, pace)
                say(scenario, found["whole"])
                say(f"{scenario} path", found["path"])
                say(f"{scenario} reads", found["reads"])
            case "Clight":
                direct = await light(self.direct, *sizes.light, sizes.pace_ms)
                through = await light(peer, *sizes.light, sizes.pace_ms)
                say("Clight", through.cpu_us)
                for name, of in (("p50", p50), ("p99", p99)):
                    say(f"TTFT added {name}", of(through.ttft) - of(direct.ttft))
                    say(f"token delay added {name}", of(through.token) - of(direct.token))
            case "D":
                say("D", await requests(peer, SLOW_TASKS if peer.name in SLOW else sizes.tasks))

    async def open_streams(self, known: peers.Known | None) -> None:
        """E, on a server that has done nothing else."""
        async with AsyncExitStack() as stack:
            if known is None:
                process, port = await stack.enter_async_context(daemon({"work": self.wide}))
                peer = life.as_peer(process.pid, port, self.wide)
            else:
                peer = await stack.enter_async_context(peers.started(known, self.wide))
            progress(f"E {peer.name}")
            found = await memory(peer, self.sizes.open_streams)
            self.note(peer.name, "E idle", found["idle"])
            self.note(peer.name, "E stream", found["stream"])

    # -- a round -------------------------------------------------------------------------------------------
    async def one_round(self, running: list[Peer], backwards: bool) -> None:
        if "E" in self.scenarios:
            for known in (None, *(k for k in self.wanted if k.name not in SLOW)):
                await self.open_streams(known)
        async with daemon({"work": self.work, "held": self.held}) as (process, port):
            us = life.as_peer(process.pid, port, self.work)
            await requests(us, WARM)
            for scenario in ("B", "C", "Clight", "D"):
                if scenario not in self.scenarios:
                    continue
                turn = [us, *(peer for peer in running if self._takes(peer, scenario))]
                for peer in reversed(turn) if backwards else turn:
                    progress(f"{scenario} {peer.name}")
                    await self.measure(peer, scenario)
            if "F" in self.scenarios:
                progress("F")
                await self._admissions(us)

    def _takes(self, peer: Peer, scenario: str) -> bool:
        if peer.name == "copy":
            return scenario != "D"
        return peer.name not in SLOW or (scenario in SLOW[peer.name] and self.round < SLOW_ROUNDS)

    async def _admissions(self, us: Peer) -> None:
        count = self.sizes.admissions
        stub = await admissions(self.stub_pid, self.stub, count)
        parts = await admissions(us.pid, us.port, count)
        self.note("stub", "F", sum(stub) / len(stub))
        self.note(US, "F", sum(parts) / len(parts))
        self.note(US, "F growth", parts[-1] / parts[0])

    # -- besides -------------------------------------------------------------------------------------------
    async def besides(self) -> None:
        """What has no peer: once."""
        engines = {"work": self.work, "held": self.held}
        tasks = self.sizes.tasks
        progress("start-up")
        self.life["start-up"] = await life.start_up(engines)
        for count in (tasks, 2 * tasks):
            progress(f"recovery of {count}")
            self.life[f"kill -9 and recovery, {count} tasks waiting"] = await life.recovery(engines, count)
        async with daemon(engines) as (process, port):
            us = life.as_peer(process.pid, port, self.work)
            await requests(us, WARM)
            progress("cancel storm")
            self.life["cancel storm"] = await life.cancel_storm(us, self.sizes.paced[0])
            streams, tokens = self.sizes.paced
            by_streams = self.life["paced streams, us/token by their number"] = {}
            for part in (streams // 4, streams // 2, streams):
                progress(f"growth {part}")
                by_streams[str(part)] = (await gated(us, part, tokens, self.sizes.pace_ms))["path"]
            progress("growth of requests")
            by_tasks = self.life["one-token tasks, us each by thousands kept"] = {}
            for turn in range(1, 4):
                by_tasks[str(turn * tasks // 1000)] = await requests(us, tasks)


def progress(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)


async def measure(rounds: int, run: Run, besides: bool) -> None:
    async with AsyncExitStack() as stack:
        await run.start(stack)
        running = [run.copy]
        for known in run.wanted:
            progress(f"start {known.name}")
            running.append(await stack.enter_async_context(peers.started(known, run.wide)))
        for run.round in range(rounds):
            progress(f"round {run.round + 1} of {rounds}")
            await run.one_round(running, backwards=bool(run.round % 2))
        if besides:
            await run.besides()


def main(rounds: int, chosen: list[str], scenarios: list[str], besides: bool, out: Path | None) -> int:
    """Exit codes: 0 every `must` that could be measured holds; 1 one does not; 2 a token was lost."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = [known for known in peers.KNOWN if not chosen or known.name in chosen]
    absent = [known.name for known in wanted if known.program() is None]
    run = Run(Sizes(), set(scenarios or SCENARIOS), [known for known in wanted if known.name not in absent])
    begun, fault = time.monotonic(), None
    about = report.about(rounds)
    try:
        uvloop.run(measure(rounds, run, besides))
    except (load.Wrong, OSError, TimeoutError) as error:
        fault = str(error) or type(error).__name__
    text = report.markdown(about, run.results, run.life, absent)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.md").write_text(text)
        (out / "results.json").write_text(report.as_json(about, run.results, run.life, absent))
    if fault is not None:
        print(f"stopped: {fault}", file=sys.stderr)
        return 2
    print(f"{time.monotonic() - begun:.0f} s, no token lost")
    return int(any(v.bound == "must" and v.holds is False for v in goals.judge(run.results)))
