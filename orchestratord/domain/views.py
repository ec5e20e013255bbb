"""Plain documents made of a task: the terminal event's payload, the transcript's source, the placement log."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.facts import TranscriptSource
from orchestratord.domain.placement import Decision
from orchestratord.domain.pool import Pool
from orchestratord.domain.task import Task

WHY_CHARS = 128  # of `waiting_for`, as the contract bounds it


def terminal_payload(task: Task) -> dict[str, Any]:
    """Payload of the `end` or `error` event."""
    if task.failure is None:
        return {
            "tokens_out": task.tokens_out,
            "decode_ms": task.decode_ms,
            "finish_reason": task.finish_reason,
        }
    f = task.failure
    payload: dict[str, Any] = {
        "code": f.code,
        "message": f.message,
        "engine": f.engine,
        "retriable": f.retriable,
    }
    if f.retry_after_ms is not None:
        payload["retry_after_ms"] = f.retry_after_ms
    if f.details:
        payload["details"] = f.details
    return payload


def transcript_source(task: Task) -> TranscriptSource:
    """What the transcript artifact will be made of; never the prompt."""
    metadata: dict[str, Any] = {
        "engine": task.request.engine,
        "engine_version": task.engine_version,
        "model_ref": task.request.model_ref,
        "model_digest": task.model_digest,
        "profile": task.profile,
        "pool_id": task.pool_id,
        "replica_id": task.replica_id,
        "seed": task.admitted.seed,
        "determinism_class": task.determinism_class,
        "placement": decision_view(task.admitted.decision),
        "timings": {
            "created_at_ms": task.admitted.created_ms,
            "started_at_ms": task.started_ms,
            "first_token_at_ms": task.first_token_ms,
            "ended_at_ms": task.ended_ms,
        },
        "prompt_sha256": task.admitted.prompt_sha256,
        "prompt_tokens": task.tokens_in,
    }
    tags = ("sse", "stream", f"task:{task.task_id}", f"session:{task.session_id}")
    assert task.ended_ms is not None
    return TranscriptSource(task.log.raw(), tags, metadata, task.ended_ms)


def decision_view(decision: Decision) -> dict[str, Any]:
    """A placement decision as TaskStatus and the transcript show it."""
    return {
        "considered": decision.considered,
        "filters": list(decision.filters),
        "tie_breakers": list(decision.tie_breakers),
        "pinned": decision.pinned,
        "fallback_used": decision.fallback_used,
    }


def waiting_for(pool: Pool) -> str | None:
    """Why a queued task waits, when it is not only for its turn."""
    running = pool.operation is not None and not pool.operation.over
    if pool.draining:
        return "reload" if running and pool.operation is not None and pool.operation.kind == "reload" else "resume"
    stay = pool.stay
    if pool.spec.on_demand and stay.yielding:
        return f"yield: {', '.join(stay.waits_for)}"[:WHY_CHARS]
    if pool.spec.on_demand and stay.phase != "in":
        return f"room: {', '.join(stay.waits_for)}"[:WHY_CHARS] if stay.waits_for else "load"
    return None if any(r.available for r in pool.replicas.values()) else "replica"
