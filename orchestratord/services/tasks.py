"""Tasks as clients see them: look up, list, cancel."""

from __future__ import annotations

from collections.abc import Iterator

from orchestratord.domain import forecast
from orchestratord.domain.core import Core
from orchestratord.domain.errors import NotFound, StorageUnavailable
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.task import Task
from orchestratord.domain.views import waiting_for
from orchestratord.ports import Clock
from orchestratord.services.durability import durable

Waiting = tuple[int, int | None, str | None]  # queue_position, predicted_start_ms, waiting_for


class Tasks:
    def __init__(self, core: Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock

    def get(self, task_id: str) -> Task:
        """Raises NotFound."""
        task = self._core.tasks.get(task_id)
        if task is None:
            raise NotFound(f"There is no task {task_id}; finished tasks are kept for a limited time.")
        return task

    def waiting(self, task: Task) -> Waiting | None:
        """Where a queued task stands; None once it left the queue."""
        if task.state is not TaskState.QUEUED:
            return None
        pool, now = self._core.pools[task.pool_id], self._clock.now()
        start = forecast.expected_ms(pool, task, now)
        return (
            forecast.position(pool, task.request.priority, task, now),
            int(start) if start is not None else None,
            waiting_for(pool),
        )

    def newest(self, below: int | None, state: str | None, session_id: str | None) -> Iterator[Task]:
        """Newest first, beginning below an admission order."""
        for task in reversed(self._core.tasks.values()):
            if below is not None and task.admitted.order >= below:
                continue
            if (state is None or task.state == state) and (session_id is None or task.session_id == session_id):
                yield task

    async def cancel(self, task_id: str) -> int:
        """Seal the task's log and return its last event id; a task that is over stays as it is.

        Raises NotFound, and StorageUnavailable when the end could not be journaled (the seal holds all the same).
        """
        task = self.get(task_id)
        seal = self._core.cancel(task, "client", self._clock.now(), self._clock.wall_ms())
        ticket = self._core.closing.get(task_id)
        if ticket is not None:
            await durable(ticket)
        elif task.unsaved:
            raise StorageUnavailable("The task is over, and the journal cannot say so yet.", retry_after_ms=1000)
        return seal
