"""Little memory left: new tasks are refused, everything else goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestratord.infra import memory
from orchestratord.infra.memory import ProcMemory
from orchestratord.services.pressure import BEHIND_S, LOOK_S, STALE_S, Pressure
from orchestratord.testing.clock import ManualClock
from orchestratord.testing.live import LiveApp
from tests.http.support import submit, task


class Memory(ProcMemory):
    share: float | None = None
    looks = 0

    def taken(self) -> float | None:
        self.looks += 1
        return self.share


def pressure() -> tuple[Pressure, Memory, ManualClock]:
    memory, clock = Memory(), ManualClock()
    return Pressure(memory, clock), memory, clock


@pytest.mark.parametrize(
    ("shares", "high"),
    [
        ([None], [False]),
        ([0.91], [False]),
        ([0.92], [True]),
        ([0.95, 0.90, 0.85, 0.849, 0.90], [True, True, True, False, False]),
        ([0.95, None], [True, False]),
    ],
)
def test_it_sheds_from_92_percent_down_to_85(shares: list[float | None], high: list[bool]) -> None:
    """OD-16."""
    one, memory, clock = pressure()
    seen = []
    for memory.share in shares:
        seen.append(one.high())
        asyncio.run(clock.run(STALE_S))
    assert seen == high


def test_it_looks_four_times_a_second_at_most_and_behind_whoever_asks() -> None:
    """OD-16."""
    one, memory, clock = pressure()

    async def body() -> None:
        for _ in range(100):
            one.high()
        assert memory.looks == 1
        memory.share = 0.95
        await clock.run(LOOK_S)
        assert not any(one.high() for _ in range(100))
        assert memory.looks == 1
        await clock.run(BEHIND_S)
        assert all(one.high() for _ in range(100))
        assert memory.looks == 2

    asyncio.run(body())


def test_what_was_seen_long_ago_is_not_believed() -> None:
    """OD-16: memory that filled up while nobody asked."""
    one, memory, clock = pressure()
    assert not one.high()
    memory.share = 0.95
    asyncio.run(clock.run(STALE_S))
    assert one.high()


def test_new_tasks_are_refused_and_everything_else_goes_on() -> None:
    """OD-16: not ready, 503 with advice; reads, cancels and what was accepted go on; it ends by itself."""
    with LiveApp() as app, app.session() as session:
        memory = Memory()
        app.call(app.engine().hold)
        task_id = submit(session)
        app.settle()
        app.daemon.pressure._memory = memory
        memory.share = 0.95
        app.advance(STALE_S)
        refusal = session.post("/v1/tasks", json=task())
        assert (refusal.status_code, refusal.json()["code"]) == (503, "OVERLOADED")
        assert refusal.headers["Retry-After"] == "1"
        readiness = session.get("/readyz")
        assert readiness.status_code == 503
        assert "memory" in readiness.text
        assert session.get("/healthz").status_code == 200
        with session.events(task_id) as events:
            app.call(app.engine().release_hold)
            assert list(events)[-1].name == "end"
        memory.share = 0.5
        app.advance(STALE_S)
        assert session.get("/readyz").status_code == 200
        submit(session)


# -- where the limit comes from ------------------------------------------------------------------------------
UNLIMITED = 9_223_372_036_854_771_712  # what version 1 says instead of `max`


class Machine:
    """The trees in which Linux tells of control groups: version 2 at the top, version 1 below `memory`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree = folder / "cgroup"
        self.membership = folder / "membership"
        monkeypatch.setattr(memory, "CGROUPS", self.tree)
        monkeypatch.setattr(memory, "MEMBERSHIP", self.membership)
        monkeypatch.setattr(memory, "_address_space", lambda: None)

    def member(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def _write(self, path: str, files: dict[str, Any]) -> None:
        folder = self.tree / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")

    def v2(self, path: str, limit: Any, used: int, cached: int = 0) -> None:
        stat = f"anon 1\nfile 2\ninactive_anon 999\ninactive_file {cached}\nactive_file 3"
        self._write(path, {"memory.max": limit, "memory.current": used, "memory.stat": stat})

    def v1(self, path: str, limit: int, used: int, cached: int = 0) -> None:
        stat = f"cache 1\ninactive_file 999\nhierarchical_memory_limit {limit}\ntotal_inactive_file {cached}"
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}
        self._write(f"memory/{path}", files)

    def taken(self) -> float | None:
        return ProcMemory().taken()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_control_group_counts_without_files_that_nobody_uses(machine: Machine) -> None:
    """OD-16: of either version."""
    machine.member("0::/service")
    machine.v2("service", 1000, 950, cached=300)
    assert machine.taken() == 0.65
    machine.member("4:memory:/service")
    machine.v1("service", 1000, 850, cached=300)
    assert machine.taken() == 0.55


@pytest.mark.parametrize("limit", ["max", "0", "", "odd"])
def test_a_group_without_a_limit_has_none(machine: Machine, limit: str) -> None:
    machine.member("0::/service")
    machine.v2("service", limit, 950)
    assert machine.taken() is None


def test_version_1_has_a_number_for_no_limit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is none the figures of the group, for which the kernel takes long, are not asked for."""
    machine.member("4:memory:/service")
    machine.v1("service", UNLIMITED, 950)
    asked: list[str] = []
    read = memory._read
    monkeypatch.setattr(memory, "_read", lambda path: asked.append(Path(path).name) or read(path))
    assert machine.taken() is None
    assert set(asked) == {"membership", "memory.limit_in_bytes"}


def test_the_tightest_limit_above_counts(machine: Machine) -> None:
    machine.member("0::/outer/inner")
    machine.v2("outer", 1000, 900)
    machine.v2("outer/inner", 4000, 800)
    assert machine.taken() == 0.9
    machine.member("7:memory:/outer/inner", "3:cpu,cpuacct:/elsewhere")
    machine.v1("outer", 1000, 700)
    machine.v1("outer/inner", UNLIMITED, 600)
    assert machine.taken() == 0.7


def test_a_machine_may_have_both_versions(machine: Machine) -> None:
    """As systemd's hybrid hierarchy: limits of memory are in version 1 then; whichever has one counts."""
    machine.member("12:pids:/a", "5:memory:/a", "1:name=systemd:/a", "0::/a")
    machine.v1("a", 1000, 930)
    assert machine.taken() == 0.93
    machine.v2("a", 1000, 950)
    assert machine.taken() == 0.95


@pytest.mark.parametrize("line", ["0::/docker/0123abcd", "9:memory:/docker/0123abcd", "0::/../../elsewhere"])
def test_in_a_container_the_topmost_group_is_its_own(machine: Machine, line: str) -> None:
    """The path is the host's, and nothing is there."""
    machine.member(line)
    if line.startswith("0:"):
        machine.v2("", 1000, 940)
    else:
        machine.v1("", 1000, 940)
    assert machine.taken() == 0.94


def test_where_nothing_is_told_there_is_no_limit(machine: Machine) -> None:
    assert machine.taken() is None
    machine.member("0::/nothing/there", "4:memory:/nothing", "2:cpu:/")
    assert machine.taken() is None


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (1 << 50, 1 << 50))
    share = memory._address_space()
    assert share is not None
    assert 0 < share < 0.01
