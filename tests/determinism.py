"""Equal seeds, equal tokens: the same tasks again and again in different circumstances, compared byte for byte.

`python -m tests.determinism --seeds 64`. Each seed runs with each prompt on the mock and on a real llama-server with a
tiny model: repeated, on another replica with the same pins, in a crowd, strictly beside other work, after a restart.
What a task was promised (`determinism_class`) must be what its pass promises, and where that is `exact` every stream
must be the one of the first pass. Passes that promise nothing are counted all the same: they show why.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from orchestratord.infra.clock import SystemClock
from orchestratord.testing.checker import Reader
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.tiny_gguf import FOREIGN, tiny_llama
from tests.races import Http

ENGINES = ("mock", "llamacpp")
TOKENS = 32
CROWD = 12  # clients at the same time
NOISE = 3  # of them, those whose tasks only disturb
CTX = 1024
READY_S = 300.0  # a real model on a busy machine
BEGINNING = "ba fi gono bade mero " * 30  # shared by two prompts, so that one finds the other's prefix in a cache
PROMPTS: dict[str, dict[str, Any]] = {
    "short": {"prompt": "bade fi gono"},
    "foreign": {"prompt": " ".join(FOREIGN)},
    "long": {"prompt": BEGINNING + "romi kofi"},
    "longer": {"prompt": BEGINNING + "tuga nomi " * 10},
    "messages": {"messages": [{"role": "system", "content": "ba fi"}, {"role": "user", "content": "gono?"}]},
}
COLD: dict[str, Any] = {"kv_hint": "cold"}
STRICT: dict[str, Any] = {"determinism": "strict"}


def on(replica: str) -> dict[str, Any]:
    """Which replica of a pool: placement goes by device."""
    return {"placement": {"mode": "auto", "require_device_mask": replica}}


@dataclass(frozen=True, slots=True)
class Pass:
    """One way to run every task."""

    name: str
    pool: str
    fields: dict[str, Any]
    promised: bool
    clients: int = 1
    noise: bool = False
    restart: bool = False
    against: str = "one"  # the pass its streams are compared with
    alike: bool = True  # both ran on replicas with the same options; else their difference breaks no promise


PASSES = (
    Pass("one", "narrow", {**COLD, **on("0")}, promised=True),
    Pass("again", "narrow", {**COLD, **on("0")}, promised=True),
    Pass("the other replica", "narrow", {**COLD, **on("1")}, promised=True),
    Pass("in a crowd, any replica", "narrow", COLD, promised=True, clients=CROWD),
    Pass("strict, prefixes about", "narrow", STRICT, promised=True, clients=CROWD),
    Pass("wide, strict", "wide", STRICT, promised=True, against="wide, strict"),
    Pass("wide, strict beside other work", "wide", STRICT, promised=True, noise=True, against="wide, strict"),
    Pass("after a restart", "narrow", COLD, promised=True, restart=True),
    Pass("wide, strict, after a restart", "wide", STRICT, promised=True, against="wide, strict"),
    Pass("wide against narrow", "wide", STRICT, promised=True, alike=False),
    Pass("warm prefixes", "narrow", on("0"), promised=False),
    Pass("sharing batches", "wide", COLD, promised=False, clients=CROWD, against="wide, strict"),
)


@dataclass(slots=True)
class Outcome:
    """What one pass gave: a digest of each stream, and what the tasks said of themselves."""

    streams: dict[tuple[str, int], str] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    origins: set[tuple[Any, ...]] = field(default_factory=set)  # engine version, model digest, profile
    faults: list[str] = field(default_factory=list)


class Runner:
    """Runs passes against one daemon."""

    def __init__(self, http: Http, engine: str) -> None:
        self._http = http
        self._engine = engine
        self._clock = SystemClock()

    async def ready(self) -> None:
        """Every replica of every pool; `/readyz` is content with one."""
        async with self._clock.limit(READY_S):
            for pool in sorted({each.pool for each in PASSES}):
                while not await self._whole(pool):
                    await self._clock.sleep(0.05)

    async def _whole(self, pool: str) -> bool:
        _, _, health = await self._http.ask("GET", f"/v1/pools/{pool}/health")
        return bool(health["ready"]) and all(replica["ready"] for replica in health["replicas"])

    async def play(self, each: Pass, keys: list[tuple[str, int]]) -> Outcome:
        outcome = Outcome()
        left = iter(keys)
        noise = [asyncio.ensure_future(self._disturb(each.pool, n)) for n in range(NOISE if each.noise else 0)]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(each.clients):
                    group.create_task(self._client(each, left, outcome))
        finally:
            for disturbance in noise:
                disturbance.cancel()
            await asyncio.gather(*noise, return_exceptions=True)
        return outcome

    async def _client(self, each: Pass, left: Iterator[tuple[str, int]], outcome: Outcome) -> None:
        for prompt, seed in left:
            body = self._body(each.pool, seed, PROMPTS[prompt], each.fields)
            stream = await self._run(body)
            status, _, found = await self._http.ask("GET", f"/v1/tasks/{body['task_id']}")
            if status != 200 or found["state"] != "ended" or found["seed"] != seed:
                outcome.faults.append(f"{each.name}: {prompt}/{seed} is {found}")
                continue
            outcome.streams[prompt, seed] = hashlib.sha256(stream).hexdigest()
            outcome.classes.add(found["determinism_class"])
            _, _, artifact = await self._http.ask("GET", f"/v1/artifacts/{found['transcript_id']}")
            metadata = artifact["metadata"]
            outcome.origins.add((metadata["engine_version"], metadata["model_digest"], metadata["profile"]))

    async def _disturb(self, pool: str, number: int) -> None:
        """Other work without end, each task another."""
        seed = number
        while True:
            seed += NOISE
            await self._run(self._body(pool, seed, PROMPTS["short"], {"max_tokens": 1 + seed % 12}))

    def _body(self, pool: str, seed: int, prompt: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "task_id": str(uuid.uuid4()),
            "session_id": str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": pool,
            "engine": "llamacpp",
            "ctx": CTX,
            "priority": "batch",
            "max_tokens": TOKENS,
            "deadline_ms": 600_000,
            "seed": seed,
            "sampling": {"temperature": 1.0},
            **prompt,
            **fields,
        }

    async def _run(self, body: dict[str, Any]) -> bytes:
        """The bytes of the task's token frames and of its end, without the time it took."""
        while (answer := await self._http.ask("POST", "/v1/tasks", body))[0] != 202:
            assert answer[0] == 429, f"not admitted: {answer[0]} {answer[2]}"
            await self._clock.sleep(answer[2]["retry_after_ms"] / 1000)
        stream = b""
        async for seen in self._http.follow(body["task_id"], Reader("r"), by_header=True, reset=False):
            if seen.event == "token":
                stream += seen.raw
            elif seen.event == "end":
                stream += f"{seen.id} {seen.payload['finish_reason']} {seen.payload['tokens_out']}".encode()
        return stream


def _pools(engine: str, model: Path) -> list[dict[str, Any]]:
    """`narrow`: two replicas of one slot, told apart by their device; `wide`: one of four slots. Pinned alike."""
    digest = f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"

    def replica(number: int, slots: int) -> dict[str, Any]:
        runs = {"mock": {"slots": slots, "ctx": CTX}}
        if engine == "llamacpp":
            runs = {"process": {"model_path": str(model), "slots": slots, "ctx": CTX, "threads": 1}}  # type: ignore[dict-item]
        return {"id": f"r{number}", "device_mask": str(number), **runs}

    pins = {"profile": "v1", **({"model_digest": digest} if engine == "llamacpp" else {})}
    pools = {"narrow": [replica(0, 1), replica(1, 1)], "wide": [replica(0, 4)]}
    return [
        {
            "id": name,
            "engine": "llamacpp",
            "model": f"file:{name}.gguf",
            "pins": pins,
            "watchdogs": {"first_token_ms": 0, "idle_ms": 0},
            "replicas": replicas,
        }
        for name, replicas in pools.items()
    ]


@contextmanager
def _daemon(engine: str, folder: Path) -> Iterator[Runner]:
    settings = mock_settings(folder / "data", pools=_pools(engine, folder / "tiny.gguf"))
    with LiveApp(settings, manual=False) as app:
        runner = Runner(Http(app.url), engine)
        uvloop.run(runner.ready())
        yield runner


def run(engine: str, seeds: int, first: int = 1, model: Path | None = None) -> dict[str, Outcome]:
    """Every pass of one engine, in an order of tasks of its own each time."""
    prompts = [name for name in PROMPTS if model is None or name != "messages"]  # a base model has no template
    keys = [(prompt, seed) for seed in range(first, first + seeds) for prompt in prompts]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            tiny_llama(folder / "tiny.gguf")
        else:
            (folder / "tiny.gguf").symlink_to(model.resolve())
        at = next(number for number, each in enumerate(PASSES) if each.restart)
        for life in (PASSES[:at], PASSES[at:]):
            with _daemon(engine, folder) as runner:
                for each in life:
                    order = Random(each.name).sample(keys, len(keys))
                    outcomes[each.name] = uvloop.run(runner.play(each, order))
    return outcomes


def judge(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Every broken promise."""
    for each in PASSES:
        outcome = outcomes[each.name]
        yield from outcome.faults
        promised = {"exact"} if each.promised else {"exact", "best_effort"}
        if not outcome.classes <= promised:
            yield f"{each.name}: tasks said they were {outcome.classes}"
        differing = differ(outcomes, each)
        if differing and outcome.classes == {"exact"} and each.alike:
            yield f"{each.name}: {len(differing)} streams differ from `{each.against}`, the first {differing[0]}"
    if len(origins := set().union(*(outcome.origins for outcome in outcomes.values()))) != 1:
        yield f"not all came from the same: {origins}"
    streams = outcomes["one"].streams
    if len(set(streams.values())) != len(streams):
        yield "different seeds or prompts gave the same stream"


def differ(outcomes: dict[str, Outcome], each: Pass) -> list[tuple[str, int]]:
    reference = outcomes[each.against].streams
    return [key for key, stream in outcomes[each.name].streams.items() if reference.get(key) != stream]


def report(outcomes: dict[str, Outcome]) -> Iterator[str]:
    yield "| pass | promised | compared with | streams | differ |"
    yield "|---|---|---|---|---|"
    for each in PASSES:
        outcome = outcomes[each.name]
        said = " ".join(sorted(outcome.classes))
        yield f"| {each.name} | {said} | {each.against} | {len(outcome.streams)} | {len(differ(outcomes, each))} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.determinism", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="seeds, each with every prompt (default 4)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only this one (default: all)")
    parser.add_argument("--model", type=Path, help="a GGUF file instead of the tiny model, for llamacpp")
    arguments = parser.parse_args(argv)
    faults: list[str] = []
    for engine in arguments.engine or ENGINES:
        began = time.monotonic()
        outcomes = run(engine, arguments.seeds, arguments.first, arguments.model)
        found = list(judge(outcomes))
        prompts = len(outcomes["one"].streams) // arguments.seeds
        (version, *_), *_ = sorted(outcomes["one"].origins, key=str) or [("unknown",)]
        sys.stdout.write(f"{engine} {version}: {arguments.seeds} seeds x {prompts} prompts, {TOKENS} tokens each\n")
        sys.stdout.write("\n".join(report(outcomes)) + "\n")
        sys.stdout.write("".join(f"{fault}\n" for fault in found[:20]))
        sys.stdout.write(f"findings {len(found)}, seconds {time.monotonic() - began:.1f}\n\n")
        faults += found
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
