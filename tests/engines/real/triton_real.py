"""The Triton adapter and the whole daemon with a real tritonserver on the toy models. `tox -e triton`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from orchestratord.infra.engines.triton import Triton
from orchestratord.testing.live import LiveApp, mock_settings
from tests.engines import conformance
from tests.engines.real.flows import Flows
from tests.engines.real.servers import CTX, triton_process
from tests.engines.real.shared_server import SharedServer
from tests.engines.support import CLOCK, collect, job, run

MODELS = ("ensemble", "vllm_model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton") / "models"


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[SharedServer]:
    with SharedServer("triton", triton_process(folder, broken=True), partial(Triton, clock=CLOCK)) as shared:
        yield shared


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("claim", conformance.CAREFUL, ids=lambda claim: claim.__name__)
def test_conforms(claim: conformance.Claim, model: str, shared: SharedServer) -> None:
    """Both dialects keep every promise of the port (OC-ADAPT), beside a model that is broken."""

    async def body() -> None:
        engine = shared.engine(model=model, slots=4)
        try:
            await claim(engine)
        finally:
            await engine.close()

    run(body())


def test_before_it_is_ready(shared: SharedServer) -> None:
    """Nothing listens, then the model is not ready: never an error of another kind."""
    assert set(shared.reasons) <= {"lost", "no model is loaded"} or all("ready" in r for r in shared.reasons)


def test_limits_come_from_the_models_configuration(shared: SharedServer) -> None:
    """The context is the configuration's parameter, slots are its instances; the model of the known name is found."""

    async def body() -> None:
        engine = shared.engine()
        props = await engine.props()
        assert (props.model_id, props.ctx, props.slots, props.engine_version) == ("ensemble:1", CTX, 1, "2.51.0")
        broken = shared.engine(model="broken")
        assert "not ready" in (await broken.ready() or "")
        assert (await collect(broken, job())).kind in ("failed", "refused")
        await engine.close()
        await broken.close()

    run(body())


def test_a_failure_in_the_stream(shared: SharedServer) -> None:
    """What the model reports after its first tokens is a failure under status 200, with clean ends all around."""

    async def body() -> None:
        for model in MODELS:
            engine = shared.engine(model=model)
            collected = await collect(engine, job("please explode"))
            assert (collected.kind, len(collected.texts)) == ("failed", 2)
            assert collected.error is not None
            assert "exploded" in collected.error.message
            await engine.close()

    run(body())


def test_a_dead_model_process_is_a_failure_not_a_refusal(folder: Path) -> None:
    """The server stays up and says 400 to every request: that must not be blamed on the request."""
    with SharedServer("triton", triton_process(folder), partial(Triton, clock=CLOCK)) as shared:
        for child in psutil.Process(shared.child.pid).children(recursive=True):
            if "stub" in child.name():
                child.send_signal(signal.SIGKILL)

        async def body() -> None:
            engine = shared.engine()
            assert (await collect(engine, job())).kind in ("failed", "lost")
            await engine.close()

        run(body())


class TestFlows(Flows):
    engine = "triton"

    @pytest.fixture(scope="class")
    @staticmethod
    def app(folder: Path) -> Iterator[LiveApp]:
        pool = {
            "id": "home",
            "engine": "triton",
            "model": "triton:ensemble",
            "replicas": [{"id": "r0", "process": triton_process(folder)}],
        }
        with LiveApp(mock_settings(pools=[pool]), manual=False) as app:
            yield app

    @staticmethod
    def servers() -> list[psutil.Process]:
        """Not the one all other tests share, which has the broken model as well."""
        found = [p for p in psutil.Process(os.getpid()).children(recursive=True) if p.name() == "tritonserver"]
        return [p for p in found if "--load-model=broken" not in p.cmdline()]
