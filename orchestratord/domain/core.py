"""The aggregate: every task, queue, lease and session, and the only code that changes them.

Each public method is one indivisible step: synchronous, no I/O, no clock (`now` is handed in). What must be
durable is recorded in the step that decides it, so journal order is decision order; what depends on durability
happens in the ticket's callback. Effects outside (aborting an engine call, waking the dispatcher, telemetry)
are the `Hooks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from itertools import count
from typing import Any

from orchestratord.domain import forecast, recovery
from orchestratord.domain.budget import worst_case
from orchestratord.domain.device import Device
from orchestratord.domain.errors import AdmissionReject, Conflict, DeadlineUnmet, NotFound, QueueFull
from orchestratord.domain.facts import (
    Admitted,
    Archived,
    Forgotten,
    JournaledTask,
    SessionDeleted,
)
from orchestratord.domain.hooks import Hooks, Limits, Sized, Ticket
from orchestratord.domain.lives import Lives
from orchestratord.domain.log import EventLog
from orchestratord.domain.operation import Fault
from orchestratord.domain.outcome import Admission, Failure, TaskState
from orchestratord.domain.placement import PoolSnapshot, pick_replica, place, suits
from orchestratord.domain.pool import Lease, Pool, PoolSpec, Replica
from orchestratord.domain.request import DeterminismClass, TaskRequest, Workload
from orchestratord.domain.session import Session
from orchestratord.domain.task import Task
from orchestratord.domain.trust import TrustPolicy


class Core(Lives):
    """Admission, dispatch and recovery on top of the lives of tasks: the whole aggregate."""

    def __init__(self, pools: list[PoolSpec], limits: Limits, hooks: Hooks, trust: TrustPolicy | None = None) -> None:
        super().__init__(pools, limits, hooks, trust)
        self._orders = count(1)
        self._lease_ids = count(1)

    # -- admission ---------------------------------------------------------------------------------------
    def known(self, task_id: str, fingerprint: bytes) -> Task | None:
        """The task an equal request was admitted as. Raises Conflict when the id was used for another body."""
        task = self.tasks.get(task_id)
        if task is not None and task.admitted.fingerprint != fingerprint:
            raise Conflict(
                f"task_id {task_id} was already used with a different body. Use a fresh UUID for every task.",
            )
        return task

    def serving(self, request: TaskRequest) -> list[Pool]:
        return [p for p in self.pools.values() if p.spec.serves(request.engine, request.model_ref)]

    def admit(self, sized: Sized, now: float, wall_ms: int) -> tuple[Task, Ticket]:
        """Decide, and if the task fits, take turn and seat for it: the whole admission in one step.

        The task is not dispatchable until `confirm`. Raises AdmissionReject, DeadlineUnmet, and what the catalog and
        `place` raise.
        """
        request = sized.request
        pools = self.serving(request)
        barred = self._barred(request, pools, strict=sized.strict_trust, new=True)
        held = worst_case(request, sized.prompt_bound, self.limits.tariff)
        self.sessions.check(request.session_id, held, now)
        snapshots = {s.id: s for s in self._snapshots(request, pools, now) if s.id not in barred}
        decision = place(request, list(snapshots.values()))
        pool = self.pools[decision.pool_id]
        position = forecast.position(pool, request.priority, now=now)
        waited_ms, start = sized.waited_s * 1000, snapshots[pool.id].predicted_start_ms
        start = waited_ms + (forecast.start_ms(pool, request.priority, now=now) if start is None else start)
        end = start + pool.service.estimate_ms(request)
        if end > request.deadline_ms:
            raise DeadlineUnmet(
                f"It would most likely end after {int(end)} ms, later than its deadline of {request.deadline_ms} ms. "
                "Allow more time, ask for fewer tokens, or come back when the queue is shorter.",
                rule="deadline",
                predicted_end_ms=int(end),
                engine=request.engine,
                pool_id=pool.id,
                retry_after_ms=int(start - waited_ms) or None,  # no queue: to come back would change nothing
            )
        victim = None
        if not pool.queue.has_room(request.priority) and (victim := pool.queue.victim()) is None:
            raise self._no_room(pool, request)
        if victim is not None:
            position -= any(other is victim for other in pool.queue.ahead_of(request.priority, now=now))

        admission = Admission(position, int(start), forecast.backoff_ms(pool))
        promise = {"queue_position": position, "predicted_start_ms": admission.predicted_start_ms}
        fact = Admitted(
            request=request,
            fingerprint=sized.fingerprint,
            order=next(self._orders),
            seed=sized.seed,
            determinism_class=_class(pool, request),
            admission=admission,
            decision=decision,
            pool_id=pool.id,
            created_ms=wall_ms - int(waited_ms),
            prompt_sha256=sized.prompt_sha256,
            prompt_bound=sized.prompt_bound,
            held=held,
            caller=sized.caller,
            started_frame=self._hooks.encode(1, "started", promise),
            strict_trust=sized.strict_trust,
        )
        deadline = now - sized.waited_s + request.deadline_ms / 1000
        task = Task(fact, EventLog(), now, deadline, fact.determinism_class)
        task.profile = pool.spec.profile_of(request)
        task.log.append(fact.started_frame)
        self.sessions.take_turn(request.session_id, held, now)
        self.tasks.enlist(task)
        pool.queue.push(task)
        if victim is not None:
            pool.queue.promise(task, victim)
        return task, self._gate(task, fact, self._committed)

    def _committed(self, task: Task, ticket: Ticket) -> None:
        queue = self.pools[task.pool_id].queue
        end = self._untold.pop(task.task_id, None)
        if ticket.exception() is None:
            task.committed = True
            task.log.show(1)
            self._hooks.admitted(task)
            if end is not None:
                self._hooks.ended(task, *end)
            if (victim := queue.redeem(task)) is not None:
                self._drop(victim, task)
            self._hooks.wake()
        else:  # withdraw it without trace
            queue.remove(task)
            self.sessions.return_turn(task.session_id, task.admitted.held, live=not task.terminal)
            self.tasks.pop(task.task_id, None)

    def _barred(self, request: TaskRequest, pools: list[Pool], *, strict: bool, new: bool) -> Collection[str]:
        """Of the `pools` that serve the task those whose model the catalog keeps from it. Raises what it says when no
        other is left."""
        if new and not pools:
            ref = request.model_ref
            gone = self.catalog.refusal(self.catalog.applying([ref]), f"Model {ref}", strict=strict, new=True)
            if gone is not None:
                raise gone
        barred = self.catalog.barred(request.model_ref, pools, strict=strict, new=new)
        pinned = request.placement.pin_pool_id if request.placement.mode == "pin" else None
        if barred and (len(barred) == len(pools) or pinned in barred):
            raise barred[pinned if pinned in barred else min(barred)]
        return barred

    def _snapshots(self, request: TaskRequest, pools: list[Pool], now: float) -> list[PoolSnapshot]:
        """Of the `pools` that serve the task; of the others too where a refusal would say which there are."""
        session = self.sessions.get(request.session_id, now)
        warm = session.warm.pool_id if session is not None and session.warm is not None and session.kv_warm else None
        found = [forecast.snapshot(pool, request, warm == pool.id, now) for pool in pools]
        if not pools or request.placement.mode == "pin":
            others = [pool for pool in self.pools.values() if pool not in pools]
            found += [PoolSnapshot(pool.id, pool.spec.engine, serves=False) for pool in others]
        return found

    def _drop(self, victim: Task, newcomer: Task) -> None:
        """`drop-lru`: the newcomer is durable, so its victim gives up the seat."""
        failure = Failure(
            "QUEUE_FULL_DROP_LRU",
            "Newer work took this task's seat in a full queue. Submit it again under a fresh task_id.",
            victim.request.engine,
            retriable=True,
            retry_after_ms=max(1, int(forecast.room_ms(self.pools[victim.pool_id], "batch"))),
        )
        ended_ms = max(newcomer.admitted.created_ms, victim.admitted.created_ms)
        self.fail(victim, failure, newcomer.created, ended_ms)

    def _no_room(self, pool: Pool, request: TaskRequest) -> AdmissionReject:
        room = max(1, int(forecast.room_ms(pool, request.priority)))
        kind = QueueFull if pool.spec.queue.policy == "drop-lru" else AdmissionReject
        return kind(
            f"Pool {pool.id} has no seat for {request.priority} work: {len(pool.queue)} of {pool.queue.capacity} are "
            f"taken. Try again in {room} ms.",
            retry_after_ms=room,
            policy_label=pool.spec.queue.policy,
            engine=request.engine,
            pool_id=pool.id,
        )

    # -- recovery ----------------------------------------------------------------------------------------
    def restore(
        self,
        journaled: list[JournaledTask],
        deleted: Iterable[SessionDeleted],
        split: recovery.Split,
        now: float,
        wall_ms: int,
    ) -> None:
        """Become what the journal says. Called once, before anything is admitted."""
        deletions = {fact.session_id: fact.after_order for fact in deleted}
        last = max((*deletions.values(), *(item.admitted.order for item in journaled)), default=0)
        self._orders = count(last + 1)
        for item in journaled:
            task = recovery.rebuild(item, split, now, wall_ms)
            pool = self.pools.get(task.pool_id)
            task.profile = pool.spec.profile_of(task.request) if pool else task.request.sampler_profile_version
            if item.admitted.order > deletions.get(task.session_id, last):
                self.sessions.delete(task.session_id, task.created)
                del deletions[task.session_id]
            self.sessions.take_turn(task.session_id, item.admitted.held, task.created)
            self.tasks.enlist(task)
            if item.finished is not None and task.ended is not None:
                self.sessions.task_ended(task.session_id, item.admitted.held, item.finished.used, task.ended)
                self.tasks.retire(task)
                if not task.log.evicted:
                    self.tasks.keep_log(task)
                    self._trim_logs()
            else:
                self._resume(task, now, wall_ms)
        self.tasks.sort_finished()
        for session_id in deletions:
            self.sessions.delete(session_id, now)
        self._hooks.wake()

    def _trim_logs(self) -> None:
        """Of logs that come from the journal no more stay in memory than may."""
        while self.tasks.log_bytes > self.limits.log_bytes and (oldest := self.tasks.oldest_log()) is not None:
            oldest.log.evict()

    def _resume(self, task: Task, now: float, wall_ms: int) -> None:
        """An unfinished task of the process before this one: waits again, or ends."""
        if task.first_token is not None:
            failure, terminal_id = recovery.interruption(task)
        elif (pool := self._home_of(task)) is None:
            gone = f"Pool {task.pool_id} is no longer configured, or serves another model."
            failure, terminal_id = Failure("POOL_UNAVAILABLE", gone, task.request.engine), task.log.next_id
        else:
            task.pool_id = pool.id
            task.profile = pool.spec.profile_of(task.request)
            pool.queue.push(task)
            self._hooks.admitted(task)
            return
        self._terminate(
            task, TaskState.FAILED, now, wall_ms, failure=failure, phase="recovered", terminal_id=terminal_id
        )

    def _home_of(self, task: Task) -> Pool | None:
        """Where a task waits again: its pool, or when that serves another model now, one that serves what it wants."""
        hints, serving = task.request.placement, self.serving(task.request)
        here = next((pool for pool in serving if pool.id == task.pool_id), None)
        if here is not None or hints.mode == "pin":
            return here
        others = [pool for pool in serving if pool.id not in hints.avoid_pools]
        if hints.mode == "prefer" and hints.prefer_pools and not hints.allow_fallback:
            others = [pool for pool in others if pool.id in hints.prefer_pools]
        return min(others, key=lambda pool: (len(pool.queue), pool.id), default=None)

    # -- dispatch ----------------------------------------------------------------------------------------
    def dispatch(self, now: float, wall_ms: int) -> list[Lease]:
        """Lease every free slot that the heads of the queues can use."""
        leases: list[Lease] = []
        for pool in self.pools.values():
            if pool.takes_work:
                leases += [self._lease(pool, r, 0, task, now, wall_ms) for r, task in _kept(pool)]
            able = partial(_able, pool)
            while pool.takes_work and (task := pool.queue.head(now, able)) is not None:
                session = self.sessions.get(task.session_id, now)
                warm = session.warm if session is not None and session.kv_warm else None
                strict = task.request.determinism == "strict"
                replica = pick_replica(
                    _candidates(pool, task), task.request, warm=warm.replica if warm is not None else None
                )
                if replica is None:
                    if strict:
                        _reserve(pool, task)
                    break  # FIFO: nothing overtakes the head of its pool
                slot = replica.pick_slot(warm.slot if warm is not None and warm.replica is replica else None)
                there = warm is not None and warm.replica is replica
                task.kv_warm = warm is not None and there and (warm.slot == slot or replica.kv_tokens is not None)
                leases.append(self._lease(pool, replica, slot, task, now, wall_ms))
        return leases

    def _lease(self, pool: Pool, replica: Replica, slot: int, task: Task, now: float, wall_ms: int) -> Lease:
        pool.queue.remove(task)
        exclusive = task.request.determinism == "strict"
        lease = Lease(next(self._lease_ids), task, pool, replica, replica.incarnation, slot, exclusive)
        unreserve(pool, task)
        replica.take(lease)
        if not task.retrying:
            task.move(TaskState.STARTING)
        task.retrying = False
        task.attempts += 1
        task.replica_id, task.engine_version = replica.id, replica.engine_version
        task.model_digest, task.quant = replica.model_digest, replica.quant
        task.profile = pool.spec.profile_of(task.request)
        task.determinism_class = "exact" if replica.exact(task.request) else "best_effort"
        task.started, task.started_ms, task.last_output = now, wall_ms, now
        return lease

    # -- time --------------------------------------------------------------------------------------------
    def next_due(self, now: float) -> float | None:
        """When there is something to do again without a new event: a deadline, or the end of a retry's pause."""
        dues = [pool.queue.retry_due(now) for pool in self.pools.values()]
        return min((due for due in (self.tasks.next_deadline(), *dues) if due is not None), default=None)

    def expire(self, now: float, wall_ms: int) -> None:
        """End every task whose deadline has passed."""
        for task in self.tasks.overdue(now):
            waiting = task.state is TaskState.QUEUED
            message = f"The deadline of {task.request.deadline_ms} ms passed while the task " + (
                "was waiting; no engine saw it." if waiting else "was running; the text so far is in the transcript."
            )
            self.fail(task, Failure("DEADLINE_UNMET", message, task.request.engine, True), now, wall_ms, "deadline")

    def forget(self, now: float) -> None:
        """Drop finished tasks past retention, and sessions past their TTL."""
        self.forget_tasks(now)
        self.sessions.expire(now)
        lingering = self.tasks.lingering
        for task_id in [one for one, session_id in lingering.items() if self.sessions.get(session_id, now) is None]:
            self._erase(task_id)

    def forget_tasks(self, now: float) -> None:
        """Drop finished tasks past retention, oldest first, and what the others were asked. Costs nothing where
        there is nothing to drop.

        After a restart a session has spent what the journal's tasks of it have: there they stay until it is gone, as
        long as there are not too many.
        """
        self.tasks.drop_content()
        lingering = self.tasks.lingering
        for task in self.tasks.discard_stale(now - self.limits.retain_s, self.limits.retain_tasks):
            lingering[task.task_id] = task.session_id
            if self.sessions.get(task.session_id, now) is None:
                self._erase(task.task_id)
        while lingering and len(lingering) + len(self.tasks) > self.limits.retain_tasks:
            self._erase(next(iter(lingering)))

    def _erase(self, task_id: str) -> None:
        del self.tasks.lingering[task_id]
        self._hooks.record(Forgotten(task_id))

    # -- sessions ----------------------------------------------------------------------------------------
    def session(self, session_id: str, now: float) -> Session:
        session = self.sessions.find(session_id, now)
        if session is None:
            raise NotFound(f"There is no session {session_id}. A session begins with its first admitted task.")
        return session

    def delete_session(self, session_id: str, now: float, wall_ms: int) -> list[Ticket]:
        """Cancel the session's tasks and drop it; the tickets gate the 204. Raises NotFound."""
        self.session(session_id, now)
        tickets: list[Ticket] = []
        last = 0
        for task in self.tasks.values():
            if task.session_id == session_id:
                last = max(last, task.admitted.order)
                if not task.terminal:
                    self.cancel(task, "session_deleted", now, wall_ms)
                    tickets.append(self.closing[task.task_id])
        self.sessions.delete(session_id, now)
        tickets.append(self._hooks.record(SessionDeleted(session_id, last)))
        return tickets

    # -- replicas ----------------------------------------------------------------------------------------
    def add_replica(self, pool_id: str, replica: Replica) -> None:
        self.pools[pool_id].replicas[replica.id] = replica

    def replica_ready(self, pool_id: str, replica: Replica, **facts: Any) -> None:
        """A replica answers. `facts` are fields of Replica (slots, ctx, engine_version, ...)."""
        for name, value in facts.items():
            setattr(replica, name, value)
        replica.state, replica.reason = "ready", ""
        replica.incarnation += 1
        replica.breaker.probed()
        if replica.kind == "process":  # a new process: whatever ran is gone. Of another's engine that is not known
            for lease in [le for le in replica.leases.values() if le.quarantined]:
                self.release(lease)
        replica.renew()
        self._hooks.wake()

    def replica_gave(self, replica: Replica, results: Mapping[Workload, dict[str, Any]]) -> None:
        """What a probe brought, of each workload one result: they show how long those of tasks will be."""
        replica.result_bytes = {
            workload: len(self._hooks.encode(1, "result", payload)) for workload, payload in results.items()
        }

    def replica_probed(self, replica: Replica) -> None:
        """A replica whose breaker was open has decoded and cancelled again, in slots that it chose itself: of none but
        those at work is it known any more what they hold."""
        replica.breaker.probed()
        replica.last_lease = {s: i for s, i in replica.last_lease.items() if i in replica.leases}
        replica.reason = ""
        self._hooks.wake()

    def replica_loading(self, pool_id: str, replica: Replica, reason: str) -> None:
        """A replica is on its way; `reason` says how far."""
        replica.state, replica.reason = "loading", reason

    def measured(self, replica: Replica, kv_usage: float | None, devices: tuple[Device, ...]) -> None:
        """What a ready replica and its devices say now."""
        replica.kv_usage, replica.devices = kv_usage, devices

    def replica_failed(self, pool_id: str, replica: Replica, fault: Fault) -> None:
        """A replica is gone. Its running tasks end by themselves: their streams break."""
        pool = self.pools[pool_id]
        replica.state, replica.reason = "dead", fault.message
        replica.kv_usage, replica.devices = None, ()
        replica.last_error = pool.last_error = fault

    def archived(self, *task_ids: str) -> None:
        """The transcripts of these tasks have reached the artifact store."""
        self.tasks.owed.difference_update(task_ids)
        self._hooks.record(Archived(task_ids))

    def owes(self, task_id: str, *, owed: bool = True) -> None:
        """The transcript of this task is still on its way to the store, or will never get there."""
        (self.tasks.owed.add if owed else self.tasks.owed.discard)(task_id)


def _class(pool: Pool, request: TaskRequest) -> DeterminismClass:
    """What can be promised at admission."""
    ready = pool.ready_replicas
    exact = request.determinism == "strict" or (bool(ready) and all(r.exact(request) for r in ready))
    return "exact" if exact else "best_effort"


def _candidates(pool: Pool, task: Task) -> list[Replica]:
    """Where the task may go: not back to a replica that failed it, as long as there is another that could take it."""
    replicas = list(pool.replicas.values())
    if not task.tried:
        return replicas
    others = [r for r in replicas if r.id not in task.tried and r.available and suits(r, task.request)]
    return others or replicas


def _able(pool: Pool, task: Task) -> bool:
    """Whether a replica in service could take the task, if it had nothing else to do."""
    strict = task.request.determinism == "strict"
    return any(r.available and suits(r, task.request) and (r.strict or not strict) for r in pool.replicas.values())


def _reserve(pool: Pool, task: Task) -> None:
    """Keep a replica for a strict task: it takes no other work, so that it becomes idle."""
    if any(r.reserved is task and r.available for r in pool.replicas.values()):
        return
    unreserve(pool, task)
    able = [
        r for r in _candidates(pool, task) if r.strict and r.available and r.reserved is None and suits(r, task.request)
    ]
    if able:
        min(able, key=lambda r: (len(r.leases), r.id)).reserved_for = task


def unreserve(pool: Pool, task: Task) -> None:
    """No replica is kept for it any more."""
    for replica in pool.replicas.values():
        if replica.reserved_for is task:
            replica.reserved_for = None


def _kept(pool: Pool) -> list[tuple[Replica, Task]]:
    """Replicas that have become idle for the strict task they are kept for."""
    return [
        (r, r.reserved)
        for r in pool.replicas.values()
        if r.reserved is not None and r.available and r.free and not r.leases
    ]
