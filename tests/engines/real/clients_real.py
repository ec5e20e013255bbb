"""The fake TGI against two real clients of TGI: what they understand is its protocol. `tox -e clients`.

Each client runs in an environment of its own (venvs.py), as a program that prints what it got.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import pytest

from tests.engines.fake import fake_server
from tests.engines.real import venvs
from tests.engines.support import run
from tests.engines.wires.tgi import TgiWire

# A client's constructor, and its two ways to ask.
CLIENTS = {
    "huggingface_hub": (
        "InferenceClient(url)",
        "text_generation(details=True,",
        "text_generation(details=True, stream=True,",
    ),
    "text_generation": ("Client(url)", "generate(", "generate_stream("),
}
PROGRAM = """
import json, sys
from {module} import {name}
url = sys.argv[1]
client = {constructor}
asked = {{"max_new_tokens": 6, "seed": 7, "temperature": 0.7}}
out = client.{whole} prompt="ba fi gono", **asked)
stream = list(client.{stream} prompt="ba fi gono", **asked))
try:
    client.{whole} prompt="ba", max_new_tokens=100_000)
    error = None
except Exception as refused:
    error = f"{{type(refused).__name__}}: {{refused}}"
last = stream[-1]
print(json.dumps({{
    "whole": out.generated_text, "tokens": out.details.generated_tokens, "reason": out.details.finish_reason,
    "stream": "".join(event.token.text for event in stream), "last": last.generated_text,
    "last_tokens": last.details.generated_tokens, "error": error,
}}))
"""


@pytest.mark.parametrize("module", CLIENTS)
def test_real_clients_accept_the_fake(module: str) -> None:
    """Whole and streamed texts agree, the figures are read, and a refusal arrives as one."""
    python = venvs.python(module)
    constructor, whole, stream = CLIENTS[module]
    program = PROGRAM.format(
        module=module, name=constructor.partition("(")[0], constructor=constructor, whole=whole, stream=stream
    )

    def ask(url: str) -> Any:
        done = subprocess.run([python, "-c", program, url], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def body() -> None:
        async with fake_server(TgiWire()) as fake:
            got = await asyncio.to_thread(ask, fake.url)
        assert got["whole"] == got["stream"] == got["last"] != ""
        assert (got["tokens"], got["last_tokens"]) == (6, 6)
        assert "length" in str(got["reason"]).lower()
        assert "max_new_tokens" in got["error"]

    run(body())
