"""What is told of a task's life: one log line and the metrics at admission, placement, start, end and cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.domain.errors import Refusal
from orchestratord.domain.outcome import CancelReason, TaskState
from orchestratord.domain.pool import Lease, Pool
from orchestratord.domain.request import Caller, TaskRequest
from orchestratord.domain.task import Task
from orchestratord.ports import Telemetry
from orchestratord.services.tracing import Tracing

REPLICA = ("engine", "engine_version", "pool_id", "replica_id")
PRIORITIZED = (*REPLICA, "priority")
POOL = (*REPLICA[:3], "priority")
ENDED = ("engine", "pool_id", "phase", "outcome", "code")
METERS = 4096  # at most so many are kept: clients cannot bring forth new ones, engines can
_UNPLACED = {"INVALID_PARAMS": "infeasible", "POOL_UNREADY": "unready"}


def log_fields(task: Task) -> dict[str, Any]:
    """The fields every line about a task has, as far as they are known."""
    admitted = task.admitted
    request, admission, caller = admitted.request, admitted.admission, admitted.caller
    fields: dict[str, Any] = {
        "job_id": task.task_id,
        "session_id": task.session_id,
        "engine": request.engine,
        "pool_id": task.pool_id,
        "model_id": request.model_ref,
        "ctx": request.ctx,
        "priority": request.priority,
        "correlation_id": caller.correlation_id,
        "identity": caller.identity,
        "queue_position": admission.queue_position,
        "predicted_start_ms": admission.predicted_start_ms,
    }
    if task.profile is not None:
        fields["sampler_profile_version"] = task.profile
    if task.engine_version is not None:
        fields["engine_version"] = task.engine_version
    if task.replica_id is not None:
        fields["replica_id"] = task.replica_id
    if task.tokens_in is not None:
        fields["tokens_in"] = task.tokens_in
    if task.started is not None:
        fields["kv_warmth"] = task.kv_warm
        fields["queue_time_ms"] = int((task.started - task.created) * 1000)
        if task.quant is not None:
            fields["quant"] = task.quant
    if task.ended is not None:
        fields["tokens_out"] = task.tokens_out
        fields["decode_time_ms"] = task.decode_ms
    return fields


class Narrator:
    """Turns what happened into telemetry. It decides nothing."""

    def __init__(self, telemetry: Telemetry, pools: dict[str, Pool], tracing: Tracing | None = None) -> None:
        self._t = telemetry
        self._tracing = tracing
        self._pools = pools
        self._meters: dict[tuple[str, tuple[str, ...]], Callable[[float], None]] = {}

    def _meter(self, series: str, names: tuple[str, ...], values: tuple[str, ...]) -> Callable[[float], None]:
        """`Telemetry.meter`, looked up once for each series and set of labels."""
        key = (series, values)
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= METERS:
                self._meters.clear()
            meter = self._meters[key] = self._t.meter(series, **dict(zip(names, values, strict=True)))
        return meter

    def _labels(self, task: Task) -> tuple[str, str, str, str]:
        """REPLICA of a task."""
        version = task.engine_version or self._version(task.pool_id)
        return task.request.engine, version, task.pool_id, task.replica_id or "none"

    def _version(self, pool_id: str) -> str:
        pool = self._pools.get(pool_id)
        return pool.engine_version if pool else "unknown"

    def admitted(self, task: Task) -> None:
        if self._tracing is not None:
            self._tracing.admitted(task)
        d = task.admitted.decision
        self._meter("tasks_enqueued_total", PRIORITIZED, (*self._labels(task), task.request.priority))(1)
        if task.recovered:  # counted by this process now; decided and told by the one before
            self._t.event("task_requeued", "waits again after a restart, at its old place", **log_fields(task))
            return
        how = ("placed", "true" if d.pinned else "false", "true" if d.fallback_used else "false")
        self._meter("placement_decisions_total", ("outcome", "pinned", "fallback"), how)(1)
        self._meter("placement_candidates_considered", (), ())(d.considered)
        fields = log_fields(task)
        self._t.event(
            "task_placed",
            f"chose pool {task.pool_id} out of {d.considered}",
            **fields,
            filters=list(d.filters),
            tie_breakers=list(d.tie_breakers),
        )
        a = task.admitted.admission
        self._t.event(
            "task_admitted",
            f"accepted at position {a.queue_position}, expected to start in {a.predicted_start_ms} ms",
            **fields,
        )

    def rejected(self, request: TaskRequest, refusal: Refusal, caller: Caller) -> None:
        reason = refusal.policy_label or refusal.code.lower()
        self._t.count("tasks_rejected_total", engine=request.engine, reason=reason)
        if refusal.at_placement:
            self._t.count(
                "placement_decisions_total",
                outcome=_UNPLACED.get(refusal.code, "unavailable"),
                pinned=str(request.placement.mode == "pin").lower(),
                fallback="false",
            )
        if refusal.policy_label is not None:
            self._t.count("admission_backpressure_events_total", engine=request.engine, policy=refusal.policy_label)
        self._t.event(
            "task_rejected",
            f"refused: {refusal.code}",
            job_id=request.task_id,
            session_id=request.session_id,
            engine=request.engine,
            code=refusal.code,
            reason=reason,
            rule=refusal.details.get("rule"),
            correlation_id=caller.correlation_id,
            identity=caller.identity,
        )

    def started(self, lease: Lease) -> None:
        if self._tracing is not None:
            self._tracing.started(lease)
        task = lease.task
        self._meter("tasks_started_total", PRIORITIZED, (*self._labels(task), task.request.priority))(1)
        waited = int((task.started - task.created) * 1000) if task.started is not None else 0
        self._t.event(
            "task_started",
            f"started on {lease.pool.id}/{lease.replica.id} after {waited} ms in the queue",
            **log_fields(task),
        )

    def ended(self, task: Task, phase: str, reason: CancelReason | None) -> None:
        if self._tracing is not None:
            self._tracing.ended(task)
        outcome = {TaskState.ENDED: "end", TaskState.CANCELED: "canceled"}.get(task.state, "error")
        code = task.failure.code if task.failure else "none"
        if phase != "recovered":  # its start was counted by the process that is gone
            self._count_end(task, phase, outcome, code)
        if code == "QUEUE_FULL_DROP_LRU":
            self._t.count("admission_backpressure_events_total", engine=task.request.engine, policy="drop-lru")
        if reason is not None:
            self._meter("tasks_canceled_total", (*REPLICA, "reason"), (*self._labels(task), reason))(1)
        human = f"finished: {task.finish_reason}" if task.failure is None else f"failed: {code}"
        name = "task_canceled" if task.state is TaskState.CANCELED else "task_ended"
        self._t.event(
            name,
            human if reason is None else f"{human}, by {reason}",
            **log_fields(task),
            outcome=outcome,
            code=code,
        )

    def _count_end(self, task: Task, phase: str, outcome: str, code: str) -> None:
        request = task.request
        self._meter("orchestratord_tasks_ended_total", ENDED, (request.engine, task.pool_id, phase, outcome, code))(1)
        labels = self._labels(task)
        if task.tokens_in:
            self._meter("tokens_in_total", REPLICA, labels)(task.tokens_in)
        if task.tokens_out:
            self._meter("tokens_out_total", REPLICA, labels)(task.tokens_out)
        if task.first_token is not None and task.ended is not None:
            pool = (*labels[:3], request.priority)
            self._meter("latency_first_token_ms", POOL, pool)((task.first_token - task.created) * 1000)
            self._meter("latency_decode_ms", POOL, pool)((task.ended - task.first_token) * 1000)
