"""What every store of the catalog does: the same suite for the one in memory and the one in SQLite."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.domain.entry import CatalogChanged, CatalogEntry, CatalogRemoved, Manifest, Sbom, SignatureRef
from orchestratord.domain.facts import Fact
from orchestratord.domain.trust import Findings, Signature, TrustPolicy
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import JournalUnavailable
from tests.ports.journal_samples import admitted, archive, finished, within
from tests.ports.test_journal import Make, makers, write

CHILD = Path(__file__).parent / "journal_child.py"
FULL = CatalogEntry(
    id="coder-8b",
    source_url="oci://registry.example/acme/coder-8b",
    created_ms=1_700_000_000_000,
    digest="sha256:" + "a" * 64,
    tags=("b", "ü\u2028"),
    manifests=(Manifest("sha256:" + "b" * 64, 0), Manifest("sha256:" + "c" * 64, 2**53 - 1)),
    signature_refs=(SignatureRef("file:a.sig", None, "acme"), SignatureRef("file:b.sig", "sha256:" + "d" * 64)),
    sbom=Sbom("file:a.json", "sha256:" + "e" * 64),
    trust_policy=TrustPolicy("strict", ("registry.example",), True, None, ("acme",)),
    state="Retired",
    state_ms=1_700_000_000_001,
    checking=True,
    findings=Findings(1_700_000_000_002, "digest", "its digest is another", "sha256:" + "f" * 64, fault="digest"),
    signatures=(Signature("acme", "ecdsa-sha256", True, 1_700_000_000_002),),
)


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return makers(tmp_path)[request.param]


def small(number: int, **fields: Any) -> CatalogEntry:
    return CatalogEntry(f"m-{number}", f"file:{number}", number, **fields)


async def store(make: Make, *facts: Fact) -> list[CatalogEntry]:
    """Write with one and read with the next."""
    journal = make()
    await journal.open()
    await write(journal, *facts)
    await journal.close()
    return await load(make)


async def load(make: Make) -> list[CatalogEntry]:
    journal = make()
    await journal.open()
    await journal.close()
    return journal.catalog()


def test_an_entry_survives_as_it_was(make: Make) -> None:
    """ORCH-3060: every field of it, and the least there can be."""
    assert asyncio.run(store(make, CatalogChanged(small(1)), CatalogChanged(FULL))) == [FULL, small(1)]


def test_a_new_store_has_no_entries(make: Make) -> None:
    assert asyncio.run(load(make)) == []


def test_the_last_change_counts(make: Make) -> None:
    changed = replace(small(1), state="Retired", tags=("x",))
    assert asyncio.run(store(make, CatalogChanged(small(1)), CatalogChanged(changed))) == [changed]


def test_what_is_removed_is_gone(make: Make) -> None:
    """Removing what is not there changes nothing."""
    facts = [CatalogChanged(small(1)), CatalogChanged(small(2)), CatalogRemoved("m-1"), CatalogRemoved("m-9")]
    assert asyncio.run(store(make, *facts)) == [small(2)]
    assert asyncio.run(store(make, CatalogChanged(small(1)))) == [small(1), small(2)]


def test_tasks_and_entries_do_not_touch_each_other(make: Make) -> None:
    facts = [admitted(1), CatalogChanged(small(1)), finished("task-1"), CatalogRemoved("m-1"), CatalogChanged(small(2))]
    assert asyncio.run(store(make, *facts)) == [small(2)]

    async def body() -> None:
        journal = make()
        assert [task.finished is not None for task in await journal.open()] == [True]
        await journal.close()

    asyncio.run(body())


def test_nothing_is_taken_by_a_store_that_is_closed(make: Make) -> None:
    """The ticket says so, and nothing is there afterwards."""

    async def body() -> None:
        journal = make()
        await journal.open()
        await journal.close()
        with pytest.raises(JournalUnavailable):
            await within(journal.append(CatalogChanged(small(1))))
        assert await load(make) == []

    asyncio.run(body())


facts = st.lists(
    st.one_of(
        st.builds(
            lambda n, retired: CatalogChanged(small(n, state="Retired" if retired else "Active")),
            st.integers(0, 5),
            st.booleans(),
        ),
        st.builds(lambda n: CatalogRemoved(f"m-{n}"), st.integers(0, 5)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(max_examples=12, deadline=None)
@given(written=facts, cut=st.integers(0, 30))
def test_any_history_leaves_its_last_word(kind: str, written: list[Fact], cut: int) -> None:
    """With a restart anywhere in it."""
    expected: dict[str, CatalogEntry] = {}
    for fact in written:
        if isinstance(fact, CatalogChanged):
            expected[fact.entry.id] = fact.entry
        elif isinstance(fact, CatalogRemoved):
            expected.pop(fact.model_id, None)

    async def body() -> None:
        with tempfile.TemporaryDirectory() as directory:
            make = makers(Path(directory))[kind]
            await store(make, *written[:cut])
            found = await store(make, *written[cut:])
            assert found == [expected[model_id] for model_id in sorted(expected)]

    asyncio.run(body())


# -- SQLite alone --------------------------------------------------------------------------------------------
def test_kill_9_loses_no_acknowledged_change(tmp_path: Path) -> None:
    """ORCH-3060: what was acknowledged is there; what was removed stays gone."""
    path = tmp_path / "j.db"
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parent.parent.parent)}
    rnd = random.Random(0)
    heard: dict[bytes, set[int]] = {b"E": set(), b"R": set(), b"D": set()}
    for _ in range(5):
        command = [sys.executable, str(CHILD), str(path), "catalog"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(rnd.randrange(1, 100))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        for line in lines:
            if line.endswith(b"\n"):
                kind, number = line.split()
                heard[kind].add(int(number))

    async def body() -> dict[int, CatalogEntry]:
        journal = SqliteJournal(path, archive)
        await journal.open()
        await journal.close()
        return {entry.created_ms: entry for entry in journal.catalog()}

    found = asyncio.run(body())
    assert len(heard[b"E"]) > 50
    assert not heard[b"D"] & found.keys()
    assert {number for number in heard[b"E"] if number % 3} <= found.keys()
    assert all(found[number].retired for number in heard[b"R"] & found.keys())
