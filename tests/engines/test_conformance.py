"""The conformance suite on every driver: the mock, and each adapter against a fake server that speaks its wire.

The same claims run against real servers in test_llamacpp_real (default) and tests/engines/real (on demand).
"""

from __future__ import annotations

import pytest

from tests.engines import conformance
from tests.engines.fake import fake_server
from tests.engines.support import run
from tests.engines.wires import ALL

CASES = [
    pytest.param(name, claim, id=f"{name}-{claim.__name__}")
    for name in ALL
    for claim in (conformance.ALL if name == "llamacpp" else conformance.CAREFUL)
]


@pytest.mark.parametrize(("name", "claim"), CASES)
def test_conforms(name: str, claim: conformance.Claim) -> None:
    """The adapter keeps every promise of the port (OC-ADAPT)."""

    async def body() -> None:
        async with fake_server(ALL[name]) as fake:
            engine = ALL[name].driver(fake.url)
            try:
                await claim(engine)
            finally:
                await engine.close()

    run(body())
