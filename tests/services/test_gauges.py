"""Gauges: how full KV caches are and what GPUs do, in metrics, health and placement; what is not known is not there."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from orchestratord.domain.device import Device
from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines.mock import MockScript
from orchestratord.infra.gpu import RETRY_READS, NvmlProbe
from orchestratord.ports import EngineError
from orchestratord.services.gauges import Gauges
from orchestratord.services.members import ReplicaSpec
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.domain.world import World
from tests.engines.support import run
from tests.services.support import health, submit
from tests.services.test_telemetry import Scrape

GIB = 1 << 30
SERIES = ("kv_cache_usage_ratio", "gpu_utilization", "vram_used_bytes")


class Cards:
    """A GpuProbe of a test."""

    def __init__(self, *devices: Device) -> None:
        self.devices = list(devices)

    async def read(self) -> list[Device]:
        return list(self.devices)


@contextmanager
def workstation(cards: Cards, *pools: dict[str, Any]) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    with LiveApp(mock_settings(pools=list(pools)), gpus=cards) as app, app.session() as session:
        app.advance(2)
        yield app, session


def pool(pool_id: str, mask: str | None = None, slots: int = 2) -> dict[str, Any]:
    found = mock_pool(pool_id, slots=slots, ctx=100, aliases=["shared"])
    found["replicas"][0]["device_mask"] = mask
    return found


def samples(session: VerifyingSession, series: str) -> list[tuple[dict[str, str], float]]:
    found = [s for s in Scrape(session).samples if s.name == series]
    return [({k: s.labels[k] for k in ("pool_id", "replica_id", "device") if k in s.labels}, s.value) for s in found]


def test_devices_belong_to_replicas_by_their_mask() -> None:
    """OD-19: the labels of SPEC 11; a card that does not say how busy it is has no sample of that."""
    cards = Cards(Device(0, "GPU-a", 0.25, 3 * GIB, 5 * GIB), Device(1, "GPU-b", None, GIB, GIB))
    with workstation(cards, pool("left", "0"), pool("both", "0,1"), pool("cpu")) as (_, session):
        used = {(s["pool_id"], s["device"]): value for s, value in samples(session, "vram_used_bytes")}
        assert used == {("left", "0"): 3 * GIB, ("both", "0"): 3 * GIB, ("both", "1"): GIB}
        rates = {(s["pool_id"], s["device"]): value for s, value in samples(session, "gpu_utilization")}
        assert rates == {("left", "0"): 0.25, ("both", "0"): 0.25}
        assert health(session, "both")["metrics"]["vram_used_bytes"] == 4 * GIB
        assert health(session, "both")["metrics"]["gpu_utilization"] == 0.25
        assert "gpu_utilization" not in health(session, "cpu")["metrics"]


def test_without_a_figure_there_is_no_sample() -> None:
    """OD-19: never a zero; also when a figure that was there is gone, or its replica is."""
    cards = Cards(Device(0, "GPU-a", 0.5, GIB, GIB))
    with workstation(cards, pool("home", "0")) as (app, session):
        assert all(samples(session, series) for series in SERIES)
        cards.devices.clear()
        app.advance(2)
        assert not samples(session, "vram_used_bytes")
        assert not samples(session, "gpu_utilization")
        cards.devices.append(Device(0, "GPU-a", 0.5, GIB, GIB))
        app.advance(2)
        app.call(lambda: setattr(app.engine(), "down", True))
        app.advance(3)
        assert not any(samples(session, series) for series in SERIES)


def test_a_daemon_that_stops_measures_no_more() -> None:
    """What was started is ended, and waited for."""

    async def body() -> None:
        core = World().core
        gauges = Gauges(core, SystemClock(), Cards(), list, lambda _: False)
        await gauges.stop()
        gauges.start()
        await gauges.stop()
        assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(body())


def test_an_engine_elsewhere_has_no_device_of_ours() -> None:
    """OD-19: NVML knows the cards of this machine only."""
    for url, here in (("http://127.0.0.1:1", True), ("http://localhost:1", True), ("http://attic:1", False)):
        assert ReplicaSpec("r", "p", url).here == here


def test_placement_goes_where_memory_is_free() -> None:
    """ORCH-3902, OD-19: of two pools that are alike, the one whose card has more room."""
    cards = Cards(Device(0, "GPU-a", 0.0, 0, GIB), Device(1, "GPU-b", 0.0, 0, 2 * GIB))
    with workstation(cards, pool("alpha", "0"), pool("beta", "1")) as (app, session):
        for expected in ("beta", "alpha"):
            app.call(lambda: app.engine("alpha").hold())
            task_id = submit(session, model_ref="shared", ctx=100)
            status = session.get(f"/v1/tasks/{task_id}").json()
            assert (status["pool_id"], "free_vram" in status["placement"]["tie_breakers"]) == (expected, True)
            app.settle()
            cards.devices.reverse()
            cards.devices[:] = [Device(n, d.uuid, 0.0, 0, d.free) for n, d in enumerate(cards.devices)]
            app.advance(2)


def test_the_kv_cache_is_as_full_as_its_jobs_are_long() -> None:
    """OD-19: prompt and output of running jobs over what all slots hold; idle again, it is empty."""
    with workstation(Cards(), pool("home")) as (app, session):
        assert samples(session, "kv_cache_usage_ratio") == [({"pool_id": "home", "replica_id": "r0"}, 0.0)]
        app.call(app.engine().hold)
        submit(session, ctx=100, prompt="one two three", max_tokens=20)
        app.settle()
        app.call(lambda: app.engine().step(6))
        app.advance(2)
        assert [value for _, value in samples(session, "kv_cache_usage_ratio")] == [0.05]
        assert health(session)["metrics"]["kv_cache_usage_ratio"] == 0.05
        app.call(app.engine().release_hold)
        app.advance(2)
        assert [value for _, value in samples(session, "kv_cache_usage_ratio")] == [0.0]


def test_an_engine_is_not_asked_while_an_abort_is_proven_and_never_twice_a_second() -> None:
    """OD-19: being asked keeps a llama-server from noticing that a client has left."""
    with workstation(Cards(), pool("home")) as (app, session):
        engine, asked = app.engine(), []
        usage = engine.kv_usage

        async def noting() -> float | None:
            asked.append(app.daemon.clock.now())
            return await usage()

        engine.kv_usage = noting  # type: ignore[method-assign]
        app.advance(20)
        assert 9 <= len(asked) <= 11
        assert all(later - earlier >= 1 for earlier, later in pairwise(asked))
        engine.play(MockScript(ignore_abort=True))
        app.call(engine.hold)
        task_id = submit(session, ctx=100)
        app.settle()
        assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204
        app.settle()
        asked.clear()
        app.advance(9)
        assert asked == []
        app.call(engine.release)
        app.advance(4)
        assert asked


@pytest.mark.parametrize("fault", [EngineError("failed", "x"), None], ids=["fails", "cannot tell"])
def test_an_engine_that_does_not_say_is_left_alone(fault: EngineError | None) -> None:
    with workstation(Cards(), pool("home")) as (app, session):

        async def silent() -> float | None:
            if fault is not None:
                raise fault
            return None

        app.engine().kv_usage = silent  # type: ignore[method-assign]
        app.advance(2)
        assert samples(session, "kv_cache_usage_ratio") == []
        assert health(session)["ready"] is True


# -- NVML ------------------------------------------------------------------------------------------------------
class FakeNvml(types.ModuleType):
    """The part of the library that is used, over cards of a test."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards: list[dict[str, Any]]) -> None:
        super().__init__("fake_nvml")
        self.cards = cards
        self.lost = False
        self.inits = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        self.nvmlDeviceGetCount()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.lost:
            raise self.NVMLError("driver not loaded")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> Any:  # noqa: N802
        return types.SimpleNamespace(used=card["used"], free=card["free"])

    def nvmlDeviceGetUUID(self, card: dict[str, Any]) -> Any:  # noqa: N802
        return card["uuid"]

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, Any]) -> Any:  # noqa: N802
        if card["gpu"] is None:
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(gpu=card["gpu"], memory=1)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    cards = [
        {"uuid": "GPU-1", "used": 10, "free": 90, "gpu": 37},
        {"uuid": b"GPU-2", "used": 1, "free": 2, "gpu": None},
    ]
    fake = FakeNvml(cards)
    monkeypatch.setitem(__import__("sys").modules, "fake_nvml", fake)
    return fake


def test_cards_are_read(nvml: FakeNvml) -> None:
    """OD-19: opened once; percents become shares; a card may keep its utilization to itself."""

    async def body() -> None:
        probe = NvmlProbe("fake_nvml")
        expected = [Device(0, "GPU-1", 0.37, 10, 90), Device(1, "GPU-2", None, 1, 2)]
        assert await probe.read() == expected
        assert await probe.read() == expected
        assert nvml.inits == 1

    run(body())


def test_a_driver_that_goes_away_is_tried_again_later(nvml: FakeNvml) -> None:
    async def body() -> None:
        probe = NvmlProbe("fake_nvml")
        assert len(await probe.read()) == 2
        nvml.lost = True
        assert await probe.read() == []
        nvml.lost = False
        assert [await probe.read() for _ in range(RETRY_READS)] == [[]] * RETRY_READS
        assert len(await probe.read()) == 2
        assert nvml.inits == 2

    run(body())


@pytest.mark.parametrize("module", ["no_such_module_at_all"])
def test_without_the_library_there_are_no_cards(module: str) -> None:
    async def body() -> None:
        assert await NvmlProbe(module).read() == []

    run(body())
