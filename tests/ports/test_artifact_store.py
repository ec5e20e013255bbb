"""What every artifact store does: the same suite for the one in memory and the one in files."""

from __future__ import annotations

import asyncio
import builtins
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.ports import Artifact, ArtifactCorrupt, ArtifactStore, ArtifactTooLarge
from orchestratord.wire.canonical import id_of

Make = Callable[[], Awaitable[ArtifactStore]]
BAD_IDS = ["", "..", "../../etc/passwd", "/etc/passwd", "a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n"]
BAD_IDS += ["../" + "a" * 61, "a" * 63 + "\0", "\uff11" * 64, "sha256-" + "a" * 64]


def artifact(text: str, created_ms: int = 1000, tags: tuple[str, ...] = (), **fields: Any) -> Artifact:
    whole = Artifact("", "note", {"text": text, "n": [1, 2.5, None]}, tags, None, {"by": "me"}, created_ms)
    whole = replace(whole, **fields)
    return replace(whole, id=id_of(whole))


async def files(root: Path, **options: Any) -> FileArtifacts:
    store = FileArtifacts(root, id_of, **options)
    await store.open()
    return store


async def opened(store: ArtifactStore, artifact_id: str) -> Artifact:
    """What is stored, with its content as objects."""
    found = await store.get(artifact_id)
    assert found is not None
    return found.opened()


@pytest.fixture(params=["memory", "files"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    async def memory() -> ArtifactStore:
        return MemoryArtifacts()

    return memory if request.param == "memory" else lambda: files(tmp_path / "store")


async def ids(store: ArtifactStore, **query: Any) -> builtins.list[str]:
    page = await store.list(**{"limit": 100, "after": None, "tag": None, **query})
    assert all(one.content in (None, {}) for one in page)
    return [one.id for one in page]


# -- both --------------------------------------------------------------------------------------------------
def test_an_artifact_comes_back_as_it_was(make: Make) -> None:
    async def body() -> None:
        store = await make()
        for one in (
            artifact("é \u2028 \U0001f600 \x00"),
            artifact("parented", parent="f" * 64, tags=("a", "b")),
            artifact("", content=[1e-7, True, {"\U0001f600": {"": -0.5}}]),
            artifact("", content=None, metadata={}),
        ):
            assert await store.get(one.id) is None
            assert await store.put(one) == one
            assert await opened(store, one.id) == one

    asyncio.run(body())


def test_put_is_idempotent_and_the_first_date_wins(make: Make) -> None:
    async def body() -> None:
        store = await make()
        one = artifact("x", created_ms=5)
        await store.put(one)
        assert await store.put(replace(one, created_ms=9)) == one
        assert await opened(store, one.id) == one
        assert await ids(store) == [one.id]

    asyncio.run(body())


def test_the_same_artifact_put_by_many_at_once_is_stored_once(make: Make) -> None:
    async def body() -> None:
        store = await make()
        one = artifact("x")
        stored = await asyncio.gather(*(store.put(replace(one, created_ms=date)) for date in range(50)))
        assert len({one.created_ms for one in stored}) == 1
        assert await opened(store, one.id) == stored[0]

    asyncio.run(body())


def test_lists_are_newest_first_and_page_without_gap_or_overlap(make: Make) -> None:
    async def body() -> None:
        store = await make()
        some = [artifact(str(number), created_ms=number * 7 % 5) for number in range(23)]
        for one in some:
            await store.put(one)
        expected = sorted(some, key=lambda one: (one.created_ms, one.id), reverse=True)
        assert await ids(store) == [one.id for one in expected]
        paged: list[list[str]] = []
        after = None
        for _ in range(6):
            page = await store.list(limit=4, after=after, tag=None)
            paged.append([one.id for one in page])
            after = (page[-1].created_ms, page[-1].id)
        assert [len(page) for page in paged] == [4, 4, 4, 4, 4, 3]
        assert [one for page in paged for one in page] == [one.id for one in expected]
        assert await ids(store, after=after) == []

    asyncio.run(body())


def test_a_page_may_begin_below_a_key_that_is_not_there(make: Make) -> None:
    async def body() -> None:
        store = await make()
        old, new = artifact("old", created_ms=1), artifact("new", created_ms=3)
        await store.put(old)
        await store.put(new)
        assert await ids(store, after=(2, "f" * 64)) == [old.id]
        assert await ids(store, after=(9, "")) == [new.id, old.id]
        assert await ids(store, after=(0, "")) == []

    asyncio.run(body())


def test_a_tag_filters_whole_tags(make: Make) -> None:
    async def body() -> None:
        store = await make()
        some = [
            artifact(str(n), created_ms=n, tags=("all", f"task:{n}", *(("even",) * (n % 2 == 0)))) for n in range(13)
        ]
        for one in some:
            await store.put(one)
        assert await ids(store, tag="task:1") == [some[1].id]
        assert await ids(store, tag="even", limit=3) == [some[n].id for n in (12, 10, 8)]
        assert await ids(store, tag="even", limit=3, after=(8, some[8].id)) == [some[n].id for n in (6, 4, 2)]
        assert await ids(store, tag="eve") == []

    asyncio.run(body())


@pytest.mark.parametrize("bad", BAD_IDS)
def test_what_is_not_an_id_is_never_looked_up(make: Make, bad: str) -> None:
    async def body() -> None:
        store = await make()
        assert await store.get(bad) is None
        with pytest.raises(ValueError, match="not an artifact id"):
            await store.put(replace(artifact("x"), id=bad))

    asyncio.run(body())


# -- files only --------------------------------------------------------------------------------------------
def path_of(root: Path, one: Artifact) -> Path:
    return root / one.id[:2] / f"{one.id[2:]}.json"


def visible(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_restart_lists_the_same(tmp_path: Path) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        some = [artifact(str(n), created_ms=n, tags=("t",), parent="f" * 64) for n in range(10)]
        for one in some:
            await store.put(one)
        again = await files(tmp_path)
        listed = await again.list(limit=100, after=None, tag=None)
        assert listed == await store.list(limit=100, after=None, tag=None)
        assert listed == [replace(one, content=None) for one in reversed(some)]
        assert await again.put(replace(some[0], created_ms=99)) == some[0]

    asyncio.run(body())


def test_files_are_private_and_where_the_id_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:

        async def body() -> None:
            one = artifact("x")
            await (await files(tmp_path / "a" / "b")).put(one)
            path = path_of(tmp_path / "a" / "b", one)
            assert visible(tmp_path) == [path]
            assert path.stat().st_mode & 0o777 == 0o600
            assert {folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)} == {0o700}

        asyncio.run(body())
    finally:
        os.umask(before)


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"original", b"0riginal"))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"by"', b'"bY"')),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.rename(path.parent / "aside") and path.symlink_to("aside"),
    ],
)
def test_a_damaged_artifact_is_never_served_and_can_be_put_again(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        one, other = artifact("original"), artifact("other")
        await store.put(one)
        await store.put(other)
        damage(path_of(tmp_path, one))
        with pytest.raises(ArtifactCorrupt, match=one.id):
            await store.get(one.id)
        assert os.listdir(tmp_path / "quarantine") == [f"{one.id}.json"]
        assert await store.get(one.id) is None
        assert await ids(store) == await ids(await files(tmp_path)) == [other.id]
        await store.put(one)
        assert await opened(store, one.id) == one

    asyncio.run(body())


def test_damage_done_while_nobody_looked_is_found_by_the_next_read(tmp_path: Path) -> None:
    async def body() -> None:
        one = artifact("original")
        await (await files(tmp_path)).put(one)
        path_of(tmp_path, one).write_bytes(b"{")
        with pytest.raises(ArtifactCorrupt):
            await (await files(tmp_path)).get(one.id)

    asyncio.run(body())


def test_a_crash_before_the_rename_leaves_nothing_visible(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.ports.test_artifact_store import artifact, files\n"
        "async def main():\n"
        "    store = await files(Path(sys.argv[1]))\n"
        "    os.rename = lambda *a, **k: os._exit(9)\n"
        "    await store.put(artifact('x'))\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[2])]
    assert subprocess.run(arguments, check=False, timeout=60).returncode == 9
    assert len(visible(tmp_path)) == 1

    async def body() -> None:
        store = await files(tmp_path)
        assert await ids(store) == []
        assert await store.get(artifact("x").id) is None
        assert visible(tmp_path) == []

    asyncio.run(body())


def test_a_write_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        store = await files(tmp_path)
        one = artifact("x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", full)
            with pytest.raises(OSError, match="No space"):
                await store.put(one)
        assert visible(tmp_path) == []
        assert await ids(store) == []
        assert await store.put(one) == one

    asyncio.run(body())


def test_a_write_outlives_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        store = await files(tmp_path)
        one = artifact("x")
        gate, reached, rename = threading.Event(), threading.Event(), os.rename

        def slow(*arguments: Any, **options: Any) -> None:
            reached.set()
            assert gate.wait(5)
            rename(*arguments, **options)

        monkeypatch.setattr(os, "rename", slow)
        caller = asyncio.create_task(store.put(one))
        assert await asyncio.to_thread(reached.wait, 5)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.set()
        assert await store.put(one) == one
        assert await ids(store) == [one.id]

    asyncio.run(body())


def test_an_artifact_beyond_the_size_limit_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        store = await files(tmp_path, size_limit=1000)
        with pytest.raises(ArtifactTooLarge, match="at most 1000 bytes; this one has 1119"):
            await store.put(artifact("x" * 1000))
        assert visible(tmp_path) == []
        await store.put(artifact("x" * 881))
        with pytest.raises(ArtifactTooLarge, match="this one has 1001"):
            await store.put(artifact("x" * 882))

    asyncio.run(body())


@pytest.mark.parametrize("bad", BAD_IDS)
def test_what_is_not_an_id_never_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    def forbidden(path: object, *_: object, **__: object) -> int:
        raise AssertionError(f"opened {path}")

    async def body() -> None:
        store = await files(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", forbidden)
            assert await store.get(bad) is None

    asyncio.run(body())


def test_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    async def body() -> None:
        one = artifact("x")
        outside, root = tmp_path / "outside", tmp_path / "root"
        await (await files(outside)).put(one)
        root.mkdir()
        (root / one.id[:2]).symlink_to(outside / one.id[:2])
        store = await files(root)
        assert await ids(store) == []
        with pytest.raises(NotADirectoryError):
            await store.get(one.id)
        with pytest.raises(NotADirectoryError):
            await store.put(one)
        assert len(visible(outside)) == 1

    asyncio.run(body())
