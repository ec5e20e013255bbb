"""The way of facts into the journal; what an outage kept out of it follows as soon as it is writable again.

The core goes on deciding while the journal is down: tasks end, cancels seal. Without the facts of that time a crash
after the outage would bring ended tasks back to life. They are appended again, in their order and before anything
new, so nothing is acknowledged on top of a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from orchestratord.domain.entry import CatalogChanged, CatalogRemoved
from orchestratord.domain.facts import Admitted, Fact, Finished, Frames, TranscriptSource
from orchestratord.domain.operation import PoolChanged
from orchestratord.ports import Clock, Journal, Ticket, Timer

TRANSCRIPT_BYTES = 16 << 20  # of tasks that ended in an outage; beyond it only their ends are kept
LOOK_S = 0.25

# Of no use later: what was withdrawn with its failure (as are beginnings of operations), and what has a gap now.
_LOST = frozenset({Admitted, CatalogChanged, CatalogRemoved, Frames})


class Recorder:
    """`late(task_id, transcript)` is called when the end of a task has become durable after an outage."""

    def __init__(self, journal: Journal, clock: Clock, late: Callable[[str, Any], object]) -> None:
        self._journal = journal
        self._clock = clock
        self._late = late
        self._owed: deque[Fact] = deque()
        self._bytes = 0  # of the transcripts among them
        self._look: Timer | None = None

    @property
    def owed(self) -> int:
        """Facts that have to be journaled again."""
        return len(self._owed)

    def append(self, fact: Fact) -> Ticket:
        """As `Journal.append`."""
        if self._owed:
            self._append_owed()
        return self._append(fact, again=False)

    def _append(self, fact: Fact, *, again: bool) -> Ticket:
        ticket = self._journal.append(fact)
        if type(fact) in _LOST or (isinstance(fact, PoolChanged) and not fact.operation.over):
            return ticket
        if ticket.done():  # refused: what comes after it must find it among what is owed
            self._settled(fact, ticket, again=again)
        else:
            ticket.add_done_callback(partial(self._settled, fact, again=again))
        return ticket

    def _append_owed(self) -> None:
        """Everything that is owed, in order, unless the journal is still down."""
        if not self._journal.healthy:
            return
        owed, self._owed, self._bytes = self._owed, deque(), 0
        for fact in owed:
            self._append(fact, again=True)

    def _settled(self, fact: Fact, ticket: Ticket, *, again: bool) -> None:
        if ticket.exception() is not None:
            self._owe(fact)
        elif again and isinstance(fact, Finished):
            self._late(fact.task_id, ticket.result())

    def _owe(self, fact: Fact) -> None:
        source = fact.transcript if isinstance(fact, Finished) else None
        if isinstance(fact, Finished) and isinstance(source, TranscriptSource):
            if self._bytes + len(source.frames) > TRANSCRIPT_BYTES:
                fact = replace(fact, transcript=None)
            else:
                self._bytes += len(source.frames)
        self._owed.append(fact)
        if self._look is None:
            self._look = self._clock.call_at(self._clock.now() + LOOK_S, self._try)

    def _try(self) -> None:
        self._look = None
        self._append_owed()
        if self._owed:
            self._look = self._clock.call_at(self._clock.now() + LOOK_S, self._try)

    def stop(self) -> None:
        if self._look is not None:
            self._look.cancel()
        self._append_owed()
