"""Our streams through parsers of others: what a client reads is what the engine wrote, whoever wrote the client.

    tox run -e foreign [-- --count N]

Streams of token texts that are made of everything a parser may trip over, in an environment with those parsers
(httpx-sse, sseclient-py, and eventsource-parser of npm where node is). Exit code 1 if one of them reads anything else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from orchestratord.wire import sse

Read = list[tuple[str, str, str]]  # id, event, data
PIECES = [
    *(
        "\r",
        "\n",
        "\r\n",
        "\n\n",
        "\u2028",
        "\u2029",
        "\u0085",
        "\x00",
        "\ufeff",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x1e",
        "\x7f",
    ),
    *(
        "data: x\n\nevent: end\n\n",
        "id: 99\n",
        "retry: 1\n",
        ": comment\n",
        "event",
        ":",
        " ",
        "\\n",
        '"',
        "{}",
        "größe",
    ),
    *("東京", "🙂", "👩‍🔬", "\U0010ffff", "a", "the ", "</script>", "\ud7ff", "\ue000", "%0A", "\t"),
]
NODE = """
import {createParser} from 'eventsource-parser';
import {readFileSync} from 'fs';
const out = [];
const parser = createParser({onEvent: e => out.push([e.id ?? '', e.event ?? 'message', e.data])});
parser.feed(new TextDecoder().decode(readFileSync(process.argv[2])));
console.log(JSON.stringify(out));
"""


def streams(count: int, draw: Random) -> Iterable[tuple[bytes, list[str]]]:
    for _ in range(count):
        texts = ["".join(draw.choices(PIECES, k=draw.randint(0, 6))) for _ in range(draw.randint(1, 30))]
        frames = [sse.RETRY, sse.encode(1, "started", {"task": "a"})]
        for number, text in enumerate(texts):
            frames.append(sse.encode(number + 2, "token", {"i": number, "t": text}))
            if draw.random() < 0.2:
                frames.append(sse.KEEP_ALIVE)
        frames.append(sse.encode(len(texts) + 2, "end", {"finish_reason": "stop"}))
        yield b"".join(frames), texts


def httpx_sse(stream: bytes) -> Read:
    import httpx  # noqa: TID251 - somebody else's client is the subject
    from httpx_sse import EventSource

    answer = httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, content=stream)
    return [(event.id, event.event, event.data) for event in EventSource(answer).iter_sse()]


def sseclient(stream: bytes) -> Read:
    from sseclient import SSEClient

    class Source:
        """Cut where nobody would."""

        def __iter__(self) -> Iterable[bytes]:
            return (stream[at : at + 7] for at in range(0, len(stream), 7))

        def close(self) -> None: ...

    return [(event.id or "", event.event, event.data) for event in SSEClient(Source()).events()]


def eventsource_parser(folder: Path) -> Callable[[bytes], Read]:
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "eventsource-parser@3"]
    subprocess.run(npm, cwd=folder, check=True)
    (folder / "read.mjs").write_text(NODE)

    def read(stream: bytes) -> Read:
        (folder / "stream").write_bytes(stream)
        done = subprocess.run(
            ["node", "read.mjs", "stream"], cwd=folder, check=True, capture_output=True, text=True, encoding="utf-8"
        )
        return [(str(e[0]), str(e[1]), str(e[2])) for e in json.loads(done.stdout)]

    return read


def check(name: str, read: Callable[[bytes], Read], count: int) -> int:
    wrong = 0
    for stream, texts in streams(count, Random(7)):
        events = [event for event in read(stream) if event[2]]  # httpx-sse reports a lone `retry` as one without data
        tokens = [json.loads(data)["t"] for _, event, data in events if event == "token"]
        ids = [int(number) for number, _, _ in events]
        names = [event for _, event, _ in events]
        good = (
            tokens == texts and ids == list(range(1, len(texts) + 3)) and names[0] == "started" and names[-1] == "end"
        )
        wrong += not good
    sys.stdout.write(f"{name}: {count} streams, {wrong} read otherwise\n")
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.foreign", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="streams (default 2000)")
    count = parser.parse_args(argv).count
    wrong = check("httpx-sse", httpx_sse, count) + check("sseclient-py", sseclient, count)
    if shutil.which("node") and shutil.which("npm"):
        with tempfile.TemporaryDirectory() as folder:
            wrong += check("eventsource-parser", eventsource_parser(Path(folder)), max(1, count // 50))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
