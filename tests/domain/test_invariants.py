"""The pure core under a random life: every invariant of `tests.invariants`, looked at after every step.

Two pools, three replicas, sessions with budgets, retries, strict tasks, drains, and a crash that keeps what is durable.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestratord.domain.budget import Budget
from orchestratord.domain.control import Control
from orchestratord.domain.errors import NotFound, Refusal
from orchestratord.domain.hooks import Hooks, Limits, Sized
from orchestratord.domain.operation import Operation
from orchestratord.domain.outcome import Failure
from orchestratord.domain.pool import Lease, PoolSpec, Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.request import Caller, PlacementHints, TaskRequest
from orchestratord.domain.task import Task
from orchestratord.infra.journal.memory import MemoryStore
from orchestratord.wire import sse
from tests.domain.world import HandTicket
from tests.invariants import Counts, Watch, i17_counters, i26_rest

PRIORITIES = st.sampled_from(["interactive", "batch"])
POOLS = ("home", "away")


class Boom(Exception):
    pass


class Life(RuleBasedStateMachine):
    """One disk, and the cores that live on it one after the other."""

    @property
    def wall_ms(self) -> int:
        return 1_800_000_000_000 + int(self.now * 1000)

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.store = MemoryStore()
        self.acked: dict[str, int | None] = {}  # task -> its seal, where one was acknowledged
        self.number = 0
        self.boot()

    def boot(self) -> None:
        self.tickets: list[HandTicket] = []
        self.leases: list[Lease] = []
        self.enqueued = self.started = self.ended_queued = self.ended_running = 0
        hooks = Hooks(
            record=self._record,
            encode=sse.encode,
            tokens=sse.tokens,
            token_form=sse.TOKEN,
            quote=sse.quote,
            abort=lambda lease: None,
            wake=lambda: None,
            admitted=self._admitted,
            ended=self._ended,
            archive=lambda task_id, artifact: None,
        )
        queue = {"home": QueueSpec(3, "drop-lru"), "away": QueueSpec(2, "shed-low-priority", batch_age_s=5.0)}
        specs = [PoolSpec(p, "llamacpp", "mock", p, ("m",), queue=queue[p]) for p in POOLS]
        limits = Limits(turns_max=6, budget=Budget(tokens=80), session_ttl_s=60)
        self.core = Control(specs, limits, hooks)
        tasks = sorted(self.store.tasks.values(), key=lambda task: task.admitted.order)
        self.core.restore_pools(self.store.pools.values(), self.wall_ms)
        self.core.restore(tasks, self.store.deleted.values(), sse.split, self.now, self.wall_ms)
        for pool, replica in (("home", "r0"), ("home", "r1"), ("away", "r0")):
            self.core.add_replica(pool, Replica(replica))
            self.ready(pool, replica, 1 if replica == "r1" else 2)
        self.watch = Watch(self.core)
        self.admit = self.watch.refused_for_nothing(self.core.admit)

    def ready(self, pool: str, replica: str, slots: int) -> None:
        self.core.replica_ready(
            pool,
            self.core.pools[pool].replicas[replica],
            slots=slots,
            ctx=4096,
            workloads=frozenset({"completion"}),
            exact_alone=True,
            engine_version="mock-1",
        )

    # -- hooks -----------------------------------------------------------------------------------------------
    def _record(self, fact: Any) -> HandTicket:
        self.tickets.append(ticket := HandTicket(fact))
        return ticket

    def _admitted(self, task: Task) -> None:
        self.enqueued += 1

    def _ended(self, task: Task, phase: str, reason: object) -> None:
        self.ended_queued += phase == "queued"
        self.ended_running += phase == "running"

    # -- steps -----------------------------------------------------------------------------------------------
    @rule(
        priority=PRIORITIES,
        session=st.sampled_from("abc"),
        tokens=st.integers(1, 12),
        strict=st.booleans(),
        where=st.sampled_from([None, *POOLS]),
        deadline_ms=st.sampled_from([3_000, 3_600_000]),
    )
    def submit(
        self, priority: Any, session: str, tokens: int, strict: bool, where: str | None, deadline_ms: int
    ) -> None:
        self.number += 1
        request = TaskRequest(
            task_id=f"task-{self.number}",
            session_id=session,
            workload="completion",
            model_ref="m",
            engine="llamacpp",
            ctx=64,
            priority=priority,
            max_tokens=tokens,
            deadline_ms=deadline_ms,
            determinism="strict" if strict else "best_effort",
            prompt="hi",
            placement=PlacementHints(mode="pin", pin_pool_id=where) if where else PlacementHints(),
        )
        sized = Sized(request, request.task_id.encode(), 7, 3, None, Caller("cid", "localhost"))
        try:
            task, ticket = self.admit(sized, self.now, self.wall_ms)
        except Refusal:
            return
        assert self.core.known(task.task_id, sized.fingerprint) is task
        ticket.add_done_callback(
            lambda ticket: None if ticket.exception() else self.acked.setdefault(task.task_id, None)
        )

    @rule(count=st.integers(1, 5))
    def commit(self, count: int) -> None:
        for ticket in [t for t in self.tickets if not t.done][:count]:
            self.store.apply(ticket.fact, None)
            ticket.resolve()

    @rule()
    def fail_to_commit(self) -> None:
        """One admission does not reach the disk."""
        ticket = next((t for t in self.tickets if not t.done), None)
        if ticket is not None and type(ticket.fact).__name__ == "Admitted":
            ticket.resolve(Boom())

    @rule()
    def dispatch(self) -> None:
        leases = self.core.dispatch(self.now, self.wall_ms)
        self.started += sum(lease.task.attempts == 1 for lease in leases)
        self.leases += leases

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), count=st.integers(1, 4))
    def output(self, data: Any, count: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.core.output(lease, ["x"] * count, (), count, self.now, self.wall_ms)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["stop", "lost", "quarantine"]))
    def finish(self, data: Any, how: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.leases.remove(lease)
        free = how != "quarantine"
        if how != "stop" and lease.task.state == "starting" and lease.task.attempts < 3:
            self.core.retry(lease, self.now + 1, slot_free=free)
        else:
            failure = None if how == "stop" else Failure("WORKER_RESET", "gone", "llamacpp")
            reason = "stop" if how == "stop" else None
            self.core.finish(lease, self.now, self.wall_ms, failure=failure, finish_reason=reason, slot_free=free)

    @precondition(lambda self: self.core.tasks)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        task = self.core.tasks[data.draw(st.sampled_from(sorted(self.core.tasks)))]
        seal = self.core.cancel(task, "client", self.now, self.wall_ms)
        ticket = self.core.closing.get(task.task_id)
        if ticket is not None and task.committed:
            ticket.add_done_callback(lambda ticket: self.acked.__setitem__(task.task_id, seal))

    @rule(session=st.sampled_from("abc"))
    def delete_session(self, session: str) -> None:
        try:
            self.core.delete_session(session, self.now, self.wall_ms)
        except NotFound:
            return

    @rule(pool=st.sampled_from(POOLS), draining=st.booleans())
    def drain_or_resume(self, pool: str, draining: bool) -> None:
        target = self.core.pools[pool]
        if target.operation is not None and not target.operation.over:
            self.core.conclude(target, "succeeded", self.wall_ms)
        else:
            kind: Any = "drain" if draining else "resume"
            operation = Operation("id", pool, kind, "pending", pool, target.generation, self.wall_ms)
            self.core.begin(operation, draining=draining)

    @rule(pool=st.sampled_from(POOLS))
    def restart_engine(self, pool: str) -> None:
        self.ready(pool, "r0", 2)

    @rule(seconds=st.sampled_from([1.0, 2.0, 6.0, 8.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.expire(self.now, self.wall_ms)

    @rule()
    def crash(self) -> None:
        self.watch.check_settled()
        self.boot()
        for task_id, seal in self.acked.items():  # I7
            task = self.core.tasks[task_id]
            assert seal is None or task.log.terminal_id == seal

    @rule()
    def come_to_rest(self) -> None:
        """I26: with slots that are given back and pools that are open, everything ends."""
        for pool in self.core.pools.values():
            if pool.operation is not None and not pool.operation.over:
                self.core.conclude(pool, "succeeded", self.wall_ms)
            self.core.hold(pool, draining=False)
        for _ in range(60):
            self.commit(1000)
            for lease in [*self.leases]:
                self.leases.remove(lease)
                self.core.finish(lease, self.now, self.wall_ms, finish_reason="stop")
            for pool in self.core.pools.values():
                for lease in pool.leases:
                    self.core.release(lease)
            self.dispatch()
            self.look()
            self.now += 0.5
        assert list(i26_rest(self.core)) == []

    @invariant()
    def look(self) -> None:
        self.watch.look()
        counts = Counts(self.enqueued, self.started, self.ended_queued, self.ended_running)
        undecided = any(not task.committed for task in self.core.tasks.values() if task.terminal)
        assert undecided or list(i17_counters(self.core, counts)) == []


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
TestLife = Life.TestCase
