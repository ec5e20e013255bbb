"""Forecasts over a pool as it stands: position, start, room, chance of being on time. Pure reading."""

from __future__ import annotations

from orchestratord.domain import eta
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.placement import PoolSnapshot
from orchestratord.domain.pool import Pool
from orchestratord.domain.request import Priority, TaskRequest
from orchestratord.domain.task import Task


def position(pool: Pool, priority: Priority, task: Task | None = None) -> int:
    """Tasks that would be dispatched before `task`, or before a newcomer of `priority`."""
    return sum(1 for _ in pool.queue.ahead_of(priority, task))


def start_ms(pool: Pool, priority: Priority, task: Task | None = None) -> float:
    """Predicted wait of `task`, or of a newcomer of `priority`, in milliseconds."""
    estimate = pool.service.estimate_ms
    return eta.start_ms(
        pool.slots,
        (estimate(lease.task.request) for lease in pool.leases),
        (estimate(other.request) for other in pool.queue.ahead_of(priority, task)),
    )


def room_ms(pool: Pool) -> float:
    """When the next seat in the queue comes free, in milliseconds: when the next task is dispatched."""
    return eta.start_ms(pool.slots, (pool.service.estimate_ms(le.task.request) for le in pool.leases), ())


def backoff_ms(pool: Pool) -> int:
    """Advice for the next submission: until the queue has drained to half; 0 below half full."""
    over = len(pool.queue) + 1 - pool.queue.capacity // 2
    waiting = list(pool.queue)
    if over <= 0 or not waiting or not pool.slots:
        return 0
    mean = sum(pool.service.estimate_ms(task.request) for task in waiting) / len(waiting)
    return int(over * mean / pool.slots)


def on_time_probability(pool: Pool, task: Task, now: float) -> float:
    """P(the terminal event comes before the deadline)."""
    if task.terminal:
        return 0.0 if task.state is TaskState.FAILED else 1.0
    needed = pool.service.estimate_ms(task.request)
    if task.started is None:
        needed += start_ms(pool, task.request.priority, task)
    else:
        needed = max(needed - (now - task.started) * 1000, pool.service.ms_per_unit)
    return eta.on_time_probability((task.deadline - now) * 1000, needed, pool.service.spread)


def snapshot(pool: Pool, request: TaskRequest, holds_session: bool) -> PoolSnapshot:
    """What placement may know of `pool` for `request`."""
    serves = pool.spec.serves(request.engine, request.model_ref)
    ready = pool.ready_replicas
    known = [r for r in pool.replicas.values() if r.ctx]
    hinted = serves and (request.expected_tokens is not None or pool.service.observations > 0)
    return PoolSnapshot(
        id=pool.id,
        engine=pool.spec.engine,
        serves=serves,
        ready=bool(ready),
        loading=any(r.state == "loading" for r in pool.replicas.values()),
        draining=pool.draining,
        ctx=max((r.ctx for r in known), default=None),
        workloads=frozenset().union(*(r.workloads for r in known)) if known else None,
        device_masks=frozenset(r.device_mask for r in pool.replicas.values() if r.device_mask),
        exact=any(r.exact for r in ready),
        predicted_end_ms=(start_ms(pool, request.priority) + pool.service.estimate_ms(request) if hinted else None),
        holds_session=holds_session,
        load=(len(pool.queue) + len(pool.leases)) / max(1, pool.slots),
        vram_free=sum(r.vram_free for r in ready),
        tokens_per_s=pool.service.units_per_s or 0.0,
    )
