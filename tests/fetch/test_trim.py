"""The cache of models within its bound: what goes, in which order, and what never does (OD-41)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestratord.infra.fetch.cache import Cache, Known
from orchestratord.infra.fetch.gate import Gate
from orchestratord.infra.fetch.models import Models
from orchestratord.infra.fetch.trim import trim
from orchestratord.ports import Used
from tests.fetch.site import Asked, Reply, Site, digest, serving
from tests.fetch.support import Lab
from tests.turns import turn_of_loop

NOTHING = Used(frozenset(), frozenset(), frozenset())


def store(cache: Cache, data: bytes, *, at: float) -> str:
    """A file in the cache that came at that time; gives its digest."""
    partial = cache.partial(hashlib.sha256(data).hexdigest())
    partial.write(data)
    kept = cache.keep(partial)
    os.utime(cache.path(kept), (at, at))
    return kept


def use(cache: Cache, known: Known, *, at: float) -> None:
    """A reference to it is resolved at that time."""
    cache.remember(known)
    for path in (cache.root / "refs").glob("*.json"):
        if known.ref.encode() in path.read_bytes():
            os.utime(path, (at, at))


def tree(cache: Cache, files: dict[str, str], *, at: float) -> str:
    found = cache.tree(files)
    os.utime(cache.tree_path(found), (at, at))
    return found


def size(cache: Cache) -> int:
    found = (path for kind in ("sha256", "incoming") for path in (cache.root / kind).rglob("*"))
    return sum(path.stat().st_size for path in found if path.is_file())


def files(cache: Cache) -> set[Path]:
    return {path for path in (cache.root / "sha256").rglob("*") if path.is_file()}


# -- which -------------------------------------------------------------------------------------------------
def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    """OD-41: to be resolved is to be used, however old the file is."""
    cache = Cache(tmp_path)
    digests = [store(cache, b"%d" % n * 100, at=1000 + n) for n in range(6)]
    use(cache, Known(ref="https://a.test/0", digest=digests[0]), at=2000)
    use(cache, Known(ref="https://a.test/also", digest=digests[0]), at=500)
    use(cache, Known(ref="https://a.test/4", digest=digests[4]), at=900)
    found = trim(cache, 300, ())
    assert (found.gone, found.left) == (300, 300) == (300, size(cache))
    assert files(cache) == {cache.path(digests[n]) for n in (0, 4, 5)}
    found = trim(cache, 299, ())
    assert files(cache) == {cache.path(digests[n]) for n in (0, 5)}
    assert cache.known("https://a.test/4") is None
    assert len(list((tmp_path / "refs").iterdir())) == 2, "what leads nowhere is forgotten"
    assert trim(cache, 200, ()).gone == 0
    assert trim(cache, 0, ()).left == 0


def test_what_is_to_be_kept_is_kept_whatever_the_bound(tmp_path: Path) -> None:
    """OD-41"""
    cache = Cache(tmp_path)
    digests = [store(cache, b"%d" % n * 100, at=n) for n in range(4)]
    kept = tree(cache, {"a.gguf": digests[0], "b.gguf": digests[1]}, at=1)
    keep = {cache.tree_path(kept), cache.path(digests[2])}
    assert trim(cache, 0, keep).left == 300
    assert files(cache) == {cache.path(digests[n]) for n in (0, 1, 2)}
    assert sorted(p.name for p in cache.tree_path(kept).iterdir()) == ["a.gguf", "b.gguf"]


def test_a_tree_goes_before_its_files_and_files_of_another_stay(tmp_path: Path) -> None:
    """OD-41"""
    cache = Cache(tmp_path)
    digests = [store(cache, b"%d" % n * 100, at=n) for n in range(4)]
    old = tree(cache, {"a.gguf": digests[0], "b.gguf": digests[1]}, at=10)
    new = tree(cache, {"a.gguf": digests[1], "b.gguf": digests[2]}, at=20)
    assert trim(cache, 350, ()).left == 300, "the lone file is older than either"
    assert not cache.has(digests[3])
    assert trim(cache, 250, ()).left == 200
    assert not cache.tree_path(old).exists()
    assert files(cache) == {cache.path(digests[1]), cache.path(digests[2])}
    assert [p.read_bytes() for p in sorted(cache.tree_path(new).iterdir())] == [b"1" * 100, b"2" * 100]


def test_what_nobody_came_back_for_goes_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kept = store(cache, b"x" * 100, at=1_000_000)
    partial = cache.partial("half")
    partial.write(b"y" * 100)
    partial.note('"1"', 200)
    partial.close()
    for path in (tmp_path / "incoming").iterdir():
        os.utime(path, (1, 1))
    assert trim(cache, 100, ()).left == 100
    assert files(cache) == {cache.path(kept)}
    assert list((tmp_path / "incoming").iterdir()) == []


def test_models_that_stay_are_not_touched(tmp_path: Path) -> None:
    """Who has hashed one knows it again by its times: a bound must not cost a second reading."""
    cache = Cache(tmp_path)
    kept, _ = store(cache, b"x" * 100, at=5), store(cache, b"y" * 100, at=4)
    before = cache.path(kept).stat()
    use(cache, Known(ref="https://a.test/x", digest=kept), at=50)
    trim(cache, 100, ())
    after = cache.path(kept).stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_a_crash_leaves_no_half_a_tree(tmp_path: Path, monkeypatch: Any, step: str) -> None:
    """OD-41: what is there under its name is whole; the rest goes with the next trim."""
    cache = Cache(tmp_path)
    digests = [store(cache, b"%d" % n * 100, at=n) for n in range(3)]
    names = {f"{n}.gguf": one for n, one in enumerate(digests)}
    found = tree(cache, names, at=5)

    def dies(path: Path, *_: object, **options: object) -> None:
        if not options:
            os.unlink(Path(path) / "0.gguf") if step == "rmtree" else None
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((shutil, "rmtree") if step == "rmtree" else (os, "rename")), dies)
        with pytest.raises(KeyboardInterrupt):
            trim(cache, 0, ())
    whole = cache.tree_path(found)
    assert not whole.exists() or sorted(p.name for p in whole.iterdir()) == sorted(names)
    assert cache.tree(names) == found
    assert sorted(p.name for p in whole.iterdir()) == sorted(names)
    assert trim(cache, 0, ()).left == 0
    assert list((tmp_path / "trees").iterdir()) == []


def test_any_cache_any_bound(tmp_path: Path) -> None:
    """OD-41: within the bound unless nothing else may go; what is kept is whole; nothing goes while younger stays."""
    for seed in range(25):
        draw = Random(seed)
        cache = Cache(tmp_path / str(seed))
        digests = [store(cache, b"%d." % n * draw.randint(1, 90), at=draw.randint(1, 99)) for n in range(8)]
        trees = [
            (tree(cache, {f"{d[-6:]}.gguf": d for d in some}, at=draw.randint(1, 99)), some)
            for some in (draw.sample(digests, draw.randint(1, 3)) for _ in range(3))
        ]
        keep = {cache.path(d) for d in draw.sample(digests, 2)} | {cache.tree_path(draw.choice(trees)[0])}
        limit = draw.randint(0, size(cache))
        there = files(cache)
        bound = {inode(p) for kept in keep for p in ([kept] if kept.is_file() else kept.iterdir())}
        found = trim(cache, limit, keep)
        left = files(cache)
        assert found.left == size(cache)
        assert {inode(p) for p in left} >= bound
        assert found.left <= limit or {inode(p) for p in left} == bound
        assert found.gone == 0 or found.left <= limit or left < there
        for name, some in trees:
            whole = cache.tree_path(name)
            assert not whole.exists() or len(list(whole.iterdir())) == len(some)


def there(*paths: str) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def inode(path: Path) -> int:
    return path.stat().st_ino


# -- what names it, and when -------------------------------------------------------------------------------
@pytest.fixture
def site() -> Any:
    with serving() as running:
        for n in range(3):
            running.files[f"/{n}.gguf"] = b"GGUF" + b"%d" % n * 996
        yield running


def bounded(tmp_path: Path, site: Site, limit: int | None) -> Lab:
    return Lab(tmp_path, site, cache_bytes=limit)


async def trimmed(models: Models, **used: Collection[str]) -> tuple[int, int]:
    names = {"refs": frozenset(), "paths": frozenset(), "digests": frozenset()}
    return await models.trim(lambda: Used(**{**names, **{k: frozenset(v) for k, v in used.items()}}))


@pytest.mark.parametrize("by", ["refs", "paths", "digests"])
def test_it_may_be_named_in_any_way(tmp_path: Path, site: Site, by: str) -> None:
    """OD-41"""

    async def work(models: Models) -> None:
        paths = [await models.resolve(site.at(f"/{n}.gguf")) for n in range(3)]
        name = {"refs": site.at("/1.gguf"), "paths": paths[1], "digests": digest(site.files["/1.gguf"])}[by]
        assert await trimmed(models, **{by: [name, "coder", "sha256:0", "/etc/passwd"]}) == (2000, 1000)
        assert there(*paths) == [False, True, False]
        asked = len(site.asked)
        assert [await models.resolve(site.at(f"/{n}.gguf")) for n in range(3)] == paths
        assert len(site.asked) == asked + 3
        assert all(there(*paths))

    bounded(tmp_path, site, 10).run(work)


def test_without_a_bound_nothing_goes(tmp_path: Path, site: Site) -> None:
    async def work(models: Models) -> None:
        path = await models.resolve(site.at("/1.gguf"))
        assert await trimmed(models) == (0, 0)
        assert there(path) == [True]

    bounded(tmp_path, site, None).run(work)


def test_being_asked_for_by_digest_is_a_use(tmp_path: Path, site: Site) -> None:
    async def work(models: Models) -> None:
        paths = [await models.resolve(site.at(f"/{n}.gguf")) for n in range(3)]
        for path in (tmp_path / "cache" / "refs").iterdir():
            os.utime(path, (1, 1))
        for n, path in enumerate(paths):
            os.chmod(path, 0o644)
            os.utime(path, (n + 1, n + 1))
        asked = len(site.asked)
        assert await models.resolve(site.at("/elsewhere"), digest(site.files["/0.gguf"])) == paths[0]
        assert len(site.asked) == asked
        assert await trimmed(models) == (1000, 2000)
        assert there(*paths) == [True, False, True]

    bounded(tmp_path, site, 2000).run(work)


def test_nothing_goes_while_something_is_fetched(tmp_path: Path, site: Site) -> None:
    """OD-41: and what was fetched meanwhile is asked about anew."""
    gate, reached = threading.Event(), threading.Event()
    site.routes["/2.gguf"] = lambda asked: held(site, asked, gate, reached)

    async def work(models: Models) -> None:
        paths = [await models.resolve(site.at("/0.gguf"))]
        fetch = asyncio.ensure_future(models.resolve(site.at("/2.gguf")))
        assert await asyncio.to_thread(reached.wait, 5)
        moments: list[bool] = []

        def used() -> Used:
            moments.append(fetch.done())
            return Used(frozenset([site.at("/2.gguf")]), frozenset(), frozenset())

        trim = asyncio.ensure_future(models.trim(used))
        paths.append(await models.resolve(site.at("/1.gguf")))  # nobody is kept out by who waits
        assert not trim.done()
        gate.set()
        paths.append(await fetch)
        assert await trim == (2000, 1000)
        assert there(*paths) == [False, False, True]
        assert len(moments) == 1

    bounded(tmp_path, site, 10).run(work)


def held(site: Site, asked: Asked, gate: threading.Event, reached: threading.Event) -> Reply:
    reached.set()
    reply = site.file(asked, site.files["/2.gguf"])
    reply.pause, reply.hold = 500, gate
    return reply


def test_many_together_or_one_alone() -> None:
    """In every order of coming, and whoever is cancelled in between."""

    async def body(seed: int) -> None:
        draw, gate = Random(seed), Gate()
        inside: list[str] = []
        done: list[int] = []

        async def visit(n: int) -> None:
            alone = draw.random() < 0.3
            for _ in range(draw.randrange(4)):
                await turn_of_loop()
            async with gate.alone() if alone else gate.together():
                assert not inside if alone else "alone" not in inside
                inside.append("alone" if alone else "together")
                try:
                    for _ in range(draw.randrange(4)):
                        await turn_of_loop()
                finally:
                    inside.remove("alone" if alone else "together")
                done.append(n)

        visits = [asyncio.ensure_future(visit(n)) for n in range(12)]
        await turn_of_loop()
        some = draw.sample(visits, 3)
        for one in some:
            one.cancel()
        inside_now = await asyncio.gather(*visits, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in inside_now), inside_now
        assert len(done) >= 9

    for seed in range(40):
        asyncio.run(body(seed))
