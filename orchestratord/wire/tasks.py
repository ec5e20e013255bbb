"""TaskRequest in, AdmissionResponse, TaskStatus and SessionInfo out."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestratord.domain.budget import Account
from orchestratord.domain.outcome import Admission, Failure
from orchestratord.domain.request import Message, PlacementHints, Sampling, TaskRequest
from orchestratord.domain.session import Session
from orchestratord.domain.task import Task
from orchestratord.domain.views import decision_view

MICRO = 1_000_000
_SHAPED: dict[str, Any] = {  # fields that are no plain values; the others need no conversion
    "messages": tuple[Message, ...] | None,
    "inputs": tuple[str, ...] | None,
    "placement": PlacementHints,
    "sampling": Sampling,
}


def parse_request(body: dict[str, Any]) -> TaskRequest:
    """A body the contract's schema has accepted, as the one parsed shape. Ids are kept in lower case (RFC 9562 4)."""
    given = body.copy()
    given["task_id"], given["session_id"] = body["task_id"].lower(), body["session_id"].lower()
    for name in _SHAPED.keys() & given.keys():
        given[name] = msgspec.convert(given[name], _SHAPED[name])
    return TaskRequest(**given)


def admission_body(task_id: str, admission: Admission) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "queue_position": admission.queue_position,
        "predicted_start_ms": admission.predicted_start_ms,
        "backoff_ms": admission.backoff_ms,
    }


def failure_body(failure: Failure) -> dict[str, Any]:
    body: dict[str, Any] = {"code": failure.code, "message": failure.message, "retriable": failure.retriable}
    if failure.engine:
        body["engine"] = failure.engine
    if failure.retry_after_ms is not None:
        body["retry_after_ms"] = failure.retry_after_ms
    if failure.details:
        body["details"] = failure.details
    return body


def status_body(task: Task, waiting: tuple[int, int | None, str | None] | None) -> dict[str, Any]:
    """TaskStatus. `waiting` is (queue_position, predicted_start_ms, waiting_for) of a queued task; None: unknown."""
    request = task.request
    body: dict[str, Any] = {
        "task_id": task.task_id,
        "session_id": task.session_id,
        "state": task.state.value,
        "workload": request.workload,
        "priority": request.priority,
        "model_ref": request.model_ref,
        "engine": request.engine,
        "pool_id": task.pool_id,
        "seed": task.admitted.seed,
        "determinism_class": task.determinism_class,
        "last_event_id": task.log.visible_id,
        "created_at_ms": task.admitted.created_ms,
        "placement": decision_view(task.admitted.decision),
    }
    optional = {
        "replica_id": task.replica_id,
        "engine_version": task.engine_version,
        "tokens_in": task.tokens_in,
        "tokens_out": task.tokens_out if task.started is not None else None,
        "finish_reason": task.finish_reason,
        "error": failure_body(task.failure) if task.failure else None,
        "started_at_ms": task.started_ms,
        "first_token_at_ms": task.first_token_ms,
        "ended_at_ms": task.ended_ms,
        "transcript_id": task.transcript_id,
    }
    if waiting is not None:
        optional["queue_position"], optional["predicted_start_ms"], optional["waiting_for"] = waiting
    body.update((key, value) for key, value in optional.items() if value is not None)
    return body


def session_body(session: Session, turns_max: int, ttl_left_s: float) -> dict[str, Any]:
    budgets, kv_bytes = budgets_body(session.account), session.kv_bytes
    return {
        "ttl_ms_remaining": int(ttl_left_s * 1000),
        "turns": session.turns,
        "turns_max": turns_max,
        "kv_warmth": session.kv_warm,
        **({"kv_bytes": kv_bytes} if kv_bytes is not None else {}),
        **({"budgets": budgets} if budgets else {}),
    }


def budgets_body(account: Account) -> dict[str, int | float]:
    """What is left of each configured budget."""
    if account.budget.unlimited:
        return {}
    left = account.remaining()
    body: dict[str, int | float] = {}
    if "tokens" in left:
        body["tokens_remaining"] = left["tokens"]
    if "time" in left:
        body["time_remaining_ms"] = left["time"]
    if "cost" in left:
        body["cost_remaining"] = left["cost"] / MICRO
    return body


def budget_headers(account: Account | None) -> list[tuple[bytes, bytes]]:
    """The budget headers of a 202 and of a stream; none for a budget that is not configured."""
    if account is None or account.budget.unlimited:
        return []
    left = account.remaining()
    headers = []
    if "tokens" in left:
        headers.append((b"x-budget-tokens-remaining", b"%d" % left["tokens"]))
    if "time" in left:
        headers.append((b"x-budget-time-remaining-ms", b"%d" % left["time"]))
    if "cost" in left:
        whole, part = divmod(left["cost"], MICRO)
        headers.append((b"x-budget-cost-remaining", b"%d.%06d" % (whole, part)))
    return headers
