"""What a journal that cannot keep up still takes in. Used on the event loop only."""

from __future__ import annotations

from typing import Literal

from orchestratord.domain.facts import Admitted, Fact, Finished, Forgotten, Frames

BACKLOG_LIMIT = 4 << 20


class Intake:
    """Counts the backlog and keeps the stored frames of every task free of gaps.

    Beyond the limit new tasks are refused and token frames are left out; every other fact is always taken,
    since what they say has been decided already.
    """

    def __init__(self, limit: int = BACKLOG_LIMIT) -> None:
        self._limit = limit
        self._gapped: set[str] = set()  # tasks that lost a batch of frames: later ones would not connect
        self.backlog = 0

    def judge(self, fact: Fact) -> Literal["take", "skip", "refuse"]:
        full = self.backlog >= self._limit
        if not full and not self._gapped:
            return "take"
        if isinstance(fact, Frames):
            if full:
                self._gapped.add(fact.task_id)
            return "skip" if fact.task_id in self._gapped else "take"
        if isinstance(fact, Finished | Forgotten):
            self._gapped.discard(fact.task_id)
        return "refuse" if full and isinstance(fact, Admitted) else "take"

    def lost(self, fact: Fact) -> None:
        """The fact did not reach the store."""
        if isinstance(fact, Frames):
            self._gapped.add(fact.task_id)
        elif isinstance(fact, Finished | Forgotten):
            self._gapped.discard(fact.task_id)
