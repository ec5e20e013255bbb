"""What models take and what there is: declared, measured, judged by files, and where nobody knows."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.residency import Tenant, fits
from orchestratord.ports import ProcessSpec
from orchestratord.services.members import ReplicaSpec
from orchestratord.services.room import Room, RoomSettings


class Memory:
    """A machine whose every figure is given."""

    def __init__(self, available: int | None = 1000) -> None:
        self._available = available
        self.residents = {7: 400}
        self.privates = {7: 150}
        self.files = {"/a": 300, "/b": 500}

    def available(self) -> int | None:
        return self._available

    def resident(self, pid: int) -> int | None:
        return self.residents.get(pid)

    def private(self, pid: int) -> int | None:
        return self.privates.get(pid)

    def file_size(self, path: str) -> int:
        return self.files.get(path, 0)


def room(memory: Memory | None = None, limit: int | None = None, **vram: Any) -> Room:
    return Room(memory or Memory(), RoomSettings(limit, vram.get("configured", {})), lambda: [7], lambda: {"0": 24})


def child(path: str = "/a", name: str = "r0", **fields: Any) -> ReplicaSpec:
    process = ProcessSpec("llamacpp", path, 1, 64, 1, None, (), {}, fields.get("device_mask"))
    return ReplicaSpec(name, "home", process=process, **fields)


def test_what_there_is_comes_back_when_our_engines_end() -> None:
    """What is left, and what is only theirs of what they have: files the system may drop count as left already."""
    assert room().capacity() == {"ram": 1150, "gpu:0": 24}
    assert room(limit=900).capacity()["limit"] == 900
    assert room(configured={"0": 20, "1": 8}).capacity() == {"ram": 1150, "gpu:0": 20, "gpu:1": 8}
    assert "ram" not in room(Memory(None)).capacity()


def test_a_child_is_judged_by_its_file_until_it_is_measured() -> None:
    assert room().claim([child()]) == {"ram": 300}
    assert room().claim([child()], {"r0": 7}) == {"ram": 400}
    assert room().claim([child("/nowhere")]) == {"ram": None}, "nobody knows"
    assert room(limit=900).claim([child(), child("/b", "r1")]) == {"ram": 800, "limit": 800}


def test_what_is_declared_counts() -> None:
    """Also of engines elsewhere, as far as there is a limit for all."""
    assert room().claim([child(memory_bytes=50)], {"r0": 7}) == {"ram": 50}
    elsewhere = ReplicaSpec("r0", "home", url="http://x", memory_bytes=70)
    assert room(limit=900).claim([elsewhere]) == {"limit": 70}
    assert room().claim([elsewhere]) == {}


def test_devices_share_what_a_model_takes_of_them() -> None:
    """And without a figure two on-demand models do not share one."""
    spec = child(device_mask="0,1", vram_bytes=30)
    assert room().claim([spec]) == {"gpu:0": 15, "gpu:1": 15}
    unknown = room().claim([child(device_mask="0")])
    assert unknown == {"gpu:0": None}
    one, other = Tenant("a", unknown, "out"), Tenant("b", {"gpu:0": 1}, "in")
    assert not fits(one, [other], room().capacity())


def test_a_successor_takes_what_the_old_one_takes_with_one_file_for_the_other() -> None:
    old = {"ram": 1000}
    assert room().successor(old, [child("/a")], [child("/b")]) == {"ram": 1200}
    assert room().successor({"ram": None}, [child("/a")], [child("/b")]) == {"ram": 500}
    assert room().successor(old, [child("/a")], [child("/b", memory_bytes=5)]) == {"ram": 5}
