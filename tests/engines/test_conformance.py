"""The conformance suite on every driver: the mock, and each adapter against a fake server that speaks its wire.

The same claims run against real servers in test_llamacpp_real (default) and tests/engines/real (on demand).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from orchestratord.ports import Engine
from tests.engines import conformance, faults
from tests.engines.fake import FakeServer, fake_server
from tests.engines.support import run
from tests.engines.wires import ALL

CASES = [
    pytest.param(name, claim, id=f"{name}-{claim.__name__}")
    for name in ALL
    for claim in (conformance.ALL if name == "llamacpp" else conformance.CAREFUL)
]


@pytest.mark.parametrize(("name", "claim"), CASES)
def test_conforms(name: str, claim: conformance.Claim) -> None:
    """The adapter keeps every promise of the port; what would be cut or ignored is refused (OD-70, OD-71)."""

    async def body() -> None:
        async with fake_server(ALL[name]) as fake:
            engine = ALL[name].driver(fake.url)
            try:
                await claim(engine)
            finally:
                await engine.close()

    run(body())


def check(name: str, claim: Callable[[FakeServer, Engine], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        async with fake_server(ALL[name]) as fake:
            engine = ALL[name].driver(fake.url)
            try:
                await claim(fake, engine)
            finally:
                await engine.close()

    run(body())


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in ALL for fault in faults.EXPECTED if (name, fault) not in faults.UNSEEN],
)
def test_survives(name: str, fault: str) -> None:
    """Each fault of a server ends the job in the right kind of error, and in nothing else (OD-70, ADAPT-30xx)."""
    check(name, partial(faults.ends_as_expected, fault))


@pytest.mark.parametrize("oddity", faults.TRANSPARENT)
@pytest.mark.parametrize("name", ALL)
def test_reads_over(name: str, oddity: str) -> None:
    """However a stream is cut and framed, it is the same stream (ADAPT-30xx)."""
    check(name, partial(faults.changes_nothing, oddity))


@pytest.mark.parametrize("claim", faults.CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("name", ALL)
def test_keeps(name: str, claim: faults.Claim) -> None:
    """Health, time limits, connections; and the key, which no message has (OD-70, OD-72)."""
    check(name, claim)
