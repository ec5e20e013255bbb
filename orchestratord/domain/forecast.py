"""Forecasts over a pool as it stands: position, start, room, chance of being on time. Pure reading."""

from __future__ import annotations

from itertools import islice
from typing import Any

from orchestratord.domain import eta
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.placement import PoolSnapshot, suits
from orchestratord.domain.pool import Pool, Replica
from orchestratord.domain.queue import NEAR
from orchestratord.domain.request import Priority, TaskRequest
from orchestratord.domain.task import Task


def position(pool: Pool, priority: Priority, task: Task | None = None, now: float | None = None) -> int:
    """Tasks that would be dispatched before `task`, or before a newcomer of `priority`. Ageing counts at `now`."""
    queue = pool.queue
    if task is not None:
        return sum(1 for _ in queue.ahead_of(priority, task, now))
    if priority == "batch":
        return queue.retrying + len(queue)
    return queue.retrying + queue.depth(priority) + (sum(1 for _ in queue.aged(now)) if now is not None else 0)


def start_ms(pool: Pool, priority: Priority, task: Task | None = None, now: float | None = None) -> float:
    """Predicted wait of `task`, or of a newcomer of `priority`, in milliseconds.

    Batch work is also overtaken by interactive work that is still to come: it gets what that leaves of the slots.
    A model that is not in memory has to be loaded first; without `now` that is taken to begin only then.
    """
    aging = pool.queue.spec.batch_age_s and now is not None
    ahead, mean = _look(pool, priority, task, now) if aging or task is not None else _newcomers_near(pool, priority)
    rest = (position(pool, priority, task, now) - NEAR) * mean if len(ahead) == NEAR else 0.0
    start = eta.start_ms(pool.slots_when_loaded, *_running(pool), ahead, rest)
    share = 1 - pool.service.interactive_load if priority == "batch" else 1.0
    return opening_ms(pool, now) + start / share


def _look(pool: Pool, priority: Priority, task: Task | None, now: float | None) -> tuple[list[float], float]:
    """Estimates of the tasks ahead, the first `NEAR` of them, and what one behind those takes on average."""
    near = [other.admitted.request for other in islice(pool.queue.ahead_of(priority, task, now), NEAR)]
    ahead = pool.service.estimates_ms(near)
    return ahead, _mean_ms(priority, near, ahead) if len(near) == NEAR else 0.0


def _newcomers_near(pool: Pool, priority: Priority) -> tuple[list[float], float]:
    """`_look` for a newcomer. In a long queue it is the same for one after the other."""
    known = pool.queue, pool.queue.changes, pool.service, pool.service.observations
    kept = pool.near.get(priority)
    if kept is None or kept[0] != known:
        kept = pool.near[priority] = known, _look(pool, priority, None, None)
    return kept[1]


def expected_ms(pool: Pool, task: Task, now: float) -> float | None:
    """`start_ms` of a queued task; None while its pool is closed, and nobody can say until when."""
    return start_ms(pool, task.request.priority, task, now) if pool.ready else None


def opening_ms(pool: Pool, now: float | None) -> float:
    """Until the model of an on-demand pool is in memory: what makes room for it, and its load."""
    stay = pool.stay
    if not pool.spec.on_demand or (stay.phase == "in" and not stay.yielding):
        return 0.0
    if now is not None and stay.opens_at is not None:
        return max(0.0, (stay.opens_at - now) * 1000)
    return (stay.load_s if stay.opens_in_s is None else stay.opens_in_s) * 1000


def empties_ms(pool: Pool) -> float:
    """Until all that runs and waits now is done."""
    near = pool.service.estimates_ms(task.admitted.request for task in islice(pool.queue, NEAR))
    whole = sum(near) * len(pool.queue) / len(near) if near else 0.0
    return runs_ms(pool) + whole / max(1, pool.slots_when_loaded)


def runs_ms(pool: Pool) -> float:
    """Until all that runs now is done: at most the longest of the services, half over on average."""
    running = [lease.task.admitted.request for replica in pool.ready_replicas for lease in replica.leases.values()]
    return max(pool.service.estimates_ms(running), default=0.0) / 2


def _running(pool: Pool) -> tuple[int, float]:
    """How many tasks are on slots that count, and the sum of their service estimates."""
    tasks, total_ms = 0, 0.0
    for replica in pool.replicas.values():
        if replica.state == "ready" and replica.work.tasks:
            tasks += replica.work.tasks
            total_ms += pool.service.total_ms(replica.work)
    return tasks, total_ms


def _mean_ms(priority: Priority, near: list[TaskRequest], ahead: list[float]) -> float:
    """What each task beyond the near ones takes: the mean of those of this priority, or of all without one."""
    own = [ms for request, ms in zip(near, ahead, strict=True) if request.priority == priority] or ahead
    return sum(own) / len(own)


def room_ms(pool: Pool, priority: Priority) -> float:
    """When a newcomer of `priority` finds a seat in a full queue, in milliseconds: when the last of those who have to
    leave for that is dispatched."""
    before = pool.queue.leavers(priority) - 1
    near = pool.service.estimates_ms(task.admitted.request for task in islice(pool.queue, min(before, NEAR)))
    rest = (before - len(near)) * sum(near) / len(near) if near else 0.0
    ahead = pool.service.estimates_ms(task.admitted.request for task in pool.queue.retries) + near
    return opening_ms(pool, None) + eta.start_ms(pool.slots_when_loaded, *_running(pool), ahead, rest)


def backoff_ms(pool: Pool) -> int:
    """Advice for the next submission: until the queue has drained to half; 0 below half full."""
    over = len(pool.queue) + 1 - pool.queue.capacity // 2
    near = pool.service.estimates_ms(task.admitted.request for task in islice(pool.queue, NEAR)) if over > 0 else []
    if not near:
        return 0
    return int(opening_ms(pool, None) + over * sum(near) / len(near) / max(1, pool.slots_when_loaded))


def on_time_probability(pool: Pool, task: Task, now: float) -> float:
    """P(the terminal event comes before the deadline). A drained pool opens for nobody by itself."""
    if task.terminal:
        return 0.0 if task.state is TaskState.FAILED else 1.0
    if task.waits and pool.draining and (pool.operation is None or pool.operation.kind != "reload"):
        return 0.0
    needed, spent = pool.service.estimate_ms(task.request), 0.0
    if task.started is None:
        needed += start_ms(pool, task.request.priority, task, now)
    else:
        spent = (now - task.started) * 1000
    return eta.on_time_probability((task.deadline - now) * 1000, needed, pool.service.spread(task.request), spent)


def _union(sets: list[frozenset[Any]]) -> frozenset[Any] | None:
    """Of one set that set: nearly always there is one replica, or all are alike."""
    return None if not sets else sets[0] if len(sets) == 1 else sets[0].union(*sets[1:])


def _features(known: list[Replica], request: TaskRequest) -> frozenset[str] | None:
    """What can be asked for besides the rest of the request: knobs count only together, and where the rest fits."""
    asked = request.sampling.given
    if not asked or len(known) < 2:
        return _union([frozenset(r.features) for r in known])
    fit = [r for r in known if request.workload in r.workloads and r.ctx >= request.ctx] or known
    return frozenset(max(fit, key=lambda r: sum(knob in r.features for knob in asked)).features)


def snapshot(pool: Pool, request: TaskRequest, holds_session: bool, now: float) -> PoolSnapshot:
    """What placement may know of `pool`, which serves `request`."""
    spec, stay = pool.spec, pool.stay
    dormant, mask, workload = pool.dormant, request.placement.require_device_mask, request.workload
    known, fit, probes, masks = [], [], [], []
    ctx, queued, vram = None, len(pool.queue), 0
    available = loading = coming = False
    for replica in pool.replicas.values():  # nearly always one
        if replica.device_mask:
            masks.append(replica.device_mask)
        there = mask is None or replica.device_mask == mask
        if replica.state == "loading":
            loading = True
            coming |= there and replica.kind == "process"
        if not there:
            continue
        if replica.ctx:
            known.append(replica)
            if workload in replica.workloads:
                ctx = replica.ctx if ctx is None else max(ctx, replica.ctx)
        if replica.state == "ready" and suits(replica, request):
            fit.append(replica)
            vram += replica.vram_free if replica.devices else 0
            if not replica.breaker.open:
                available = True
            elif replica.breaker.open_until is not None:
                probes.append(replica.breaker.open_until)
    opens_at = stay.not_before if stay.shut else pool.opens_at
    if opens_at is None and coming:
        opens_at = stay.since + stay.load_s
    if opens_at is not None and opens_at <= now:
        opens_at = None  # overdue: nobody knows
    hinted = request.expected_tokens is not None or pool.service.observations > 0
    start = start_ms(pool, request.priority, now=now) if hinted else None
    return PoolSnapshot(
        id=pool.id,
        engine=spec.engine,
        serves=True,
        ready=dormant or available,
        resident=not spec.on_demand or stay.phase == "in",
        probe_in_ms=max(1, int((min(probes) - now) * 1000)) if probes and not available else None,
        loading=loading,
        draining=pool.draining,
        ctx=ctx,
        workloads=_union([r.workloads for r in known]),
        features=_features(known, request),
        device_masks=frozenset(masks),
        exact=True in [r.strict for r in fit or known] or (dormant and not known),
        predicted_start_ms=start,
        predicted_end_ms=start + pool.service.estimate_ms(request) if start is not None else None,
        holds_session=holds_session,
        load=(queued + pool.leased) / max(1, pool.slots_when_loaded),
        vram_free=vram,
        tokens_per_s=pool.service.units_per_s or 0.0,
        pinned_profile=spec.pins.profile,
        opens_ms=max(1, int((opens_at - now) * 1000)) if opens_at is not None else None,
    )
