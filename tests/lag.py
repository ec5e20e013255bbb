"""How long does one request keep the event loop from everything else?

`python -m tests.lag --limit 50`. Sends what is large, deep or awkward and within the limits to the daemon's ASGI app on
asyncio's own loop and takes the longest single callback of each, in CPU time, the best of some tries: a figure of the
machine it runs on. F4: no input may block the loop for more than 50 ms, accepted or not.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestratord.app import Daemon
from orchestratord.infra.logs import make_sink
from orchestratord.testing.live import mock_pool, mock_settings
from tests.http.support import task
from tests.turns import turn_of_loop

BODY = 1_000_000
TRIES = 3


def inputs() -> Iterator[tuple[str, str, bytes]]:
    """(name, path, body)."""

    def post(name: str, path: str, body: Any) -> tuple[str, str, bytes]:
        return name, path, body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()

    def schema(value: Any) -> dict[str, Any]:
        return task(sampling={"json_schema": value})

    def artifact(content: Any, **fields: Any) -> dict[str, Any]:
        return {"kind": "other", "content": content, **fields}

    tasks, artifacts = "/v1/tasks", "/v1/artifacts"
    wide = {f"k{n}": n for n in range(BODY // 12)}
    yield post("small", tasks, task())
    yield post("prompt of a megabyte", tasks, task(prompt="x" * (BODY - 1000), ctx=2_000_000))
    yield post("prompt, not ASCII", tasks, task(prompt="\u4f60" * (BODY // 7), ctx=2_000_000))
    yield post("prompt of escapes", tasks, task(prompt="\x00" * (BODY // 7), ctx=2_000_000))
    yield post("1,024 messages", tasks, task(prompt=None, messages=[{"role": "user", "content": "y" * 900}] * 1024))
    yield post("256 inputs", tasks, task(prompt=None, workload="embedding", inputs=["z" * 3800] * 256))
    yield post("floats in a schema", tasks, schema({"enum": [0.1 + n for n in range(BODY // 20)]}))
    yield post("integers in a schema", tasks, schema({"enum": list(range(BODY // 8))}))
    yield post("keys in a schema", tasks, schema({"properties": wide}))
    yield post("keys beyond ASCII", tasks, schema({"p": {f"\u00fc{n}": 0 for n in range(BODY // 18)}}))
    yield post("empty lists in a schema", tasks, schema({"enum": [[] for _ in range(BODY // 4)]}))
    yield post("a pattern in a schema", tasks, schema({"pattern": "(a+)+$" * 5000}))
    yield post("a grammar", tasks, task(sampling={"grammar": "(" * 65536}))
    yield post("64 levels", tasks, schema(json.loads('{"a":' * 60 + "1" + "}" * 60)))
    yield post("100,000 levels", tasks, b'{"prompt":' + b"[" * 400_000)
    yield post("level after level", tasks, b'{"prompt":[' + b",".join([b"[" * 30 + b"]" * 30] * 15_000) + b"]}")
    yield post("unknown keys", tasks, {**wide, **task()})
    yield post("one long unknown key", tasks, {"k" * BODY: 0, **task()})
    yield post("a long id", tasks, task(task_id="f" * (BODY - 1000)))
    yield post("a long model", tasks, task(model_ref="file:" + "a/" * 400_000))
    yield post("a long mask", tasks, task(placement={"require_device_mask": "0," * 400_000}))
    yield post("avoided pools", tasks, task(placement={"avoid_pools": [f"p{n}" for n in range(100_000)]}))
    yield post("a long integer", tasks, b'{"max_tokens":' + b"9" * BODY + b"}")
    yield post("not JSON", tasks, b"[" + b"1," * (BODY // 2))
    yield post("text artifact", artifacts, artifact("x" * BODY))
    yield post("floats in an artifact", artifacts, artifact({"v": [0.1 + n for n in range(BODY // 20)]}))
    yield post("keys in an artifact", artifacts, artifact({"v": wide}))
    yield post("keys of metadata", artifacts, artifact("x", metadata={"v": {f"\u00fc{n}": 0 for n in range(50_000)}}))
    yield post("tags", artifacts, artifact("x", tags=[f"t{n}" for n in range(100_000)]))


class Probe:
    """The longest callback of a loop, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        original = asyncio.Handle._run
        probe = self

        def timed(handle: asyncio.Handle) -> None:
            start = time.thread_time()
            original(handle)
            probe.longest = max(probe.longest, time.thread_time() - start)

        asyncio.Handle._run = timed  # type: ignore[method-assign]


async def ask(app: Any, method: str, path: str, body: bytes) -> int:
    """The status of one request, straight to the ASGI app."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers += [(b"content-length", str(len(body)).encode())] if body else []
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)] or [b""]  # as a server reads them
    status = 0

    async def receive() -> dict[str, Any]:
        await turn_of_loop()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


async def measure(limit_ms: float) -> int:
    probe = Probe()
    slow = 0
    with tempfile.TemporaryDirectory() as folder:
        pools = [mock_pool(slots=1, capacity=10_000, ctx=4_000_000)]
        settings = mock_settings(Path(folder), pools=pools, retention={"tasks": 10_000})
        with io.StringIO() as nowhere:
            daemon = Daemon(settings, log=make_sink(nowhere, form="json"))
            app = daemon.asgi
            await daemon.start()
            while daemon.not_ready():
                await daemon.clock.sleep(0.01)
            for name, path, body in inputs():
                best, status = 1e9, 0
                for _ in range(TRIES):
                    fresh = body.replace(_id_in(body), str(uuid.uuid4()).encode())
                    probe.longest = 0.0
                    status = await asyncio.create_task(ask(app, "POST", path, fresh))
                    best = min(best, probe.longest * 1000)
                slow += best > limit_ms
                print(f"{'SLOW' if best > limit_ms else 'ok  '} {best:8.1f} ms  {status}  {name} ({len(body)} bytes)")
            for path in ("/metrics", "/v1/tasks?limit=200", "/v1/artifacts?limit=200", "/docs", "/openapi/data.json"):
                best = 1e9
                for _ in range(TRIES):
                    probe.longest = 0.0
                    status = await asyncio.create_task(ask(app, "GET", path, b""))
                    best = min(best, probe.longest * 1000)
                slow += best > limit_ms
                print(f"{'SLOW' if best > limit_ms else 'ok  '} {best:8.1f} ms  {status}  GET {path}")
            await daemon.stop()
    return slow


def _id_in(body: bytes) -> bytes:
    """The task_id of a body; some text that is not in it where it has none."""
    _, found, rest = body.partition(b'"task_id":"')
    return rest[:36] if found and rest[36:37] == b'"' else b"\0no id\0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=float, default=50.0, help="ms one request may block the loop")
    slow = asyncio.run(measure(parser.parse_args().limit))
    print(f"{slow} inputs block the loop for longer")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
