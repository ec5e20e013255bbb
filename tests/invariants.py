"""What must hold at every moment, written once: the simulation and the state machine look with the same eyes.

`Watch.look` is called after every step on one core. The functions yield what is wrong; the name of each begins with
the number of its invariant. What they have to remember between two looks is in the `Watch`. Promises about a whole
run (what readers saw, what cancels said: I9, I10, I11, I12, I13) are judged by `orchestratord.testing.checker`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestratord.domain.budget import Amounts
from orchestratord.domain.control import Control
from orchestratord.domain.errors import Refusal
from orchestratord.domain.eta import Work
from orchestratord.domain.outcome import MOVES, TaskState
from orchestratord.domain.placement import suits
from orchestratord.domain.pool import Lease, Pool, Replica
from orchestratord.domain.task import Task
from orchestratord.wire import sse

ATTEMPTS = 3


class Broken(AssertionError):
    """An invariant does not hold; the message begins with its number."""


@dataclass(slots=True)
class Seen:
    """A task at the last look."""

    task: Task
    state: TaskState
    attempts: int
    begun: bool  # output had been appended
    events: int = 0
    size: int = 0
    tokens: list[str] = field(default_factory=list)
    outcome: tuple[Any, ...] | None = None


class Watch:
    """One core, and what was seen of it.

    `text` gives the tokens an engine has for a task, where that is known; of `gapped` tasks a restart may have lost
    frames in the middle.
    """

    def __init__(
        self,
        core: Control,
        *,
        text: Callable[[Task, int], list[str] | None] | None = None,
        gapped: Collection[str] = (),
    ) -> None:
        self.core = core
        self.text = text
        self.gapped = gapped
        self.looks = 0
        self.seen: dict[str, Seen] = {}
        self.settled: set[str] = set()  # over, with their terminal event visible: nothing of them may change
        self.new_leases: list[Lease] = []
        self._leases: dict[int, Lease] = {}
        self._last_lease = 0
        # Recovery may seat more than the queue holds (those that ran wait again); from there it only goes down.
        self.room = {pool.id: max(pool.queue.capacity, len(pool.queue)) for pool in core.pools.values()}

    def look(self) -> None:
        """Raises Broken."""
        self.looks += 1
        self._find_leases()
        for rule in RULES:
            for what in rule(self):
                raise Broken(f"{rule.__name__}: {what}")
        self._remember()

    def _find_leases(self) -> None:
        now = {lease.id: lease for pool in self.core.pools.values() for lease in pool.leases}
        self.new_leases = [lease for lease_id, lease in now.items() if lease_id not in self._leases]
        for lease in self.new_leases:
            if lease.id <= self._last_lease:
                raise Broken(f"i5_leases: lease {lease.id} came back, or out of order")
        self._last_lease = max(now, default=self._last_lease)
        self._leases = now

    def of(self, task: Task) -> Seen | None:
        """What was seen of it; an id may come back as another task when its first admission came to nothing."""
        seen = self.seen.get(task.task_id)
        return seen if seen is not None and seen.task is task else None

    def meet(self, task: Task) -> Seen:
        """The same, from now on if it is new."""
        if (seen := self.of(task)) is None:
            seen = self.seen[task.task_id] = Seen(task, task.state, task.attempts, False)
            self.settled.discard(task.task_id)
        return seen

    def open_tasks(self) -> Iterator[Task]:
        tasks = self.core.tasks.items()
        return (task for task_id, task in tasks if task_id not in self.settled or self.of(task) is None)

    def _remember(self) -> None:
        for pool in self.core.pools.values():
            self.room[pool.id] = max(pool.queue.capacity, min(self.room[pool.id], pool.queue.seats_taken))
        for task in self.open_tasks():
            seen = self.meet(task)
            seen.state, seen.attempts = task.state, task.attempts
            seen.begun = task.first_token is not None
            seen.events, seen.size = task.log.last_id, task.log.size
            if task.terminal:
                seen.outcome = outcome(task)
                if task.log.finished:
                    self.settled.add(task.task_id)

    def check_settled(self) -> None:
        """That nothing of a finished task has changed since: too much to look at after every step."""
        for task_id in self.settled:
            task = self.core.tasks.get(task_id)
            if task is not None and (outcome(task), task.log.size) != (
                self.seen[task_id].outcome,
                self.seen[task_id].size,
            ):
                raise Broken(f"i6_states: task {task_id} changed after its end")

    def refused_for_nothing(self, admit: Callable[..., Any]) -> Callable[..., Any]:
        """I1: `admit`, and a refusal changes nothing."""

        def guarded(*arguments: Any) -> Any:
            before = self._digest()
            try:
                return admit(*arguments)
            except Refusal:
                if self._digest() != before:
                    raise Broken("i1_bound: a refused admission left something behind") from None
                raise

        return guarded

    def _digest(self) -> Any:
        pools = [(len(p.queue), p.queue.seats_taken, len(p.leases)) for p in self.core.pools.values()]
        return len(self.core.tasks), pools, _held(self.core)


def outcome(task: Task) -> tuple[Any, ...]:
    return task.state, task.finish_reason, task.failure, task.log.terminal_id, task.log.sealed, task.ended_ms


def _held(core: Control) -> dict[str, Amounts]:
    sessions = core.sessions._by_id
    return {key: s.account.held for key, s in sessions.items() if s.account.held != Amounts()}


# -- the rules -----------------------------------------------------------------------------------------------
def i1_bound(watch: Watch) -> Iterator[str]:
    for pool in watch.core.pools.values():
        queue = pool.queue
        if queue.seats_taken > watch.room[pool.id]:
            yield f"{queue.seats_taken} tasks wait in pool {pool.id}, which has {queue.capacity} seats"
        if any(task.terminal or task.pool_id != pool.id for task in (*queue, *queue.retries)):
            yield f"the queue of {pool.id} holds a task that is not its"


def urgency(task: Task, pool: Pool, now: float) -> tuple[int, int]:
    """The order of dispatch: aged batch, interactive, batch; by admission within each."""
    age = pool.spec.queue.batch_age_s
    if task.request.priority == "interactive":
        return 1, task.admitted.order
    return 0 if age and now - task.created >= age else 2, task.admitted.order


def i2_i3_order(watch: Watch) -> Iterator[str]:
    for lease in watch.new_leases:
        task, pool = lease.task, lease.pool
        if task.attempts > 1 or lease.exclusive or task.started is None:
            continue  # tried again: goes first; a strict task has had its replica kept since it was the head
        mine = urgency(task, pool, task.started)
        for other in pool.queue:
            theirs = urgency(other, pool, task.started)
            if other.committed and theirs < mine and any(suits(r, other.request) for r in pool.ready_replicas):
                yield f"{task.task_id} {mine} was dispatched before {other.task_id} {theirs}"


def i4_slots(watch: Watch) -> Iterator[str]:
    for pool in watch.core.pools.values():
        for replica in (*pool.replicas.values(), *pool.shadows):
            slots = sorted(lease.slot for lease in replica.leases.values())
            if len(set(slots)) < len(slots) or (slots and not 0 <= slots[0] <= slots[-1] < replica.slots):
                yield f"{pool.id}/{replica.id} has {replica.slots} slots, leased are {slots}"
            if len(slots) > 1 and any(lease.exclusive for lease in replica.leases.values()):
                yield f"{pool.id}/{replica.id} is shared though leased exclusively"
            if replica.state == "ready" and sorted([*slots, *replica.idle]) != [*range(replica.slots)]:
                yield f"{pool.id}/{replica.id} has {replica.slots} slots, leased are {slots}, idle {[*replica.idle]}"
            yield from _sums(replica)


def _sums(replica: Replica) -> Iterator[str]:
    """What is kept beside the leases, against the leases."""
    leases, units = replica.leases.values(), Work().units
    for kind, asked in (lease.share for lease in leases if lease.share is not None):
        units[kind] += asked
    kept = replica.work.tasks, replica.work.units, replica.kv_due
    if kept != (true := (len(leases), units, sum(lease.tokens for lease in leases))):
        yield f"{replica.id} says (tasks, units, tokens) {kept} of its leases, and they are {true}"


def i5_leases(watch: Watch) -> Iterator[str]:
    held: dict[str, int] = defaultdict(int)
    for pool in watch.core.pools.values():
        for lease in pool.at_work:
            held[lease.task.task_id] += 1
    for task in watch.open_tasks():
        works = task.state in (TaskState.STARTING, TaskState.RUNNING) and not task.retrying
        leases = held.pop(task.task_id, 0)
        if leases > 1 or (works and leases != 1) or (task.waits and leases):
            yield f"task {task.task_id} is {task.state} and has {leases} leases"
        waiting = any(task.task_id in lane for lane in watch.core.pools[task.pool_id].queue._lanes.values())
        if waiting is not (task.state is TaskState.QUEUED):
            yield f"task {task.task_id} is {task.state}, and {'is' if waiting else 'not'} in the queue"
        if (task.retrying and not task.terminal) is not (task in watch.core.pools[task.pool_id].queue.retries):
            yield f"task {task.task_id} has no owner between two leases"


def i6_states(watch: Watch) -> Iterator[str]:
    for task in watch.open_tasks():
        seen = watch.of(task)
        log = task.log
        if seen is not None and task.state is not seen.state and not _reachable(seen.state, task.state):
            yield f"task {task.task_id} went from {seen.state} to {task.state}"
        if seen is not None and seen.outcome is not None and outcome(task) != seen.outcome:
            yield f"the end of task {task.task_id} changed from {seen.outcome} to {outcome(task)}"
        if (log.terminal_id is not None) is not task.terminal or (log.sealed is not None) is not task.terminal:
            yield f"task {task.task_id} is {task.state}, its log is sealed at {log.sealed}, ends at {log.terminal_id}"
        if task.task_id not in watch.core.closing and task.terminal and not log.finished:
            yield f"nobody will show the end of task {task.task_id}"


def _reachable(old: TaskState, new: TaskState) -> bool:
    return new in MOVES[old] or any(new in MOVES[middle] for middle in MOVES[old])


def i8_attempts(watch: Watch) -> Iterator[str]:
    for lease in watch.new_leases:
        seen = watch.of(lease.task)
        if lease.task.attempts > ATTEMPTS or (seen is not None and seen.begun):
            yield f"task {lease.task.task_id} got lease {lease.task.attempts}, output seen: {seen and seen.begun}"


def i9_i11_log(watch: Watch) -> Iterator[str]:
    """Ids without gap, one terminal event and it is the last, nothing above a seal; tokens as the engine made them."""
    for task in watch.open_tasks():
        seen = watch.meet(task)
        log = task.log
        if log.size == seen.size or log.evicted:
            continue
        if log.size < seen.size or seen.outcome is not None:
            yield f"the log of {task.task_id} changed below {seen.size} bytes or above its seal"
        expected = seen.events
        for event_id, name, payload in sse.decode(log.raw(seen.size)):
            expected += 1
            over = name in ("end", "error")
            reset = task.failure is not None and task.failure.code == "WORKER_RESET"
            skips = over and (reset or (task.recovered and task.task_id in watch.gapped))
            if event_id != expected and not (skips and (event_id or 0) > expected):
                yield f"event {event_id} of {task.task_id} where {expected} was next ({task.failure})"
            if over is not (event_id == log.terminal_id):
                yield f"{name} {event_id} of {task.task_id}, whose log ends at {log.terminal_id}"
            if name == "token":
                if payload["i"] != len(seen.tokens):
                    yield f"token {payload['i']} of {task.task_id} where {len(seen.tokens)} was next"
                seen.tokens.append(payload["t"])
        known = watch.text if task.request.workload == "completion" and task.request.prompt is not None else None
        if known is not None and known(task, len(seen.tokens)) not in (
            None,
            seen.tokens,
        ):  # I14: whoever reads, how often
            yield f"task {task.task_id} has {seen.tokens}, which its engine never made"
        if len(seen.tokens) > task.request.max_tokens:
            yield f"task {task.task_id} gave {len(seen.tokens)} tokens of {task.request.max_tokens}"


def i15_budgets(watch: Watch) -> Iterator[str]:
    held: dict[str, Amounts] = defaultdict(Amounts)
    live: dict[str, int] = defaultdict(int)
    for task in watch.open_tasks():
        if not task.terminal:
            held[task.session_id] = held[task.session_id].plus(task.admitted.held)
            live[task.session_id] += 1
    for key, session in watch.core.sessions._by_id.items():
        account = session.account
        if (account.held, session.live) != (held.pop(key, Amounts()), live.pop(key, 0)):
            yield f"session {key} holds {account.held} for {session.live} live tasks"
        for name in ("tokens", "time", "cost"):
            limit, taken = getattr(account.budget, name), getattr(account.spent.plus(account.held), name)
            if getattr(account.spent, name) < 0 or (limit is not None and taken > limit):
                yield f"session {key} has taken {taken} {name} of {limit}"
    if held:
        yield f"live tasks of sessions {sorted(held)} that do not exist"


def i20_drain(watch: Watch) -> Iterator[str]:
    for lease in watch.new_leases:
        if lease.pool.draining or lease.replica.state in ("retiring", "dead"):
            yield f"pool {lease.pool.id} drains, and lease {lease.id} began on {lease.replica.id}"


RULES = (
    i1_bound,
    i2_i3_order,
    i4_slots,
    i5_leases,
    i8_attempts,
    i6_states,
    i9_i11_log,
    i15_budgets,
    i20_drain,
)


# -- now and then --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted since the core began; tasks recovered by it count as enqueued again."""

    enqueued: int
    started: int
    ended_queued: int
    ended_running: int


def i17_counters(core: Control, counts: Counts) -> Iterator[str]:
    queued = sum(1 for task in core.tasks.values() if task.committed and task.state is TaskState.QUEUED)
    running = sum(1 for task in core.tasks.values() if task.state in (TaskState.STARTING, TaskState.RUNNING))
    if any(task.terminal and not task.committed for task in core.tasks.values()):
        return  # ended before its admission was decided: counted once that is
    if counts.enqueued != counts.ended_queued + counts.started + queued:
        yield f"{counts}, {queued} are queued"
    if counts.started != counts.ended_running + running:
        yield f"{counts}, {running} are running"


def i26_rest(core: Control) -> Iterator[str]:
    """When nothing is left to do, nothing is left behind."""
    for task in core.tasks.values():
        if not task.terminal or not task.log.finished:
            yield f"task {task.task_id} is {task.state} for ever"
    for pool in core.pools.values():
        if pool.leases or len(pool.queue) or pool.queue.retrying or pool.queue._marked:
            yield f"pool {pool.id} has leases {pool.leases}, {len(pool.queue)} queued, {pool.queue.retrying} to retry"
        if pool.operation is not None and not pool.operation.over:
            yield f"the {pool.operation.kind} of pool {pool.id} is {pool.operation.state} for ever"
    promised = [pool.queue._promised for pool in core.pools.values() if pool.queue._promised]
    if core.closing or promised or core.tasks.next_deadline() is not None:
        yield f"undecided: {core.closing}, {promised}"
    if _held(core):
        yield f"budgets are held: {_held(core)}"
