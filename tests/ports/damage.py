"""Journals whose bytes change behind their back: that is found out, or is of no consequence."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from orchestratord.domain.entry import CatalogChanged
from orchestratord.domain.facts import Frames, SessionDeleted
from orchestratord.domain.operation import Model, Operation, PoolChanged
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import JournalUnavailable
from tests.ports.journal_samples import admitted, archive, finished, started, within
from tests.ports.test_catalog_store import FULL

TASKS = 12
POOL_CHANGED = PoolChanged(
    "home",
    "a",
    True,
    2,
    Model("b", "/models/b", "sha256:0"),
    Operation("op", "home", "reload", "rolled_back", "a", 2, 5, "b", None, 8, None),
)


async def fill(path: Path) -> None:
    """Some of everything there is: waiting, running and finished tasks, transcripts, sessions, pools, entries."""
    journal = SqliteJournal(path, archive)
    await journal.open()
    for order in range(1, TASKS + 1):
        task_id = f"task-{order}"
        facts: list[Any] = [admitted(order, prompt=f"prompt {order} " * 40)]
        if order % 3:
            facts += [started(task_id), Frames(task_id, b"id: 2\nevent: token\ndata: {}\n\n" * 30)]
        if order % 3 == 2:
            facts.append(finished(task_id, b"frames of a transcript" * 20))
        for fact in facts:
            await within(journal.append(fact))
    for fact in (SessionDeleted("session-9", 3), POOL_CHANGED, CatalogChanged(FULL)):
        await within(journal.append(fact))
    await journal.close()


async def read(path: Path) -> Any:
    """Everything a daemon would take from it. Raises JournalUnavailable."""
    journal = SqliteJournal(path, archive)
    try:
        tasks = await journal.open()
        logs = [await within(journal.log(task.admitted.task_id)) for task in tasks]
        outbox, deleted = journal.transcripts(), journal.deleted_sessions()
        return tasks, logs, outbox, deleted, journal.changed_pools(), journal.catalog()
    finally:
        await journal.close()


def let_go(error: BaseException) -> None:
    """Forget what an error's frames hold: the cursor that holds the file's lock is among it."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__


def flip(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def overwrite(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(min(draw.randint(1, 64), len(data) - at)) + data[at + 64 :]


def cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(1, len(data))]  # of an empty file nobody knows that it was a journal


def trials(folder: Path, count: int, seed: int = 9) -> Counter[str]:
    """Damage one journal `count` times, anew each time, and open it: how often it was refused, or read as it was."""
    draw, path = Random(seed), folder / "j.db"
    asyncio.run(fill(path))
    whole = path.read_bytes()
    expected = asyncio.run(read(path))
    whole = path.read_bytes()
    found: Counter[str] = Counter()
    for _ in range(count):
        for side in ("-wal", "-shm"):
            Path(f"{path}{side}").unlink(missing_ok=True)
        path.write_bytes(draw.choice((flip, flip, flip, overwrite, cut))(whole, draw))
        try:
            seen = asyncio.run(read(path))
        except JournalUnavailable as error:
            found["refused"] += 1
            let_go(error)
            continue
        found["unharmed" if seen == expected else "WRONG"] += 1
    return found
