"""Little memory left: new tasks are refused, everything else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestratord.infra import memory
from orchestratord.infra.memory import ProcMemory
from orchestratord.services.pressure import LOOK_S, Pressure
from orchestratord.testing.live import LiveApp
from tests.http.support import submit, task


class Memory(ProcMemory):
    share: float | None = None
    looks = 0

    def taken(self) -> float | None:
        self.looks += 1
        return self.share


class Now:
    seconds = 0.0

    def now(self) -> float:
        return self.seconds


def pressure() -> tuple[Pressure, Memory, Now]:
    memory, clock = Memory(), Now()
    return Pressure(memory, clock), memory, clock  # type: ignore[arg-type]


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
        clock.seconds += LOOK_S
    assert seen == high


def test_it_looks_four_times_a_second_at_most() -> None:
    one, memory, clock = pressure()
    for _ in range(100):
        one.high()
    assert memory.looks == 1
    clock.seconds += LOOK_S
    one.high()
    assert memory.looks == 2


def test_new_tasks_are_refused_and_everything_else_goes_on() -> None:
    """OD-16: not ready, 503 with advice; reads, cancels and what was accepted go on; it ends by itself."""
    with LiveApp() as app, app.session() as session:
        memory = Memory()
        app.call(app.engine().hold)
        task_id = submit(session)
        app.settle()
        app.daemon.pressure._memory = memory
        memory.share = 0.95
        app.advance(1)
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
        app.advance(1)
        assert session.get("/readyz").status_code == 200
        submit(session)


# -- where the limit comes from ------------------------------------------------------------------------------
def group(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")
    return folder


def test_a_control_group_counts_without_files_that_nobody_uses(tmp_path: Path) -> None:
    own = group(tmp_path, memory_max=1000, memory_current=950, memory_stat="anon 600\ninactive_file 300\n")
    assert memory._cgroup(own) == 0.65


@pytest.mark.parametrize("limit", ["max", "0", "", "odd"])
def test_a_group_without_a_limit_has_none(tmp_path: Path, limit: str) -> None:
    assert memory._cgroup(group(tmp_path, memory_max=limit, memory_current=950, memory_stat="")) is None
    assert memory._cgroup(tmp_path / "nothing") is None


def test_the_tightest_limit_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = group(tmp_path / "outer", memory_max=1000, memory_current=900, memory_stat="inactive_file 0\n")
    inner = group(outer / "inner", memory_max=4000, memory_current=800, memory_stat="inactive_file 0\n")
    monkeypatch.setattr(memory, "_groups", lambda: [inner, outer])
    monkeypatch.setattr(memory, "_address_space", lambda: 0.1)
    assert ProcMemory().taken() == 0.9


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (1 << 50, 1 << 50))
    share = memory._address_space()
    assert share is not None
    assert 0 < share < 0.01
