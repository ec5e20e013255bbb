"""What an outage of the journal kept out of it is there when the outage is over."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestratord.domain.facts import Forgotten
from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.services.recorder import Recorder
from orchestratord.testing.clock import ManualClock
from orchestratord.testing.live import LiveApp
from tests.ports.journal_samples import admitted, archive, finished
from tests.services.support import BreakingJournal, records, running, state_of, submit


def test_ends_of_an_outage_reach_the_journal_afterwards() -> None:
    """A cancel of that time was answered with 503; once the disk is back, a restart knows of it all the same."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        waiting = [running(app, session), *(submit(session) for _ in range(3))]
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        assert session.get("/readyz").status_code == 503
        for task_id in waiting:
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 503
            assert state_of(session, task_id) == "canceled"
        app.settle()
        assert app.call(lambda: app.daemon.recorder.owed) == len(waiting)
        assert all(journal.store.tasks[task_id].finished is None for task_id in waiting)
        app.call(journal.mend)
        app.advance(1)
        assert app.call(lambda: app.daemon.recorder.owed) == 0
        for task_id in waiting:
            status = session.get(f"/v1/tasks/{task_id}").json()
            finished = journal.store.tasks[task_id].finished
            assert finished is not None
            assert finished.terminal_id == status["last_event_id"]
            assert session.get(f"/v1/artifacts/{status['transcript_id']}").status_code == 200
            assert session.post(f"/v1/tasks/{task_id}/cancel").status_code == 204


def test_what_is_owed_comes_before_what_is_new() -> None:
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        first = running(app, session)
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        session.post(f"/v1/tasks/{first}/cancel")
        app.settle()
        app.call(journal.mend)
        submit(session)  # time stands still: only the new fact can bring the old one along
        assert journal.store.tasks[first].finished is not None


def test_a_beginning_that_could_not_be_journaled_stays_undone() -> None:
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        assert session.post("/v1/pools/home/drain", json={"deadline_ms": 1000}).status_code == 503
        app.call(journal.mend)
        app.advance(1)
        assert "home" not in journal.store.pools
        assert not any(record["event"] == "operation_started" for record in records(app))


def test_what_is_refused_at_once_is_owed_at_once() -> None:
    """An outage may end before the loop has turned: even then nothing new gets in front."""

    async def body() -> None:
        taken: list[Any] = []

        class Journal(MemoryJournal):
            def append(self, fact: Any) -> Any:
                if self.healthy:
                    taken.append(fact)
                return super().append(fact)

        journal = Journal(archive)
        await journal.open()
        recorder = Recorder(journal, ManualClock(), lambda *_: None)
        await recorder.append(admitted(1))
        journal.broken = "no space left on device"
        recorder.append(finished("task-1"))
        journal.broken = None
        recorder.append(Forgotten("task-1"))
        assert taken == [admitted(1), finished("task-1"), Forgotten("task-1")]
        await journal.close()

    asyncio.run(body())
