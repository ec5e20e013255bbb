"""Recovery: what a task becomes after a restart, as a pure function of its journaled facts.

`Admitted` alone: nothing of it was ever sent, so it waits again at its old place. `Started` without `Finished`:
tokens may have been seen, so it is never run again; it ends in WORKER_RESET, under an id above any it can have
used. `Finished`: it is kept for replay until retention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestratord.domain.facts import JournaledTask
from orchestratord.domain.log import EventLog
from orchestratord.domain.outcome import Failure, TaskState, Usage
from orchestratord.domain.task import Task

Split = Callable[[bytes], Sequence[bytes]]  # encoded frames -> single frames

INTERRUPTED = (
    "The daemon stopped while this task was running. What it had produced is kept; "
    "submit it anew under a fresh task_id."
)


def rebuild(journaled: JournaledTask, split: Split, now: float, wall_ms: int) -> Task:
    """The task as its facts describe it. Monotonic times are derived from wall times; nothing else reads those.

    What happened is past: a wall clock that was set back prolongs nothing beyond what was asked for.
    """
    admitted, started, finished = journaled.admitted, journaled.started, journaled.finished

    def monotonic(at_ms: int) -> float:
        return now - max(0, wall_ms - at_ms) / 1000

    log = EventLog()
    log.append(admitted.started_frame)
    frames: Sequence[object]
    if journaled.left is not None:
        frames = journaled.left
        log.leave_out(journaled.left)
    else:
        frames = pieces = split(journaled.frames)
        for frame in pieces:
            log.append(frame)
    if started is None and finished is None:
        log.show(1)  # what it may produce is gated by its `Started` as ever
    else:
        log.open()
    created = monotonic(admitted.created_ms)
    task = Task(admitted, log, created, created + admitted.request.deadline_ms / 1000, admitted.determinism_class)
    task.committed = task.recovered = True
    task.journaled = log.size
    if started is not None:
        task.move(TaskState.STARTING)
        task.move(TaskState.RUNNING)
        task.pool_id = started.pool_id
        task.replica_id, task.engine_version = started.replica_id, started.engine_version
        task.model_digest = started.model_digest
        task.started_ms, task.first_token_ms = started.started_ms, started.first_token_ms
        task.started, task.first_token = monotonic(started.started_ms), monotonic(started.first_token_ms)
        if admitted.request.workload == "completion":  # the engine never said: a frame holds at least one token
            task.token_frames = len(frames)
            task.usage = Usage(None, len(frames), 0)
    if finished is not None:
        log.seal()
        task.state = finished.state
        task.usage = finished.usage
        task.finish_reason = finished.finish_reason  # type: ignore[assignment]
        task.failure = finished.failure
        task.ended_ms, task.ended = finished.ended_ms, monotonic(finished.ended_ms)
        task.transcript_id = journaled.transcript_id
        log.close(finished.terminal_frame, finished.terminal_id)
        log.reveal()
        if journaled.left is not None:
            log.evict()
    return task


def interruption(task: Task) -> tuple[Failure, int]:
    """How an interrupted task ends: the failure, and an event id it cannot have used before."""
    return Failure("WORKER_RESET", INTERRUPTED, task.request.engine, retriable=True), task.request.max_events + 1
