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
from tests.ports.damage import fill, let_go, read, trials
from tests.ports.journal_samples import admitted, archive, finished, within


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
    """E9: in every fact that tells of it."""
    path = tmp_path / "j.db"
    asyncio.run(fill(path))
    whole = path.read_bytes()
    places = [at for at in range(len(whole)) if whole.startswith(name, at)]
    assert len(places) >= (1 if name == b"task-3" else 3), "admission; beginning, end"
    for at in places:
        path.write_bytes(whole[:at] + b"task-x" + whole[at + 6 :])
        with pytest.raises(JournalUnavailable, match="cannot open") as caught:
            asyncio.run(read(path))
        let_go(caught.value)


BEHIND_ITS_BACK = [
    ("UPDATE facts SET ord = 99 WHERE ord = 3", "what a row holds"),
    ("UPDATE facts SET kind = 2 WHERE ord = 4 AND kind = 1", "what a row holds"),
    ("UPDATE facts SET body = (SELECT body FROM facts WHERE ord = 4 AND kind = 0) WHERE ord = 3", "what a row holds"),
    ("UPDATE facts SET id = 999 WHERE ord = 3", "what a row holds"),
    ("DELETE FROM facts WHERE ord = 4 AND kind = 0", "about no task"),
    ("UPDATE contents SET data = zeroblob(1000) WHERE slot = 1", "without its content"),
    ("UPDATE contents SET data = (SELECT data FROM contents WHERE slot = 2) WHERE slot = 1", "what a row holds"),
    ("DELETE FROM contents WHERE slot = 1", "without its content"),
]


@pytest.mark.parametrize(("change", "reason"), BEHIND_ITS_BACK)
def test_rows_that_were_moved_or_lost_are_found(tmp_path: Path, change: str, reason: str) -> None:
    """E9: each row is whole for SQLite, and does not lie where it was written."""
    path = tmp_path / "j.db"
    asyncio.run(fill(path))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(change).rowcount == 1
        connection.commit()
    with pytest.raises(JournalUnavailable, match=reason):
        asyncio.run(read(path))


@pytest.mark.parametrize(
    "broken", ["UPDATE facts SET body = substr(body, 2)", "UPDATE facts SET ord = 'what'", "DELETE FROM facts"]
)
def test_a_log_that_is_damaged_while_the_daemon_runs_costs_nobody_else_anything(tmp_path: Path, broken: str) -> None:
    """E9: its reader gets a failure and never the wrong bytes; the journal goes on."""

    async def body() -> None:
        path = tmp_path / "j.db"
        journal = SqliteJournal(path, archive)
        await journal.open()
        for order in (1, 2):
            await within(journal.append(admitted(order)))
            await within(journal.append(finished(f"task-{order}")))
        ask = journal._database.log
        once = iter([lambda: journal._database._run(f"{broken} WHERE ord = 1 AND kind = 3")])
        journal._database.log = lambda task_id: (next(once, lambda: None)(), ask(task_id))[1]  # type: ignore[method-assign]
        with pytest.raises(JournalUnavailable, match="damaged"):
            await within(journal.log("task-1"))
        assert journal.healthy
        assert await within(journal.log("task-2")) is not None
        await within(journal.append(admitted(3)))
        await journal.close()

    asyncio.run(body())


@pytest.mark.parametrize("place", ["", "a", 7])
def test_a_seal_holds_only_what_it_was_made_for(place: str | int) -> None:
    sealed = seal(b"data", place)
    assert unseal(sealed, place) == b"data"
    for other, elsewhere in ((sealed, "b"), (sealed[:-1] + b"b", place), (sealed[:-1], place), (b"", place)):
        with pytest.raises(Damaged):
            unseal(other, elsewhere)
