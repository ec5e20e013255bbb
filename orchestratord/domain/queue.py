"""The bounded queue of one pool: two priorities, and what happens when there is no room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Literal

from orchestratord.domain.request import PRIORITIES, Priority
from orchestratord.domain.task import Task

FullPolicy = Literal["reject", "drop-lru", "shed-low-priority"]
NEAR = 16  # tasks at the front that forecasts look at one by one
SHED_FROM = 0.8  # share of the seats from which `shed-low-priority` refuses batch work


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """Seats over both priorities, those that batch may take of them, and the ageing bound for batch (0: none)."""

    capacity: int = 64
    policy: FullPolicy = "reject"
    batch_capacity: int | None = None
    batch_age_s: float = 0.0


class TaskQueue:
    """FIFO within a priority, interactive first; every change O(1).

    With an ageing bound a batch task that has waited that long goes before everything else: it starts at the
    latest with the first slot that comes free afterwards, behind older ones that have aged too.
    """

    __slots__ = ("_again", "_lanes", "_marked", "_promised", "changes", "spec")

    def __init__(self, spec: QueueSpec) -> None:
        self.spec = spec
        self._lanes: dict[Priority, OrderedDict[str, Task]] = {p: OrderedDict() for p in PRIORITIES}
        self._again: OrderedDict[str, Task] = OrderedDict()  # started once, waiting for another lease; no seat
        self._promised: dict[str, Task] = {}  # newcomer that is not durable yet -> victim whose seat it will have
        self._marked: set[str] = set()  # these victims
        self.changes = 0  # to the first `NEAR` tasks of the order; ageing is none

    def __len__(self) -> int:
        return len(self._lanes["interactive"]) + len(self._lanes["batch"])

    def __iter__(self) -> Iterator[Task]:
        """In dispatch order (ageing left aside)."""
        for lane in self._lanes.values():
            yield from lane.values()

    @property
    def capacity(self) -> int:
        return self.spec.capacity

    @property
    def retrying(self) -> int:
        return len(self._again)

    @property
    def retries(self) -> list[Task]:
        """Tasks between two leases, in order."""
        return list(self._again.values())

    @property
    def waiting_since(self) -> float | None:
        """When the task that has waited longest was admitted; None if nothing waits that could be dispatched."""
        heads = [next((t for t in lane.values() if t.committed), None) for lane in self._lanes.values()]
        return min((t.created for t in (*heads, *self._again.values()) if t is not None), default=None)

    def depth(self, priority: Priority) -> int:
        return len(self._lanes[priority])

    def push(self, task: Task) -> None:
        lane = self._lanes[task.request.priority]
        if len(lane) < NEAR:
            self.changes += 1
        lane[task.task_id] = task

    def again(self, task: Task) -> None:
        """A task whose lease came to nothing: it goes before all others once its `not_before` has passed."""
        self.changes += 1
        self._again[task.task_id] = task

    def retry_due(self, now: float) -> float | None:
        """When the next pause of a task that is tried again ends."""
        return min((t.not_before for t in self._again.values() if t.not_before > now), default=None)

    def order(self) -> None:
        """Tasks that came from another pool: each stands where its admission would have put it."""
        for priority, lane in self._lanes.items():
            self.changes += 1
            ordered = sorted(lane.values(), key=lambda task: task.admitted.order)
            self._lanes[priority] = OrderedDict((task.task_id, task) for task in ordered)

    def is_marked(self, task: Task) -> bool:
        return task.task_id in self._marked

    def remove(self, task: Task) -> bool:
        self.changes += 1
        if self._promised:
            self._release(task)
        if self._again.pop(task.task_id, None) is not None:
            return True
        return self._lanes[task.request.priority].pop(task.task_id, None) is not None

    # -- room ----------------------------------------------------------------------------------------------
    @property
    def seats_taken(self) -> int:
        return len(self) - len(self._marked)

    def has_room(self, priority: Priority) -> bool:
        """Whether a newcomer gets a seat without anybody giving one up."""
        return self._would_fit(priority, self.seats_taken, self._batch_seats)

    @property
    def _batch_seats(self) -> int:
        return self.depth("batch") - len(self._marked)

    def _would_fit(self, priority: Priority, seats: int, batch_seats: int) -> bool:
        """With so many seats taken, and so many of them by batch work."""
        spec = self.spec
        if seats >= spec.capacity:
            return False
        if priority == "interactive":
            return True
        if spec.policy == "shed-low-priority" and seats >= SHED_FROM * spec.capacity:
            return False
        return spec.batch_capacity is None or batch_seats < spec.batch_capacity

    def leavers(self, priority: Priority) -> int:
        """How many have to leave, in their order, until a newcomer gets a seat; at least one."""
        seats, batch_seats, count = self.seats_taken, self._batch_seats, 0
        for task in self:
            count += 1
            if task.task_id not in self._marked:
                seats -= 1
                batch_seats -= task.request.priority == "batch"
            if self._would_fit(priority, seats, batch_seats):
                break
        return max(1, count)

    def victim(self) -> Task | None:
        """Who gives up a seat under `drop-lru`: the oldest waiting batch task; interactive work never does.

        Nor does a task that is not durable itself: its own admission may still come to nothing.
        """
        if self.spec.policy != "drop-lru":
            return None
        waiting = self._lanes["batch"].values()
        return next((task for task in waiting if task.committed and task.task_id not in self._marked), None)

    def promise(self, newcomer: Task, victim: Task) -> None:
        """The victim's seat is promised to the newcomer; it waits on until that one is durable."""
        self._promised[newcomer.task_id] = victim
        self._marked.add(victim.task_id)

    def redeem(self, newcomer: Task) -> Task | None:
        """The newcomer is durable: the victim that has to go now, unless one of them is no longer in the queue."""
        victim = self._promised.pop(newcomer.task_id, None)
        if victim is not None:
            self._marked.discard(victim.task_id)
        return victim

    def _release(self, leaving: Task) -> None:
        """Whoever leaves needs nobody's seat, and has none to give."""
        self.redeem(leaving)
        if leaving.task_id in self._marked:
            self._marked.discard(leaving.task_id)
            self._promised = {name: victim for name, victim in self._promised.items() if victim is not leaving}

    # -- order ---------------------------------------------------------------------------------------------
    def head(self, now: float, able: Callable[[Task], bool] = lambda _: True) -> Task | None:
        """The next task to dispatch. One whose admission is not durable yet keeps its place but is passed over, and so
        is one that is not `able`: nothing that is in service could take it."""
        tried = (task for task in self._again.values() if task.not_before <= now)
        waiting = (task for task in chain(self.aged(now), self) if task.committed)
        return next((task for task in chain(tried, waiting) if able(task)), None)

    def aged(self, now: float) -> Iterator[Task]:
        """Batch tasks that have waited so long that they go before everything else that waits for its first lease."""
        if self.spec.batch_age_s:
            for task in self._lanes["batch"].values():
                if now - task.created < self.spec.batch_age_s:
                    return
                yield task

    def ahead_of(self, priority: Priority, task: Task | None = None, now: float | None = None) -> Iterator[Task]:
        """Tasks that would be dispatched before `task`, or before a newcomer of `priority`. Ageing counts at `now`."""
        lanes = [self._lanes[p] for p in PRIORITIES[: PRIORITIES.index(priority) + 1]]
        aged = dict.fromkeys(self.aged(now) if now is not None else ())
        young: Iterable[Task] = chain.from_iterable(map(OrderedDict.values, lanes))
        if aged:
            young = (other for other in young if other not in aged)
        ahead = chain(self._again.values(), aged, young)
        if task is None:
            return ahead
        if task.task_id in self._again:
            return (other for other in ahead if other is not task)
        return takewhile(lambda other: other is not task, ahead)
