"""Operations on pools: drain and resume here, reload in a module of its own. One at a time on each pool."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from orchestratord.domain.errors import Conflict, NotFound, StorageUnavailable
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.operation import Fault, Operation, OperationKind, OperationState
from orchestratord.domain.pool import Pool, Replica
from orchestratord.ports import Clock, Telemetry
from orchestratord.services.durability import durable


class Operations:
    """What operators start. `revive`: what was given up is tried again.

    Every method returns once the operation is journaled, and the work goes on behind it.
    Raises NotFound, Conflict (with `operation_id`, the running one) and StorageUnavailable.
    """

    def __init__(self, core: Lodging, clock: Clock, telemetry: Telemetry, revive: Callable[[Pool], object]) -> None:
        self._core = core
        self._revive = revive
        self._clock = clock
        self._telemetry = telemetry
        self._work: dict[str, asyncio.Task[None]] = {}  # the last operation of each pool
        self._tickets: dict[str, Any] = {}  # of its fact

    async def drain(self, pool_id: str, deadline_ms: int, reason: str = "operator") -> Operation:
        """Start nothing new; what runs may finish within `deadline_ms`. A drained pool stays as it is.

        `reason` is a label of `drain_events_total`.
        """
        pool = self.pool(pool_id)
        last = pool.operation
        if pool.draining and last is not None and last.kind == "drain" and last.state == "succeeded":
            return last
        if (known := self.running(pool, "drain", None, deadline_ms)) is not None:
            return await self.joined(pool, known)
        ends = self._clock.now() + deadline_ms / 1000
        return await self.begin(
            pool, "drain", lambda: self._drain(pool, ends, reason), draining=True, deadline_ms=deadline_ms
        )

    async def _drain(self, pool: Pool, ends: float, reason: str) -> None:
        self._telemetry.count("drain_events_total", pool_id=pool.id, reason=reason)
        self._core.advance(pool, "draining")
        pool.opens_at = ends
        stopped = await self.emptied(pool, ends, "The pool was drained, and its deadline has passed.")
        self.conclude(pool, "succeeded", stopped=stopped)

    async def resume(self, pool_id: str) -> Operation:
        """Take work again; ends a drain that still runs. Resuming twice is the same operation."""
        pool = self.pool(pool_id)
        last = pool.operation
        if not pool.draining and last is not None and last.kind == "resume":
            self._try_again(pool)
            return await self.joined(pool, last)
        if last is not None and last.kind == "drain" and last.state == "draining":
            self._work[pool.id].cancel()
            why = Fault("CONFLICT", "The pool was resumed before it was drained.", self._clock.wall_ms())
            self.conclude(pool, "failed", why)
        self.running(pool, "resume", None, None)
        return await self.begin(pool, "resume", lambda: self._resume(pool), draining=False)

    async def _resume(self, pool: Pool) -> None:
        pool.last_error = None
        self._try_again(pool)
        self.conclude(pool, "succeeded")

    def _try_again(self, pool: Pool) -> None:
        """What was given up, replicas or loads, gets another chance."""
        self._revive(pool)
        self._core.forgive(pool)

    # -- what reloads share ------------------------------------------------------------------------------
    async def emptied(self, pool: Pool, ends: float, message: str, only: Collection[Replica] | None = None) -> int:
        """Wait until nothing runs on the pool, or on `only` these replicas of it; what still does at `ends` is ended.

        Gives how many tasks that were.
        """
        try:
            async with self._clock.limit(max(0.0, ends - self._clock.now())):
                await self._idle(pool, only)
            return 0
        except TimeoutError:
            stopped = self._core.end_running(pool, message, self._clock.now(), self._clock.wall_ms(), only)
            await self._idle(pool, only)
            return stopped

    @staticmethod
    async def _idle(pool: Pool, only: Collection[Replica] | None) -> None:
        freed = asyncio.Event()
        pool.on_release.append(freed.set)
        try:
            while any(only is None or lease.replica in only for lease in pool.at_work):
                freed.clear()
                await freed.wait()
        finally:
            pool.on_release.remove(freed.set)

    # -- one at a time -----------------------------------------------------------------------------------
    def pool(self, pool_id: str) -> Pool:
        pool = self._core.pools.get(pool_id)
        if pool is None:
            raise NotFound(f"There is no pool {pool_id!r}. See GET /v1/pools.")
        return pool

    @staticmethod
    def running(pool: Pool, kind: OperationKind, to_ref: str | None, deadline_ms: int | None) -> Operation | None:
        """The running operation if it is the one asked for, None if none runs; raises Conflict if another does."""
        running = pool.operation
        if running is None or running.over:
            return None
        if running.same_wish(kind, to_ref, deadline_ms):
            return running
        raise Conflict(
            f"A {running.kind} runs on pool {pool.id} ({running.state}). Wait for it; GET /v1/pools/{pool.id}/health "
            "shows how far it is.",
            pool_id=pool.id,
            operation_id=running.id,
        )

    async def begin(
        self,
        pool: Pool,
        kind: OperationKind,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        draining: bool,
        to_ref: str | None = None,
        deadline_ms: int | None = None,
    ) -> Operation:
        """Accept an operation, and return it once that is durable. `work` goes on whatever becomes of the caller."""
        operation = Operation(
            id=str(uuid.uuid4()),
            pool_id=pool.id,
            kind=kind,
            state="pending",
            from_model_ref=pool.spec.model_ref,
            generation=pool.generation,
            started_ms=self._clock.wall_ms(),
            to_model_ref=to_ref,
            deadline_ms=deadline_ms,
        )
        ticket = self._tickets[pool.id] = self._core.begin(operation, draining=draining)
        self._work[pool.id] = asyncio.get_running_loop().create_task(
            self._carry_out(pool, operation, ticket, work), name=f"{kind}-{pool.id}"
        )
        await durable(ticket)
        return operation

    async def _carry_out(
        self, pool: Pool, operation: Operation, ticket: Any, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            await durable(ticket)
        except StorageUnavailable:
            return  # it never began; whoever asked is told so
        self._telemetry.event(
            "operation_started",
            f"{operation.kind} of pool {pool.id}"
            + (f" to {operation.to_model_ref}" if operation.to_model_ref is not None else ""),
            pool_id=pool.id,
            operation_id=operation.id,
            kind=operation.kind,
        )
        try:
            await work()
        except Exception as error:  # the last resort: a bug must not leave an operation that never ends
            self._telemetry.event("operation_broke", "a bug ended an operation", error=error, pool_id=pool.id)
            self.conclude(pool, "failed", Fault("INTERNAL", "A bug ended the operation.", self._clock.wall_ms()))

    async def joined(self, pool: Pool, operation: Operation) -> Operation:
        """Somebody asked for the same again: it shares the fate of the first, also that of its fact.

        One that is over has long been durable; the last ticket may be that of another, which failed.
        """
        if not operation.over and pool.id in self._tickets:
            await durable(self._tickets[pool.id])
        return pool.operation or operation

    async def over(self, pool: Pool) -> None:
        """Return when the last operation that was started on the pool is over."""
        if (work := self._work.get(pool.id)) is not None:
            await asyncio.wait({work})

    def conclude(self, pool: Pool, state: OperationState, error: Fault | None = None, **fields: Any) -> None:
        operation = self._core.conclude(pool, state, self._clock.wall_ms(), error)
        self._telemetry.count(
            "orchestratord_pool_operations_total", pool_id=pool.id, kind=operation.kind, outcome=state
        )
        self._telemetry.event(
            "operation_ended",
            f"{operation.kind} of pool {pool.id}: {state}" + (f", {error.message}" if error else ""),
            pool_id=pool.id,
            operation_id=operation.id,
            kind=operation.kind,
            state=state,
            **fields,
        )

    async def stop(self) -> None:
        """Leave everything as it stands: the journal knows what a restart makes of it."""
        for work in self._work.values():
            work.cancel()
        await asyncio.gather(*self._work.values(), return_exceptions=True)
