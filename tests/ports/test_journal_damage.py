"""Damage to the journal's file is found out: never is anything served that was not written."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orchestratord.infra.journal.seal import Damaged, seal, unseal
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import JournalUnavailable
from tests.ports.damage import TASKS, fill, let_go, read, trials
from tests.ports.journal_samples import admitted, archive, finished, within
from tests.ports.old_stores import take_back


def test_random_damage_is_refused_or_of_no_consequence(tmp_path: Path) -> None:
    """E9: `python -m tests.reliability E9 --full` does it a thousand times."""
    found = trials(tmp_path, 25)
    assert found["WRONG"] == 0, found
    assert found["refused"] > 5, found


def test_a_changed_value_is_found_though_sqlite_sees_nothing_wrong(tmp_path: Path) -> None:
    """E9: a prompt with one letter changed, on a page that is otherwise whole."""
    path = tmp_path / "j.db"
    asyncio.run(fill(path))
    data = path.read_bytes()
    assert b"prompt 3 " in data
    path.write_bytes(data.replace(b"prompt 3 ", b"prompt 8 ", 1))
    with pytest.raises(JournalUnavailable, match=r"damaged .* Put back a copy, or move the file away"):
        asyncio.run(read(path))


@pytest.mark.parametrize("name", [b"task-3", b"task-5"], ids=["waiting", "finished"])
def test_a_name_changed_anywhere_is_found_at_the_start(tmp_path: Path, name: bytes) -> None:
    """E9: in a row, in what it holds, and in an index, where later facts about the task would be lost."""
    path = tmp_path / "j.db"
    asyncio.run(fill(path))
    whole = path.read_bytes()
    places = [at for at in range(len(whole)) if whole.startswith(name, at)]
    assert len(places) >= 3, "row, index, admission"
    for at in places:
        path.write_bytes(whole[:at] + b"task-x" + whole[at + 6 :])
        with pytest.raises(JournalUnavailable, match="cannot open") as caught:
            asyncio.run(read(path))
        let_go(caught.value)


def test_a_row_under_another_name_is_found(tmp_path: Path) -> None:
    """E9: row and index agree with each other, and not with what was admitted."""
    path = tmp_path / "j.db"
    asyncio.run(fill(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tasks SET task_id = 'task-x' WHERE task_id = 'task-3'")
        connection.commit()
    with pytest.raises(JournalUnavailable, match="another's name"):
        asyncio.run(read(path))


def test_a_log_that_is_damaged_while_the_daemon_runs_costs_nobody_else_anything(tmp_path: Path) -> None:
    """E9: its reader gets a failure and never the wrong bytes; the journal goes on."""

    async def body() -> None:
        path = tmp_path / "j.db"
        journal = SqliteJournal(path, archive)
        await journal.open()
        for order in (1, 2):
            await within(journal.append(admitted(order)))
            await within(journal.append(finished(f"task-{order}")))
        broken = "UPDATE tasks SET finished = substr(finished, 2) WHERE task_id = 'task-1'"
        ask = journal._database.log
        once = iter([lambda: journal._database._run(broken)])
        journal._database.log = lambda task_id: (next(once, lambda: None)(), ask(task_id))[1]  # type: ignore[method-assign]
        with pytest.raises(JournalUnavailable, match="damaged"):
            await within(journal.log("task-1"))
        assert journal.healthy
        assert await within(journal.log("task-2")) is not None
        await within(journal.append(admitted(3)))
        await journal.close()

    asyncio.run(body())


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_without_seals_is_sealed_and_keeps_everything(tmp_path: Path, version: int) -> None:
    """E12: what an older daemon left is read as it was, and once more."""
    path = tmp_path / "j.db"

    async def body() -> None:
        await fill(path)
        tasks, logs, outbox, deleted, pools, catalog = await read(path)
        take_back(path, version)
        kept = tasks, logs, outbox, deleted, pools if version >= 2 else [], catalog if version >= 3 else []
        assert await read(path) == kept
        assert await read(path) == kept
        assert len(tasks) == TASKS

    asyncio.run(body())


@pytest.mark.parametrize("place", ["", "a", 7])
def test_a_seal_holds_only_what_it_was_made_for(place: str | int) -> None:
    sealed = seal(b"data", place)
    assert unseal(sealed, place) == b"data"
    for other, elsewhere in ((sealed, "b"), (sealed[:-1] + b"b", place), (sealed[:-1], place), (b"", place)):
        with pytest.raises(Damaged):
            unseal(other, elsewhere)
