"""The daemon as it is measured: the whole product on, with authentication and its journal and artifacts on disk."""

from __future__ import annotations

import json
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import load
from benchmarks.processes import CLOCK, START_S, free_port, running

READY_POLL_S = 0.02
DURABILITY = "process"  # the journal survives `kill -9`
CONFIG = """
data_dir = {data_dir}
server = {{ port = {port} }}
journal = {{ durability = "{durability}" }}
"""
POOL = """
[[pools]]
id = "{id}"
engine = "llamacpp"
model = "file:{id}.gguf"
queue = {{ capacity = 100000 }}
prior = {{ overhead_ms = 1.0, ms_per_unit = 0.1 }}
replicas = [{{ id = "r0", url = "http://127.0.0.1:{engine}" }}]
"""


@asynccontextmanager
async def daemon(engines: dict[str, int], folder: Path | None = None) -> AsyncIterator[tuple[Process, int]]:
    """`orchestratord serve` and its port, every replica ready. engines: port of the engine behind each pool.

    folder: its data directory; without one it gets an empty one that ends with it.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="orchestratord-bench-") as temporary:
            async with daemon(engines, Path(temporary)) as started:
                yield started
        return
    port = free_port()
    config = folder / "bench.toml"
    values = {"data_dir": json.dumps(str(folder)), "port": port, "durability": DURABILITY}
    pools = "".join(POOL.format(id=pool, engine=engine) for pool, engine in engines.items())
    config.write_text(CONFIG.format(**values) + pools)
    command = (sys.executable, "-m", "orchestratord", "serve", "-c", str(config))
    async with running(*command, stderr=DEVNULL, env={"AUTH_TOKEN": load.KEY}) as process:
        async with CLOCK.limit(START_S):
            while not await ready(port):
                if process.returncode is not None:
                    raise load.Wrong(f"the daemon ended with code {process.returncode}")
                await CLOCK.sleep(READY_POLL_S)
        yield process, port


async def ready(port: int) -> bool:
    try:
        pools = (await load.call(port, "GET", "/v1/pools"))["items"]
    except OSError:
        return False
    return all(pool["ready"] for pool in pools)
