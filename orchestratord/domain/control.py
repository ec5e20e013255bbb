"""Control: what operators do to pools, as indivisible steps on top of the core.

A step that must not be forgotten records a `PoolChanged`; the ticket gates the answer. What becomes of queued tasks
is decided in `dispatch`, once there is something new to decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from orchestratord.domain.core import Core, unreserve
from orchestratord.domain.errors import InvalidParams, Refusal
from orchestratord.domain.eta import ServiceModel
from orchestratord.domain.facts import JournaledTask, SessionDeleted
from orchestratord.domain.hooks import Hooks, Limits, Ticket
from orchestratord.domain.operation import Fault, Model, Operation, OperationState, PoolChanged
from orchestratord.domain.outcome import Failure
from orchestratord.domain.placement import place
from orchestratord.domain.pool import Lease, Pool, PoolSpec, Replica
from orchestratord.domain.recovery import Split
from orchestratord.domain.task import Task
from orchestratord.domain.trust import TrustPolicy


class Control(Core):
    """The whole aggregate: the core, and the operations on its pools."""

    def __init__(self, pools: list[PoolSpec], limits: Limits, hooks: Hooks, trust: TrustPolicy | None = None) -> None:
        self._unsettled: set[str] = set()  # pools whose queued tasks may have to go elsewhere
        super().__init__(pools, limits, hooks, trust)

    def _catalog_changed(self) -> None:
        self._unsettled.update(self.pools)
        super()._catalog_changed()

    # -- operations --------------------------------------------------------------------------------------
    def begin(self, operation: Operation, *, draining: bool) -> Ticket:
        """An operation is accepted. From now on a draining pool starts nothing; undone if it cannot be journaled."""
        pool = self.pools[operation.pool_id]
        before = pool.operation, pool.draining
        pool.operation, pool.draining = operation, draining
        ticket = self._hooks.record(self._fact(pool))

        def decided(ticket: Ticket) -> None:
            if ticket.exception() is not None and pool.operation is operation:
                pool.operation, pool.draining = before
            else:
                self._unsettled.add(pool.id)
            self._hooks.wake()

        ticket.add_done_callback(decided)
        return ticket

    def advance(self, pool: Pool, state: OperationState) -> Operation:
        """The running operation has come this far. Not journaled: a restart does not go on from here."""
        pool.operation = replace(self._running(pool), state=state)
        return pool.operation

    def conclude(self, pool: Pool, state: OperationState, wall_ms: int, error: Fault | None = None) -> Operation:
        """The running operation is over. `draining` is as it stands."""
        pool.operation = self._running(pool).ended(state, wall_ms, error)
        pool.opens_at = None
        if error is not None:
            pool.last_error = pool.operation.error
        self._hooks.record(self._fact(pool))
        self._hooks.wake()
        return pool.operation

    @staticmethod
    def _running(pool: Pool) -> Operation:
        operation = pool.operation
        assert operation is not None, f"nothing was ever started on pool {pool.id}"
        assert not operation.over, f"the {operation.kind} of pool {pool.id} is over"
        return operation

    def _fact(self, pool: Pool) -> PoolChanged:
        assert pool.operation is not None
        return PoolChanged(pool.id, pool.configured, pool.draining, pool.generation, pool.model, pool.operation)

    def hold(self, pool: Pool, *, draining: bool) -> None:
        """Stop or go on dispatching within a reload. Not journaled: a restart goes on dispatching the old model."""
        pool.draining = draining
        self._unsettled.add(pool.id)
        self._hooks.wake()

    def end_running(
        self, pool: Pool, message: str, now: float, wall_ms: int, only: Collection[Replica] | None = None
    ) -> int:
        """End every running task of the pool (or of these replicas of it) with POOL_UNAVAILABLE, retriable.

        Gives their number. Those that wait for another attempt have begun, too.
        """
        leased = [lease.task for lease in pool.leases if only is None or lease.replica in only]
        tried = pool.queue.retries if only is None else []
        running = dict.fromkeys([task for task in leased if not task.terminal] + tried)
        for task in running:
            failure = Failure("POOL_UNAVAILABLE", message, task.request.engine, retriable=True)
            self.fail(task, failure, now, wall_ms)
        return len(running)

    # -- queued tasks ------------------------------------------------------------------------------------
    def dispatch(self, now: float, wall_ms: int) -> list[Lease]:
        unsettled, self._unsettled = self._unsettled, set()
        for pool_id in sorted(unsettled):
            self._settle(self.pools[pool_id], now, wall_ms)
        return super().dispatch(now, wall_ms)

    def _settle(self, pool: Pool, now: float, wall_ms: int) -> None:
        """Find every queued task a place: here, in another pool in the order of admission, or no more at all."""
        self._settle_tried(pool, now, wall_ms)
        moved: set[str] = set()
        for task in sorted(pool.queue, key=lambda task: task.admitted.order):
            if pool.queue.is_marked(task):
                continue
            try:
                target = self._place_of(task, pool, now)
            except Refusal as refusal:
                if not refusal.is_retriable or not self._may_stay(task, pool):
                    self._give_up(task, pool, refusal, now, wall_ms)
                continue
            there = self.pools[target]
            if target == pool.id:
                continue
            if there.queue.has_room(task.request.priority):
                self._leave(pool, task)
                task.pool_id = target
                there.queue.push(task)
                moved.add(target)
            elif not self._may_stay(task, pool):
                self._give_up(task, pool, self._no_room(there, task.request), now, wall_ms)
        for target in moved:
            self.pools[target].queue.order()

    def _settle_tried(self, pool: Pool, now: float, wall_ms: int) -> None:
        """The same for tasks that wait for another attempt. They hold no seat, and go first wherever they are."""
        for task in pool.queue.retries:
            try:
                target = self._place_of(task, pool, now)
            except Refusal as refusal:
                if not refusal.is_retriable or not self._may_stay(task, pool):
                    self._give_up(task, pool, refusal, now, wall_ms)
                continue
            if target != pool.id:
                self._leave(pool, task)
                task.pool_id, task.tried = target, ()
                self.pools[target].queue.again(task)

    @staticmethod
    def _leave(pool: Pool, task: Task) -> None:
        pool.queue.remove(task)
        unreserve(pool, task)

    def _may_stay(self, task: Task, pool: Pool) -> bool:
        """Whether the pool, open or not, serves what the task asked for: it must never run on another model."""
        pools = self.serving(task.request)
        barred = self._barred(task.request, pools, strict=task.admitted.strict_trust, new=False)
        return pool.id not in barred and pool.spec.serves(task.request.engine, task.request.model_ref)

    def _place_of(self, task: Task, pool: Pool, now: float) -> str:
        """The pool the task belongs to now: its own if that can take it, else what placement says, or raises."""
        pools = self.serving(task.request)
        barred = self._barred(task.request, pools, strict=task.admitted.strict_trust, new=False)
        snapshots = [s for s in self._snapshots(task.request, pools, now) if s.id not in barred]
        own = [s for s in snapshots if s.id == pool.id]
        if own and own[0].serves and not pool.draining and not pool.stay.shut:
            try:
                return place(task.request, own).pool_id
            except Refusal as refusal:
                if refusal.is_retriable or any(not r.ctx for r in pool.replicas.values()):  # on its way
                    return pool.id
        return place(task.request, snapshots).pool_id

    def _give_up(self, task: Task, pool: Pool, refusal: Refusal, now: float, wall_ms: int) -> None:
        """What the task asked for is not there any more."""
        kind = refusal.details if isinstance(refusal, InvalidParams) else None
        message = f"Pool {pool.id}, where this task was waiting, serves {pool.spec.model_ref} now. {refusal.message}"
        failure = Failure(
            refusal.code, message, task.request.engine, refusal.is_retriable, refusal.retry_after_ms, details=kind
        )
        self.fail(task, failure, now, wall_ms)

    def replica_ready(self, pool_id: str, replica: Replica, **facts: object) -> None:
        super().replica_ready(pool_id, replica, **facts)
        self._unsettled.update(p.id for p in self.pools.values() if p.draining and len(p.queue))
        self._unsettled.add(pool_id)  # what it really can do is known only now

    # -- models ------------------------------------------------------------------------------------------
    def commit(self, pool: Pool, model: Model) -> Ticket:
        """The point of no return of a reload: the new model, journaled before anybody is served by it."""
        operation = self.advance(pool, "swapping")
        return self._hooks.record(
            PoolChanged(pool.id, pool.configured, False, pool.generation + 1, model, replace(operation))
        )

    def swap(self, pool: Pool, model: Model, replicas: Iterable[Replica]) -> list[Replica]:
        """From now on `replicas` serve the pool; gives those that did, which only finish what they have."""
        former = list(pool.replicas.values())
        for replica in former:
            replica.state, replica.reason = "retiring", "replaced by a reload"
        pool.replicas = {replica.id: replica for replica in replicas}
        pool.shadows = [r for r in (*pool.shadows, *former) if pool.replicas.get(r.id) is not r]
        self._serve(pool, model)
        pool.generation += 1
        pool.draining = False
        pool.last_error = None
        assert pool.operation is not None
        pool.operation = replace(pool.operation, generation=pool.generation)
        self._unsettled.update(self.pools)
        self._hooks.wake()
        return former

    @staticmethod
    def _serve(pool: Pool, model: Model) -> None:
        pool.model = model
        pool.spec = replace(pool.spec, model_ref=model.ref)
        pool.service = ServiceModel(pool.spec.prior)  # what was learnt of the old model says nothing of this one

    # -- recovery ----------------------------------------------------------------------------------------
    def restore_pools(self, changed: Iterable[PoolChanged], wall_ms: int) -> None:
        """Pools as their last facts left them, before tasks are restored. Of unknown pools nothing is kept."""
        for fact in changed:
            pool = self.pools.get(fact.pool_id)
            if pool is None:
                continue
            settled = fact.after_restart(wall_ms)
            pool.draining, pool.generation, pool.operation = settled.draining, settled.generation, settled.operation
            if settled.model is not None and settled.configured == pool.configured:
                self._serve(pool, settled.model)
            if settled is not fact:
                pool.last_error = settled.operation.error
                self._hooks.record(self._fact(pool))

    def restore(
        self,
        journaled: list[JournaledTask],
        deleted: Iterable[SessionDeleted],
        split: Split,
        now: float,
        wall_ms: int,
    ) -> None:
        super().restore(journaled, deleted, split, now, wall_ms)
        self._unsettled.update(p.id for p in self.pools.values() if p.draining)
