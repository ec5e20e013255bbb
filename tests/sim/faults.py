"""What breaks in a simulation: the journal between the daemon and its memory, and the engines' scripts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from random import Random
from typing import Any

from orchestratord.domain.facts import Archived, Fact, Finished, Forgotten, Frames
from orchestratord.infra.engines.mock import MockScript
from orchestratord.infra.journal.memory import MemoryJournal, MemoryStore
from orchestratord.infra.journal.tickets import Ticket
from orchestratord.ports import Clock


class FaultyJournal(MemoryJournal):
    """Commits late (`delay` draws the seconds), refuses while `broken`, and forgets what was on its way in a crash."""

    def __init__(
        self, archive: Callable[..., Any], store: MemoryStore, clock: Clock, delay: Callable[[], float]
    ) -> None:
        super().__init__(archive, store=store)
        self._clock = clock
        self._delay = delay
        self.dead = False
        self.lost: set[str] = set()  # tasks of which the store does not know the end, or the beginning
        self.gapped: set[str] = set()  # tasks of whose frames some are left out of the store, as an outage does
        self.note: Callable[..., None] = lambda *what: None

    def append(self, fact: Fact) -> Ticket:
        if self.dead:
            return Ticket(asyncio.get_running_loop())
        self.note(type(fact).__name__, getattr(fact, "task_id", None))
        ticket = super().append(fact)
        if isinstance(fact, Frames):
            ticket.add_done_callback(lambda ticket: self._framed(fact.task_id, ticket))
        elif not isinstance(fact, Archived | Forgotten):
            ticket.add_done_callback(lambda ticket: self._settled(fact, ticket))
        return ticket

    def _framed(self, task_id: str, ticket: Ticket) -> None:
        if ticket.exception() is not None:
            self.gapped.add(task_id)

    def _settled(self, fact: Fact, ticket: Ticket) -> None:
        task_id = getattr(fact, "task_id", None)
        if task_id is None:
            return
        if ticket.exception() is not None:
            self.lost.add(task_id)
        elif isinstance(fact, Finished):
            self.lost.discard(task_id)

    def _flush(self) -> None:
        delay = self._delay()
        if delay and not self.dead:
            self._clock.call_at(self._clock.now() + delay, self._commit)
        else:
            self._commit()

    def _commit(self) -> None:
        if not self.dead:
            super()._flush()


def engine_script(draw: Random) -> MockScript:
    """One fault of an engine, for one to three jobs."""
    after = draw.randrange(6)
    fault: dict[str, Any] = draw.choice(
        [
            {"refuse": "no"},
            {"full": True},
            {"die_after": after},
            {"garbage_after": after},
            {"error_after": after},
            {"hang_after": after},
            {"endless": True},
            {"ignore_abort": True},
            {"ignore_abort": True, "hang_after": after},
        ]
    )
    return MockScript(jobs=draw.randint(1, 3), **fault)


BAD_MODELS = (
    MockScript(jobs=math.inf, refuse="no"),
    MockScript(jobs=math.inf, die_after=1),
    MockScript(jobs=math.inf, hang_after=1),
    MockScript(jobs=math.inf, ignore_abort=True, hang_after=3),
)
