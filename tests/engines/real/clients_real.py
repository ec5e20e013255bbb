"""The fake TGI against two real clients of it: what they understand is TGI's protocol, whoever speaks it. `tox -e clients`.

The clients run in an environment of their own (venvs.py), as a program that prints what it got.
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

HUB = """
import json, sys
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
client = InferenceClient(sys.argv[1])
out = client.text_generation("ba fi gono", max_new_tokens=6, seed=7, temperature=0.7, details=True)
stream = list(client.text_generation("ba fi gono", max_new_tokens=6, seed=7, temperature=0.7, details=True, stream=True))
try:
    client.text_generation("ba", max_new_tokens=100_000)
    error = None
except Exception as refused:
    error = f"{type(refused).__name__}: {refused}"
last = stream[-1]
print(json.dumps({
    "whole": out.generated_text, "tokens": out.details.generated_tokens, "reason": out.details.finish_reason,
    "stream": "".join(event.token.text for event in stream), "last": last.generated_text,
    "last_tokens": last.details.generated_tokens, "error": error,
}))
"""
TEXT_GENERATION = """
import json, sys
from text_generation import Client
client = Client(sys.argv[1])
out = client.generate("ba fi gono", max_new_tokens=6, seed=7, temperature=0.7)
stream = list(client.generate_stream("ba fi gono", max_new_tokens=6, seed=7, temperature=0.7))
try:
    client.generate("ba", max_new_tokens=100_000)
    error = None
except Exception as refused:
    error = f"{type(refused).__name__}: {refused}"
last = stream[-1]
print(json.dumps({
    "whole": out.generated_text, "tokens": out.details.generated_tokens, "reason": out.details.finish_reason,
    "stream": "".join(event.token.text for event in stream), "last": last.generated_text,
    "last_tokens": last.details.generated_tokens, "error": error,
}))
"""


@pytest.mark.parametrize("program", [HUB, TEXT_GENERATION], ids=["huggingface_hub", "text_generation"])
def test_real_clients_accept_the_fake(program: str) -> None:
    """Whole and streamed texts agree, the figures are read, and a refusal arrives as one."""
    python = venvs.python("clients")

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
