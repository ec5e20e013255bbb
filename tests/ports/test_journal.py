"""What every journal does: the same suite for the one in memory and the one in SQLite."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.domain.facts import (
    Admitted,
    Archived,
    Fact,
    Forgotten,
    Frames,
    JournaledTask,
    SessionDeleted,
    TranscriptSource,
)
from orchestratord.domain.operation import Fault, Model, Operation, OperationState, PoolChanged
from orchestratord.infra.journal.memory import MemoryJournal, MemoryStore
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.ports import Artifact, Journal, JournalUnavailable
from tests.ports.journal_samples import admitted, archive, chat, eventually, finished, started, within
from tests.turns import turn_of_loop

Make = Callable[..., Journal]  # each call: another journal on the same store


def makers(directory: Path) -> dict[str, Make]:
    store = MemoryStore()

    def memory(archive: Callable[[TranscriptSource], Artifact] = archive, **options: Any) -> Journal:
        return MemoryJournal(archive, store=store, **options)

    def sqlite(archive: Callable[[TranscriptSource], Artifact] = archive, **options: Any) -> Journal:
        return SqliteJournal(directory / "data" / "journal.db", archive, **options)

    return {"memory": memory, "sqlite": sqlite}


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return makers(tmp_path)[request.param]


async def write(journal: Journal, *facts: Fact) -> list[Any]:
    """Append all at once and wait for all tickets."""
    tickets = [journal.append(fact) for fact in facts]
    return [await within(ticket) for ticket in tickets]


async def store(make: Make, *facts: Fact) -> list[JournaledTask]:
    """Write with one journal and read with the next."""
    journal = make()
    await journal.open()
    await write(journal, *facts)
    await journal.close()
    return await load(make)


async def load(make: Make) -> list[JournaledTask]:
    journal = make()
    tasks = await journal.open()
    await journal.close()
    return tasks


def test_a_new_store_is_empty_and_healthy(make: Make) -> None:
    async def body() -> None:
        journal = make()
        assert await journal.open() == []
        assert (journal.transcripts(), journal.deleted_sessions()) == ([], [])
        assert journal.healthy
        assert journal.backlog == 0
        await journal.close()
        await journal.close()
        assert not journal.healthy

    asyncio.run(body())


def test_every_fact_survives_a_restart_as_it_was(make: Make) -> None:
    first, second = admitted(1, prompt="é\u2028\x00 \U0001f600"), chat(2, "hello", "and\nbye")

    async def body() -> None:
        tasks = await store(
            make, first, second, started("task-1"), Frames("task-1", b"one\xff"), Frames("task-1", b"two")
        )
        assert tasks == [
            JournaledTask(first, started("task-1"), b"one\xfftwo", None, None),
            JournaledTask(second, None, b"", None, None),
        ]

    asyncio.run(body())


def test_tasks_come_back_in_admission_order(make: Make) -> None:
    async def body() -> None:
        tasks = await store(make, admitted(30, "a"), admitted(4, "c"), admitted(11, "b"))
        assert [task.admitted.task_id for task in tasks] == ["c", "b", "a"]

    asyncio.run(body())


def test_tickets_resolve_in_append_order_and_empty_the_backlog(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        order: list[int] = []
        tickets = []
        for number in range(200):
            ticket = journal.append(admitted(number) if number % 2 else finished(f"task-{number - 1}", b"x"))
            ticket.add_done_callback(partial(lambda number, _: order.append(number), number))
            tickets.append(ticket)
            if number % 50 == 0:
                assert journal.backlog > 0
                await within(ticket)
        for ticket in tickets:
            await within(ticket)
        assert order == list(range(200))
        assert journal.backlog == 0
        await journal.close()

    asyncio.run(body())


def test_no_ticket_is_resolved_within_append(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        ticket = journal.append(admitted(1))
        assert not ticket.done()
        assert await within(ticket) is None
        await journal.close()

    asyncio.run(body())


def test_a_finished_task_has_lost_its_content(make: Make) -> None:
    async def body() -> None:
        asked = [admitted(1), chat(2, "secret")]
        tasks = await store(make, *asked, finished("task-1"), finished("task-2"))
        for task, before in zip(tasks, asked, strict=True):
            request = replace(before.request, prompt=None, messages=None, inputs=None)
            assert task.admitted == replace(before, request=request)
            assert task.finished == finished(before.task_id)

    asyncio.run(body())


@pytest.mark.parametrize("journaled", [True, False], ids=["all frames journaled", "some left out"])
def test_a_transcript_that_waits_can_be_had_again(make: Make, journaled: bool) -> None:
    """As it was told by its ticket, at once and after a restart, until it is archived; nobody else has one."""
    first, some = admitted(1), b"some" if journaled else b"so"
    end = finished("task-1", first.started_frame + b"some" + finished("task-1").terminal_frame)

    async def body() -> None:
        journal = make()
        await journal.open()
        facts = first, started("task-1"), Frames("task-1", some), end, admitted(2)
        *_, expected, _ = await write(journal, *facts)
        assert isinstance(expected, Artifact)
        assert await journal.transcript("task-1") == expected
        assert await journal.transcript("task-2") is None
        assert await journal.transcript("nobody") is None
        await journal.close()

        journal = make()
        await journal.open()
        assert await journal.transcript("task-1") == expected
        await write(journal, Archived(("task-1",)))
        assert await journal.transcript("task-1") is None
        await journal.close()

    asyncio.run(body())


def test_a_transcript_waits_in_the_outbox_until_it_is_archived(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        end = finished("task-1", b"all the frames")
        assert end.transcript is not None
        expected = archive(end.transcript)
        assert await write(journal, admitted(1), end) == [None, expected]
        await journal.close()

        journal = make()
        (task,) = await journal.open()
        assert journal.transcripts() == [("task-1", expected)]
        assert task.finished == finished("task-1")
        assert task.transcript_id == expected.id
        assert journal.transcripts() == [], "they have been handed over"
        await write(journal, Archived(("task-1", "no")))
        await journal.close()

        journal = make()
        (task,) = await journal.open()
        assert journal.transcripts() == []
        assert task.transcript_id == expected.id
        await journal.close()

    asyncio.run(body())


def test_an_outcome_is_stored_even_if_its_transcript_cannot_be_made(make: Make) -> None:
    def broken(_: TranscriptSource) -> Artifact:
        raise KeyError("events")

    async def body() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        journal = make(archive=broken)
        await journal.open()
        assert await write(journal, admitted(1), finished("task-1", b"frames")) == [None, None]
        assert journal.healthy
        await journal.close()
        assert isinstance(reports[0]["exception"], KeyError)
        (task,) = await load(make)
        assert task.finished == finished("task-1")
        assert task.transcript_id is None

    asyncio.run(body())


def test_a_forgotten_task_is_gone_and_its_id_is_free(make: Make) -> None:
    async def body() -> None:
        life: list[Fact] = [admitted(1), started("task-1"), Frames("task-1", b"x"), finished("task-1", b"x")]
        assert await store(make, *life, Forgotten("task-1")) == []
        again = admitted(2, "task-1", prompt="another")
        assert await store(make, again) == [JournaledTask(again, None, b"", None, None)]

    asyncio.run(body())


def test_facts_about_an_unknown_task_change_nothing(make: Make) -> None:
    async def body() -> None:
        facts: list[Fact] = [
            started("no"),
            Frames("no", b"x"),
            finished("no", b"x"),
            Archived(("no",)),
            Forgotten("no"),
        ]
        assert await store(make, *facts) == []
        assert (await store(make, admitted(1, "no")))[0].frames == b""

    asyncio.run(body())


def test_deleted_sessions_are_known_as_long_as_they_concern_a_task(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        kept, moot = SessionDeleted("a", 3), SessionDeleted("b", 1)
        await write(journal, admitted(2), SessionDeleted("a", 2), moot, kept)
        await journal.close()

        journal = make()
        await journal.open()
        assert journal.deleted_sessions() == [kept]
        await write(journal, Forgotten("task-2"))
        await journal.close()

        journal = make()
        await journal.open()
        assert journal.deleted_sessions() == []
        await journal.close()

    asyncio.run(body())


def test_the_last_word_on_every_pool_is_kept(make: Make) -> None:
    def changed(pool_id: str, state: OperationState) -> PoolChanged:
        error = Fault("POOL_UNAVAILABLE", "it died", 7, ("last", "words"))
        operation = Operation("op", pool_id, "reload", state, "a", 2, 5, "b", None, 8, error)
        return PoolChanged(pool_id, "a", True, 2, Model("b", "/models/b", "sha256:0"), operation)

    async def body() -> None:
        journal = make()
        await journal.open()
        assert journal.changed_pools() == []
        await write(journal, changed("b", "pending"), changed("a", "pending"), changed("b", "rolled_back"))
        await journal.close()

        journal = make()
        await journal.open()
        assert journal.changed_pools() == [changed("a", "pending"), changed("b", "rolled_back")]
        await journal.close()

    asyncio.run(body())


def test_close_makes_everything_durable_and_then_refuses(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        tickets = [journal.append(admitted(number)) for number in range(1, 21)]
        await journal.close()
        assert [await within(ticket) for ticket in tickets] == [None] * 20
        late = journal.append(admitted(99))
        with pytest.raises(JournalUnavailable):
            await within(late)
        assert len(await load(make)) == 20

    asyncio.run(body())


def test_a_waiter_that_is_cancelled_disturbs_nobody(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        tickets = [journal.append(admitted(number)) for number in (1, 2, 3)]
        waiters = [asyncio.ensure_future(ticket) for ticket in (tickets[1], tickets[1])]
        await turn_of_loop()  # both wait now
        waiters[0].cancel()
        assert [await waiters[1], *[await within(ticket) for ticket in tickets]] == [None] * 4
        await journal.close()
        assert len(await load(make)) == 3

    asyncio.run(body())


def test_what_cannot_be_encoded_fails_alone(make: Make) -> None:
    async def body() -> None:
        journal = make()
        await journal.open()
        tickets = [journal.append(fact) for fact in (admitted(1), admitted(2, prompt="\ud800"), admitted(3))]
        with pytest.raises(JournalUnavailable):
            await within(tickets[1])
        assert [await within(tickets[0]), await within(tickets[2])] == [None, None]
        assert journal.healthy
        assert journal.backlog == 0
        await journal.close()
        assert [task.admitted.order for task in await load(make)] == [1, 3]

    asyncio.run(body())


def test_beyond_the_backlog_tasks_are_refused_and_frames_left_out_without_a_gap(make: Make) -> None:
    async def body() -> None:
        journal = make(backlog_limit=1)
        await journal.open()
        for number in (1, 2):
            await write(journal, admitted(number))
        # The backlog falls only when the loop runs, so all of these but the first find it full.
        taken = journal.append(Frames("task-1", b"first "))
        skipped = journal.append(Frames("task-1", b"second "))
        refused = journal.append(admitted(3))
        always = [journal.append(fact) for fact in (started("task-1"), SessionDeleted("a", 9))]
        assert skipped.done()
        assert skipped.exception() is None
        assert isinstance(refused.exception(), JournalUnavailable)
        for ticket in (taken, *always):
            await within(ticket)
        assert journal.healthy
        assert journal.backlog == 0

        await write(journal, Frames("task-1", b"third"))  # would not connect
        await write(journal, Frames("task-2", b"whole"))
        await write(journal, admitted(4))
        await journal.close()
        tasks = {task.admitted.task_id: task for task in await load(make)}
        assert sorted(tasks) == ["task-1", "task-2", "task-4"]
        assert (tasks["task-1"].frames, tasks["task-2"].frames) == (b"first ", b"whole")
        assert tasks["task-1"].started == started("task-1")

    asyncio.run(body())


# -- the two are one -------------------------------------------------------------------------------------------
RESTART = "restart"
IDS = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), IDS, st.text(max_size=5)),
        st.tuples(st.sampled_from(["start", "archive", "forget", "delete"]), IDS, st.just("")),
        st.tuples(st.sampled_from(["frames", "finish"]), IDS, st.sampled_from(["", "x", "yz"])),
        st.just((RESTART, "", "")),
    ),
    max_size=40,
)


def fact_of(step: tuple[str, str, str], order: int) -> Fact:
    match step:
        case ("admit", task_id, text):
            return admitted(order, task_id, prompt=text)
        case ("start", task_id, _):
            return started(task_id)
        case ("frames", task_id, text):
            return Frames(task_id, text.encode())
        case ("finish", task_id, text):
            return finished(task_id, text.encode() or None)
        case ("archive", task_id, _):
            return Archived((task_id, "d"))
        case ("forget", task_id, _):
            return Forgotten(task_id)
        case _:
            return SessionDeleted(step[1], order)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_memory_and_sqlite_load_the_same(steps: list[tuple[str, str, str]]) -> None:
    async def run(make: Make) -> list[Any]:
        seen: list[Any] = []
        journal = make()
        await journal.open()
        tickets = []
        for order, step in enumerate([*steps, (RESTART, "", "")]):
            if step[0] != RESTART:
                tickets.append(journal.append(fact_of(step, order)))
                continue
            await journal.close()
            seen.append([await within(ticket) for ticket in tickets])
            journal, tickets = make(), []
            seen.append([await journal.open(), journal.transcripts(), journal.deleted_sessions()])
        await journal.close()
        return seen

    with tempfile.TemporaryDirectory() as directory:
        both = makers(Path(directory))
        memory, sqlite = asyncio.run(run(both["memory"])), asyncio.run(run(both["sqlite"]))
    assert memory == sqlite
    assert all(isinstance(task.admitted, Admitted) for task in sqlite[-1][0])


def test_who_watches_is_told_of_an_outage_and_of_its_end(make: Make, request: pytest.FixtureRequest) -> None:
    """OD-28: once each, on the loop; neither the start nor the stop of a journal is an outage."""
    disk = OSError(errno.ENOSPC, "No space left on device")

    def full(point: str) -> None:
        if broken and point == "before_commit":
            raise disk

    broken = False
    memory = "memory" in request.node.name

    async def body() -> None:
        nonlocal broken
        journal = make() if memory else make(fault=full)
        told: list[JournalUnavailable | None] = []
        journal.watch(told.append)
        await journal.open()
        await write(journal, admitted(1))
        assert told == []
        broken = True
        if isinstance(journal, MemoryJournal):
            journal.broken = "ENOSPC"
        with pytest.raises(JournalUnavailable):
            await within(journal.append(admitted(2)))
        await eventually(lambda: told)
        with pytest.raises(JournalUnavailable):
            await within(journal.append(admitted(3)))
        assert [why.reason for why in told if why is not None] == ["ENOSPC"]
        broken = False
        if isinstance(journal, MemoryJournal):
            journal.broken = None
        await eventually(lambda: journal.healthy)
        assert told[1:] == [None]
        await journal.close()
        assert len(told) == 2

    asyncio.run(body())
