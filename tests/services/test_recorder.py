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

CATALOG = "/v1/catalog/models"


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


def test_a_change_of_the_catalog_that_was_refused_does_not_come_afterwards() -> None:
    """ORCH-3060: whoever got a 503 finds nothing changed, after a restart either."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        for name in ("kept", "gone"):
            assert session.post(CATALOG, json={"id": name, "source_url": f"file:{name}.gguf"}).status_code == 201
        before = dict(journal.store.catalog)
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        retired = {"state": "Retired", "deadline_ms": 1000}
        assert session.post(f"{CATALOG}/kept/state", json=retired).status_code == 503
        assert session.delete(f"{CATALOG}/gone").status_code == 503
        assert session.post(CATALOG, json={"id": "new", "source_url": "file:new.gguf"}).status_code == 503
        app.call(journal.mend)
        app.advance(1)
        assert journal.store.catalog == before


def test_a_drain_that_could_not_be_journaled_stands_in_nobody_s_way() -> None:
    """ORCH-3040: a pool that was resumed can be resumed once more, as ever."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        resumed = session.post("/v1/pools/home/resume")
        app.settle()
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        assert session.post("/v1/pools/home/drain", json={"deadline_ms": 1000}).status_code == 503
        app.call(journal.mend)
        app.advance(1)
        again = session.post("/v1/pools/home/resume")
        assert again.status_code == 202
        assert again.json()["operation_id"] == resumed.json()["operation_id"]


def test_a_drain_goes_on_after_a_resume_that_could_not_be_journaled() -> None:
    """ORCH-2102: the resume gave the first one up, so a second one is a drain again, with a deadline that holds."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        task_id = running(app, session)
        first = session.post("/v1/pools/home/drain", json={"deadline_ms": 60_000}).json()
        app.settle()
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        assert session.post("/v1/pools/home/resume").status_code == 503
        app.call(journal.mend)
        app.advance(1)
        second = session.post("/v1/pools/home/drain", json={"deadline_ms": 2000}).json()
        assert second["operation_id"] != first["operation_id"]
        app.advance(3)
        assert state_of(session, task_id) == "failed"


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
