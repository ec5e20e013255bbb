"""A process that writes a journal until it is killed, dies or meets a full disk; it prints what was acknowledged.

Usage: journal_child.py PATH SCENARIO
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

from orchestratord.domain.entry import CatalogChanged, CatalogEntry, CatalogRemoved
from orchestratord.domain.facts import Fact
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import JournalUnavailable, Ticket
from tests.ports.journal_samples import admitted, archive, eventually, finished, within

dying: str | None = None


def fault(point: str) -> None:
    if point == dying:
        os._exit(9)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def append(journal: SqliteJournal, fact: Fact, text: str) -> Ticket:
    """Append, and print `text` the moment the ticket succeeds."""
    ticket = journal.append(fact)
    ticket.add_done_callback(lambda done: None if done.exception() else say(text))
    return ticket


async def run(journal: SqliteJournal, number: int) -> None:
    """Admit for ever, in crowds of changing size, and finish two of three."""
    while True:
        crowd = range(number, number + 1 + number % 7)
        tickets = [append(journal, admitted(one), f"A {one}") for one in crowd]
        tickets += [append(journal, finished(f"task-{one}", b"f"), f"F {one}") for one in crowd if one % 3]
        for ticket in tickets:
            await within(ticket)
        number = crowd.stop


async def keep_catalog(journal: SqliteJournal, number: int) -> None:
    """Enter models for ever, change each once, and remove every third."""
    while True:
        entry = CatalogEntry(f"m-{number}", f"file:{number}", number)
        tickets = [append(journal, CatalogChanged(entry), f"E {number}")]
        tickets.append(append(journal, CatalogChanged(replace(entry, state="Retired")), f"R {number}"))
        if number % 3 == 0:
            tickets.append(append(journal, CatalogRemoved(entry.id), f"D {number}"))
        for ticket in tickets:
            await within(ticket)
        number += 1


async def die(journal: SqliteJournal, point: str) -> None:
    global dying
    await within(append(journal, admitted(1), "A 1"))
    dying = point
    await append(journal, admitted(2), "A 2")


async def finish_and_die(journal: SqliteJournal) -> None:
    await within(journal.append(admitted(1, prompt="SECRET")))
    await within(journal.append(finished("task-1")))
    os._exit(9)


async def full_disk(journal: SqliteJournal) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    number = 0
    try:
        while True:
            number += 1
            await within(append(journal, admitted(number, prompt="x" * 50_000), f"A {number}"))
    except JournalUnavailable:
        assert not journal.healthy
        say("full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await eventually(lambda: journal.healthy)
    say("healthy")
    await within(append(journal, admitted(1000), "A 1000"))
    await journal.close()


async def main(path: Path, scenario: str) -> None:
    journal = SqliteJournal(path, archive, fault=fault)
    tasks = await journal.open()
    match scenario:
        case "run":
            await run(journal, 1 + max((task.admitted.order for task in tasks), default=0))
        case "catalog":
            await keep_catalog(journal, 1 + max((entry.created_ms for entry in journal.catalog()), default=0))
        case "die_before_commit" | "die_after_commit":
            await die(journal, scenario.removeprefix("die_"))
        case "finish_and_die":
            await finish_and_die(journal)
        case "full_disk":
            await full_disk(journal)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
