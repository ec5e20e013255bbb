"""The scenarios at their full sizes. Each measures one peer once and checks every token it brought."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass
from statistics import median, quantiles

from benchmarks import load
from benchmarks.load import STAMP, Answer, Wrong
from benchmarks.peers import Peer
from benchmarks.processes import CLOCK, Meter, rss_kib

SETTLE_S = 0.25  # what is left to do behind a stream's end counts too
RAMP_S = 0.0537  # between the starts of light streams: a stall of the machine meets few of them, and no two keep step
CLIENTS = 32
LOOK_S = 0.5


@dataclass(frozen=True)
class Sizes:
    """streams x tokens of the stream scenarios; requests of the others."""

    unpaced: tuple[int, int] = (50, 2000)
    paced: tuple[int, int] = (200, 200)
    light: tuple[int, int] = (20, 150)
    tasks: int = 2000
    admissions: int = 3000
    open_streams: int = 1000
    pace_ms: int = 20


@dataclass(frozen=True)
class Delays:
    """Milliseconds of one light run: from the first step's request to the first token; from write to read."""

    cpu_us: float  # per token, admission included
    ttft: list[float]
    token: list[float]


async def gated(peer: Peer, streams: int, tokens: int, pace_ms: int) -> dict[str, float]:
    """CPU us per token of streams that all flow at once. `whole` has their admission and ends in it, `path` is counted
    from the moment the engine lets them go; `reads` is how many tokens the client found in one read."""
    whole = Meter(peer.pid)
    async with load.connections(peer.port, streams) as opened:
        answers = await asyncio.gather(*(peer.ask(connection, "gated", tokens) for connection in opened))
        await load.call(peer.engine, "GET", f"/gathered?streams={streams}")
        await CLOCK.sleep(SETTLE_S)  # heads are on their way
        path = Meter(peer.pid)
        released = await load.call(peer.engine, "POST", f"/go?pace_ms={pace_ms}")
        if released != {"released": streams}:
            raise Wrong(f"the engine released {released} instead of {streams} streams")
        await asyncio.gather(*(answer.done for answer in answers))
        path_us = path.us()
        await CLOCK.sleep(SETTLE_S)
        whole_us = whole.us()
        for answer in answers:
            peer.check(await answer.whole(200), tokens)
    count = streams * tokens
    reads = sum(len(answer.marks) for answer in answers)
    return {"whole": whole_us / count, "path": path_us / count, "reads": count / reads}


async def light(peer: Peer, streams: int, tokens: int, pace_ms: int) -> Delays:
    """A few streams, one after the other, on a server that is nearly idle."""
    meter = Meter(peer.pid)
    async with load.connections(peer.port, streams) as opened:

        async def one(place: int, connection: load.Connection) -> Answer:
            await CLOCK.sleep(place * RAMP_S)
            answer = await peer.ask(connection, f"paced {pace_ms}", tokens)
            peer.check(await answer.whole(200), tokens)
            return answer

        answers = await asyncio.gather(*(one(place, connection) for place, connection in enumerate(opened)))
        await CLOCK.sleep(SETTLE_S)
        used = meter.us()
    ttft, delays = [], []
    for answer in answers:
        first, found = arrivals(answer)
        ttft.append((first - answer.asked_ns) / 1e6)
        delays += found
    return Delays(used / (streams * tokens), ttft, delays)


def arrivals(answer: Answer) -> tuple[int, list[float]]:
    """When the first token was read (monotonic ns), and for each token the ms since the engine wrote it."""
    lengths = [length for length, _ in answer.marks]
    first, delays = 0, []
    for match in STAMP.finditer(bytes(answer.body)):
        at = answer.marks[bisect_left(lengths, match.end())][1]
        first = first or at
        delays.append((at - int(match.group()[1:])) / 1e6)
    return first, delays


async def requests(peer: Peer, count: int) -> float:
    """CPU us of a whole request with one token."""

    async def one(connection: load.Connection, _: int) -> None:
        answer = await peer.ask(connection, "ping", 1)
        peer.check(await answer.whole(200), 1)

    meter = Meter(peer.pid)
    await load.shared(peer.port, range(count), one, CLIENTS)
    await CLOCK.sleep(SETTLE_S)
    return meter.us() / count


async def admissions(pid: int, port: int, count: int, parts: int = 3) -> list[float]:
    """CPU us of an admission to a queue that does not move, for each part of the run: it must not grow."""
    costs = []
    for _ in range(parts):
        meter = Meter(pid)
        bodies = [load.task("held", "gated", 1, "batch") for _ in range(count // parts)]
        await load.shared(port, bodies, load.admit, CLIENTS)
        await CLOCK.sleep(SETTLE_S)
        costs.append(meter.us() / len(bodies))
    return costs


async def memory(peer: Peer, streams: int, tokens: int = 5) -> dict[str, float]:
    """MiB of the fresh server, and KiB for each of many open streams that bring a token a second."""
    idle = rss_kib(peer.pid)
    async with load.connections(peer.port, 4) as opened:
        for connection in opened:
            await (await peer.ask(connection, "ping", 1)).whole(200)
    before, most = rss_kib(peer.pid), 0
    async with load.connections(peer.port, streams) as opened:
        answers = await asyncio.gather(*(peer.ask(connection, "gated", tokens) for connection in opened))
        await load.call(peer.engine, "GET", f"/gathered?streams={streams}")
        await load.call(peer.engine, "POST", "/go?pace_ms=1000")
        ended = asyncio.gather(*(answer.whole(200) for answer in answers))
        while not ended.done():
            most = max(most, rss_kib(peer.pid))
            await asyncio.wait({ended}, timeout=LOOK_S)
        for body in await ended:
            peer.check(body, tokens)
    return {"idle": idle / 1024, "stream": (most - before) / streams}


def p50(values: list[float]) -> float:
    return median(values)


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]
