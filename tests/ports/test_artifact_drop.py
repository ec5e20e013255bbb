"""What every artifact store does with what it may drop (OD-40): one suite for both, and crashes of the one in files.

`tests.collect` has the races.
"""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestratord.infra.storage import filesystem
from orchestratord.ports import Artifact, ArtifactCorrupt, ArtifactStore, ArtifactTooLarge
from tests import collect
from tests.ports.test_artifact_store import BAD_IDS, Make, artifact, files, ids, make, path_of, visible

__all__ = ["make"]


def oldest(store: ArtifactStore, **query: Any) -> list[str]:
    return [one.artifact.id for one in store.oldest(**{"limit": 100, "after": None, **query})]


# -- both --------------------------------------------------------------------------------------------------
def test_only_what_is_automatic_is_offered_oldest_first(make: Make) -> None:
    """OD-40"""

    async def body() -> None:
        store = await make()
        some = [artifact(str(n), created_ms=n * 7 % 5) for n in range(12)]
        for number, one in enumerate(some):
            await store.put(one, automatic=number % 3 != 0)
        expected = sorted(
            (one for number, one in enumerate(some) if number % 3), key=lambda one: (one.created_ms, one.id)
        )
        assert oldest(store) == [one.id for one in expected]
        assert all(one.automatic and one.artifact.content is None for one in store.oldest(limit=9, after=None))
        paged, after = [], None
        while page := store.oldest(limit=3, after=after):
            paged += page
            after = page[-1].artifact.created_ms, page[-1].artifact.id
        assert [one.artifact.id for one in paged] == [one.id for one in expected]

    asyncio.run(body())


def test_bytes_are_counted_by_whose_they_are(make: Make) -> None:
    async def body() -> None:
        store = await make()
        assert (store.automatic_bytes, store.kept_bytes) == (0, 0)
        await store.put(artifact("x" * 1000), automatic=True)
        small = store.automatic_bytes
        assert 1000 < small < 1400
        await store.put(artifact("x" * 1000), automatic=True)
        assert store.automatic_bytes == small, "it is there once"
        await store.put(artifact("y" * 5000), automatic=True)
        assert store.automatic_bytes == small * 2 + 4000
        assert sum(one.size for one in store.oldest(limit=9, after=None)) == store.automatic_bytes
        await store.put(artifact("y" * 5000))
        assert (store.automatic_bytes, store.kept_bytes) == (small, small + 4000)
        assert await store.drop(artifact("x" * 1000).id)
        assert (store.automatic_bytes, store.kept_bytes) == (0, small + 4000)

    asyncio.run(body())


def test_what_is_dropped_is_gone_and_can_be_put_anew(make: Make) -> None:
    async def body() -> None:
        store = await make()
        one, other = artifact("one", created_ms=1), artifact("other", created_ms=2)
        for each in (one, other):
            await store.put(each, automatic=True)
        assert await store.drop(one.id)
        assert await store.get(one.id) is None
        assert await ids(store) == oldest(store) == [other.id]
        assert not await store.drop(one.id)
        again = replace(one, created_ms=9)
        assert await store.put(again) == again
        assert await store.get(one.id) == again

    asyncio.run(body())


@pytest.mark.parametrize("first", ["client", "daemon"])
def test_what_a_client_has_put_is_never_dropped(make: Make, first: str) -> None:
    """OD-40: whoever was first, and the first date stays."""

    async def body() -> None:
        store = await make()
        one = artifact("x", created_ms=5)
        await store.put(one, automatic=first == "daemon")
        assert await store.put(replace(one, created_ms=9), automatic=first == "client") == one
        assert oldest(store) == []
        assert not await store.drop(one.id)
        assert await store.get(one.id) == one
        await store.put(one, automatic=True)
        assert not await store.drop(one.id)

    asyncio.run(body())


@pytest.mark.parametrize("bad", [*BAD_IDS, "0" * 64])
def test_what_is_not_there_is_not_dropped(make: Make, bad: str) -> None:
    async def body() -> None:
        assert not await (await make()).drop(bad)

    asyncio.run(body())


def test_a_parent_stays_for_as_long_as_any_child_names_it(make: Make) -> None:
    """OD-40"""

    async def body() -> None:
        store = await make()
        parent = artifact("parent")
        children = [artifact(f"child {n}", parent=parent.id) for n in range(2)]
        await store.put(children[0], automatic=True)  # a parent may come later than its child
        await store.put(parent, automatic=True)
        await store.put(children[1], automatic=True)
        for child in children:
            assert not await store.drop(parent.id)
            assert await store.drop(child.id)
        assert await store.drop(parent.id)
        await store.put(parent, automatic=True)
        await store.put(children[0])
        await store.put(children[0])
        assert not await store.drop(parent.id)

    asyncio.run(body())


def test_put_beats_drop_in_every_order(make: Make) -> None:
    """OD-40: a client that was told 201 finds what it has stored, and the parent that was there."""

    async def body() -> None:
        store = await make()
        for number in range(30):
            one = artifact(f"one {number}", created_ms=number)
            child = artifact(f"child {number}", parent=one.id)
            await store.put(one, automatic=True)
            wishes = [store.put(one), store.drop(one.id), store.put(child), store.drop(one.id)]
            Random(number).shuffle(wishes)
            await asyncio.gather(*wishes)
            assert await store.get(one.id) is not None
            assert await store.get(child.id) == child
            assert not await store.drop(one.id)

    asyncio.run(body())


def test_collecting_races_storing(make: Make) -> None:
    """E13 in short; `python -m tests.collect --count 10000` is the long form."""
    assert collect.run(60, seed=1, files="lambda" in make.__name__).lost == []


# -- files only --------------------------------------------------------------------------------------------
def test_marks_and_bytes_outlive_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        some = [artifact(str(n), created_ms=n, parent="f" * 64) for n in range(6)]
        for one in some:
            await store.put(one, automatic=True)
        await store.put(some[1])
        await store.drop(some[2].id)
        again = await files(tmp_path)
        assert oldest(again) == oldest(store) == [some[n].id for n in (0, 3, 4, 5)]
        assert (again.automatic_bytes, again.kept_bytes) == (store.automatic_bytes, store.kept_bytes)
        on_disk = sum(path.stat().st_size for path in visible(tmp_path))
        assert again.automatic_bytes + again.kept_bytes == on_disk - 4 * 85, "each with a line of its own"
        assert await again.put(replace(some[1], created_ms=99)) == some[1]

    asyncio.run(body())


CRASH = """
import asyncio, os, sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.ports.test_artifact_store import artifact, files
step, when, do = sys.argv[3:6]
real = getattr(os, step)
def die(*a, **k):
    if when == "after":
        real(*a, **k)
    os._exit(9)
async def main():
    store = await files(Path(sys.argv[1]))
    await store.put(artifact("x"), automatic=True)
    setattr(os, step, die)
    await (store.drop(artifact("x").id) if do == "drop" else store.put(artifact("x")))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("step", "when", "do", "files_left", "left"),
    [
        ("unlink", "before", "drop", [".pack"], ".pack"),
        ("unlink", "after", "drop", [], None),
        ("rename", "before", "put", [".json", ".pack"], ".pack"),
        ("rename", "after", "put", [".json", ".pack"], ".json"),
        ("unlink", "before", "put", [".json", ".pack"], ".json"),
        ("unlink", "after", "put", [".json"], ".json"),
    ],
)
def test_a_crash_leaves_the_whole_artifact_or_none(
    tmp_path: Path, step: str, when: str, do: str, files_left: list[str], left: str | None
) -> None:
    """E10, OD-40"""
    arguments = [sys.executable, "-c", CRASH, str(tmp_path), str(Path(__file__).parents[2]), step, when, do]
    assert subprocess.run(arguments, check=False, timeout=60).returncode == 9
    assert sorted(path.suffix for path in visible(tmp_path)) == files_left

    async def body() -> None:
        store = await files(tmp_path)
        one = artifact("x")
        assert await store.get(one.id) == (one if left else None)
        assert oldest(store) == ([one.id] if left == ".pack" else [])
        assert [path.suffix for path in visible(tmp_path)] == ([left] if left else [])
        assert await store.put(one) == one
        assert not await store.drop(one.id)

    asyncio.run(body())


def together(count: int, start: int = 0) -> list[Artifact]:
    return [artifact(f"one of many {n}", created_ms=n) for n in range(start, start + count)]


def test_those_put_together_share_a_pack_until_the_last_is_gone(tmp_path: Path) -> None:
    """OD-40: what is dropped leaves nothing of itself, now or after a restart."""

    async def body() -> None:
        store = await files(tmp_path)
        some = together(5)
        assert await store.put_all(some) == 5
        (pack,) = visible(tmp_path)
        assert [await store.get(one.id) for one in some] == some
        for n in (1, 3):
            assert await store.drop(some[n].id)
        await store.put(some[4])
        text = pack.read_bytes()
        assert [f"one of many {n}".encode() in text for n in range(5)] == [True, False, True, False, False]
        for one in (store, await files(tmp_path)):
            assert oldest(one) == [some[0].id, some[2].id]
            assert [await one.get(each.id) for each in some] == [some[0], None, some[2], None, some[4]]
        again = await files(tmp_path)
        assert await again.drop(some[0].id)
        assert await again.drop(some[2].id)
        assert visible(tmp_path) == [path_of(tmp_path, some[4])]

    asyncio.run(body())


def test_put_all_stores_the_first_ones_and_says_how_many(make: Make) -> None:
    async def body() -> None:
        store = await make()
        some = together(6)
        await store.put(some[2])  # a client's: it stays one
        stored = 0
        while stored < len(some):
            stored += await store.put_all(some[stored:])
        assert [await store.get(one.id) for one in some] == some
        assert oldest(store) == [some[n].id for n in (0, 1, 3, 4, 5)]

    asyncio.run(body())


def test_one_that_is_too_large_holds_up_those_behind_it_only(tmp_path: Path) -> None:
    async def body() -> None:
        store = await files(tmp_path, size_limit=1000)
        some = [*together(2), artifact("x" * 2000), *together(1, start=2)]
        assert await store.put_all(some) == 2
        with pytest.raises(ArtifactTooLarge):
            await store.put_all(some[2:])
        assert await store.put_all(some[3:]) == 1

    asyncio.run(body())


def test_a_pack_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "PACK_LIMIT", 1000)

    async def body() -> None:
        store = await files(tmp_path)
        assert 1 < await store.put_all(together(50)) < 10

    asyncio.run(body())


def test_a_pack_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        store = await files(tmp_path)
        some = together(3)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", full)
            with pytest.raises(OSError, match="No space"):
                await store.put_all(some)
        assert (visible(tmp_path), await ids(store), oldest(store)) == ([], [], [])
        assert await store.put_all(some) == 3

    asyncio.run(body())


def test_a_pack_that_is_there_but_not_safe_is_written_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OD-40: else what is dropped from one would come back out of the other."""

    async def body() -> None:
        store = await files(tmp_path, flush=True)
        some = together(3)
        sync = os.fsync

        def full(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(5, "Input/output error")
            sync(descriptor)

        assert await store.put_all(together(1, start=9)) == 1
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="Input/output"):
                await store.put_all(some)
        assert await store.put_all(some) == 3
        assert await store.drop(some[0].id)
        assert await (await files(tmp_path)).get(some[0].id) is None

    asyncio.run(body())


@pytest.mark.parametrize("hurt", [0, 1, 2])
def test_a_damaged_line_of_a_pack_costs_its_own_entry(tmp_path: Path, hurt: int) -> None:
    async def body() -> None:
        some = together(3)
        assert await (await files(tmp_path)).put_all(some) == 3
        (pack,) = visible(tmp_path)
        data = bytearray(pack.read_bytes())
        data[data.find(some[hurt].id.encode()) + 70] ^= 1  # its length
        pack.write_bytes(data)
        left = [one for n, one in enumerate(some) if n != hurt]
        store = await files(tmp_path)
        assert oldest(store) == [one.id for one in left]
        assert [await store.get(one.id) for one in left] == left
        for one in left:
            assert await store.drop(one.id)
        assert visible(tmp_path) == [], "and nothing stays of it when the others go"

    asyncio.run(body())


@pytest.mark.parametrize("packed", [True, False])
def test_damage_that_two_find_at_once_is_damage_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        one, other = together(2)
        if packed:
            assert await store.put_all([one, other]) == 2
        else:
            await store.put(one)
        (file,) = visible(tmp_path)
        file.write_bytes(file.read_bytes().replace(b"one of many 0", b"one of many 7"))
        both, move = threading.Barrier(2), os.rename

        def at_once(*names: Any, **folders: Any) -> None:
            with suppress(threading.BrokenBarrierError):  # one of them was made to wait
                both.wait(0.2)
            move(*names, **folders)

        monkeypatch.setattr(os, "rename", at_once)
        found = await asyncio.gather(*(store.get(one.id) for _ in range(2)), return_exceptions=True)
        assert [type(each) for each in found] == [ArtifactCorrupt] * 2

    asyncio.run(body())


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, step: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The next call of `os.<step>` waits: (it was reached, let it go)."""
    real = getattr(os, step)
    reached, go = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> None:
        reached.set()
        assert go.wait(5)
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, slow)
        yield reached, go


def test_what_is_put_while_it_is_dropped_is_there_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OD-40"""

    async def body() -> None:
        store = await files(tmp_path)
        one = artifact("x", created_ms=1)
        await store.put(one, automatic=True)
        with held(monkeypatch, "unlink") as (reached, go):
            drop = asyncio.create_task(store.drop(one.id))
            assert await asyncio.to_thread(reached.wait, 5)
            put = asyncio.create_task(store.put(replace(one, created_ms=2)))
            assert await ids(store) == []
            assert await store.get(one.id) is None, "who is shown it may name it as a parent"
            go.set()
            assert await drop
            assert (await put).created_ms == 2
        assert await store.get(one.id) == replace(one, created_ms=2)
        assert not await store.drop(one.id)
        assert await ids(await files(tmp_path)) == [one.id]

    asyncio.run(body())


def test_what_is_being_stored_protects_itself_and_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OD-40"""

    async def body() -> None:
        store = await files(tmp_path)
        parent, child = artifact("parent"), artifact("child", parent=artifact("parent").id)
        await store.put(parent, automatic=True)
        for one, automatic in ((child, False), (parent, False)):
            with held(monkeypatch, "rename") as (reached, go):
                put = asyncio.create_task(store.put(one, automatic=automatic))
                assert await asyncio.to_thread(reached.wait, 5)
                assert not await store.drop(parent.id)
                put.cancel()
                await asyncio.gather(put, return_exceptions=True)
                assert not await store.drop(parent.id), "the write goes on"
                go.set()
            await store.put(one)
        assert await store.get(parent.id) == parent

    asyncio.run(body())


def test_a_child_that_could_not_be_stored_protects_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        store = await files(tmp_path)
        parent = artifact("parent")
        await store.put(parent, automatic=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", full)
            with pytest.raises(OSError, match="No space"):
                await store.put(artifact("child", parent=parent.id))
            with pytest.raises(OSError, match="No space"):
                await store.put(parent)
        assert await store.drop(parent.id)

    asyncio.run(body())


def test_a_drop_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    async def body() -> None:
        store = await files(tmp_path)
        one = artifact("x")
        await store.put(one, automatic=True)
        size = store.automatic_bytes
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", broken)
            with pytest.raises(OSError, match="Read-only"):
                await store.drop(one.id)
        assert (await ids(store), oldest(store), store.automatic_bytes) == ([one.id], [one.id], size)
        assert await store.get(one.id) == one
        assert await store.drop(one.id)

    asyncio.run(body())


def test_a_file_that_somebody_took_away_is_written_when_a_client_puts_it(tmp_path: Path) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        one, other = artifact("x", created_ms=5), artifact("y")
        for each in (one, other):
            await store.put(each, automatic=True)
        for path in visible(tmp_path):
            path.unlink()
        assert await store.put(replace(one, created_ms=9)) == one
        assert await store.get(one.id) == one
        assert await store.drop(other.id)

    asyncio.run(body())


def test_what_an_older_daemon_has_written_is_read_and_never_dropped(tmp_path: Path) -> None:
    """Its first lines had no check, and no transcript a mark."""

    async def body() -> None:
        one = artifact("x", tags=("a b",))
        await (await files(tmp_path)).put(one)
        path = path_of(tmp_path, one)
        head, _, content = path.read_bytes().partition(b"\n")
        path.write_bytes(head.rpartition(b" ")[0] + b"\n" + content)
        store = await files(tmp_path)
        assert await store.get(one.id) == one
        assert await ids(store) == [one.id]
        assert not await store.drop(one.id)

    asyncio.run(body())


# -- damage ------------------------------------------------------------------------------------------------
def damage(draw: Random, path: Path) -> None:
    """Flip one bit, cut the end off, or overwrite some bytes."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    match draw.choice(["flip", "cut", "overwrite"]):
        case "flip":
            data[at] ^= 1 << draw.randrange(8)
        case "cut":
            del data[at:]
        case _:
            data[at : at + 4] = draw.randbytes(4)
    path.write_bytes(data)


def test_whatever_rots_wrong_bytes_are_never_served(tmp_path: Path) -> None:
    """OC-CTRL-2066, E9: 400 damaged files, read and listed, before and after a restart."""

    async def body() -> None:
        draw = Random(9)
        store = await files(tmp_path)
        there: dict[str, Artifact] = {}
        for number in range(400):
            one = artifact(f"text {number}", created_ms=1_700_000_000_000 + number, tags=("a", f"n:{number}"))
            await store.put(one, automatic=number % 2 == 0)
            there[one.id] = one
            damage(draw, tmp_path / "packs" / f"{number // 2 + 1}.pack" if number % 2 == 0 else path_of(tmp_path, one))
        again = await files(tmp_path)
        for listed in await again.list(limit=1000, after=None, tag=None):
            assert listed == replace(there[listed.id], content=None)
        served = 0
        for each in (store, again):
            for one in there.values():
                try:
                    found = await each.get(one.id)
                except ArtifactCorrupt:
                    continue
                assert found in (None, one)
                served += found is not None and each is again
        assert served < 10, "white space at the very end is no damage"
        assert len(os.listdir(tmp_path / "quarantine")) > 300, "and of packs whose lines are broken nothing is known"

    asyncio.run(body())
