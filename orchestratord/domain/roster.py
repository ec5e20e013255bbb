"""The roster: every task the daemon knows, in admission order, with what falls due."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from orchestratord.domain.task import Task

SPARE = 1024  # deadlines that may be kept beyond two for each task


class Roster(dict[str, Task]):
    """Tasks by id. Knows which deadline comes next and which finished task is oldest."""

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: list[tuple[float, int, str]] = []
        self._finished: deque[Task] = deque()
        self._content: list[Task] = []  # finished tasks that still hold what they were asked
        self._logs: OrderedDict[str, Task] = OrderedDict()  # finished tasks whose frames are in memory, oldest first
        self.log_bytes = 0  # of those
        self.owed: set[str] = set()  # finished tasks whose transcripts have not reached the store
        self.lingering: dict[str, str] = {}  # tasks that are gone from here and not from the journal -> their sessions

    def enlist(self, task: Task) -> None:
        self[task.task_id] = task
        self.lingering.pop(task.task_id, None)  # the journal replaces it
        if not task.terminal:
            heappush(self._deadlines, (task.deadline, task.admitted.order, task.task_id))
            if len(self._deadlines) > 2 * len(self) + SPARE:  # tasks that are over, and of no more interest
                self._deadlines = [(t.deadline, t.admitted.order, t.task_id) for t in self.values() if not t.terminal]
                heapify(self._deadlines)

    def retire(self, task: Task) -> None:
        """The task has ended; retention counts from here."""
        self._finished.append(task)
        self._content.append(task)

    def sort_finished(self) -> None:
        """Oldest end first again: a restart brings tasks in the order of their admission."""
        self._finished = deque(sorted(self._finished, key=lambda task: task.ended or 0.0))

    def drop_content(self) -> None:
        """Nobody needs the input of a finished task any more, and ten thousand of them would fill the memory."""
        for task in self._content:
            task.drop_content()
        self._content.clear()

    def keep_log(self, task: Task) -> None:
        """The frames of a finished task are in memory, and safe in the journal."""
        if self.get(task.task_id) is task and self._logs.get(task.task_id) is not task:
            self._logs[task.task_id] = task
            self.log_bytes += task.log.size

    def oldest_log(self) -> Task | None:
        """Take out the finished task whose frames should go first; one that somebody reads waits its turn again."""
        for _ in range(len(self._logs)):
            task_id, task = self._logs.popitem(last=False)
            if task.log.watchers:
                self._logs[task_id] = task
                continue
            self.log_bytes -= task.log.size
            return task
        return None

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest deadline of an open task."""
        while self._deadlines:
            deadline, order, task_id = self._deadlines[0]
            task = self.get(task_id)
            if task is not None and task.admitted.order == order and not task.terminal:  # an id may be used again
                return deadline
            heappop(self._deadlines)
        return None

    def overdue(self, now: float) -> Iterator[Task]:
        """Open tasks whose deadline has passed, earliest first; the caller ends each before asking for the next."""
        while (due := self.next_deadline()) is not None and due <= now:
            yield self[heappop(self._deadlines)[2]]

    def discard_stale(self, before: float, keep: int) -> Iterator[Task]:
        """Remove finished tasks that ended by `before`, and the oldest beyond `keep`; gives them.

        The journal's copy of a transcript goes with its task: one that is owed stays as long as there are not too many.
        """
        spared: list[Task] = []
        while self._finished:
            task = self._finished[0]
            assert task.ended is not None
            crowded = len(spared) + len(self._finished) > keep
            if task.ended > before and not crowded:
                break
            self._finished.popleft()
            if task.task_id in self.owed and not crowded:
                spared.append(task)
                continue
            self.owed.discard(task.task_id)
            if self.get(task.task_id) is task:
                del self[task.task_id]
                if self._logs.pop(task.task_id, None) is not None:
                    self.log_bytes -= task.log.size
                yield task
        self._finished.extendleft(reversed(spared))
