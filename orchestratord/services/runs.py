"""A run: one task on one lease, from the engine call to the slot's return. It never raises."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.operation import Fault
from orchestratord.domain.outcome import Failure, TaskState, Usage
from orchestratord.domain.pool import Lease, Replica
from orchestratord.domain.request import AS_THE_PROFILE, Sampling, TaskRequest
from orchestratord.domain.task import Task
from orchestratord.ports import Chunk, Clock, Deliver, Engine, EngineError, Job, JobEnd, Telemetry
from orchestratord.services.late import prepared, sized
from orchestratord.services.tracing import Tracing

ATTEMPTS = 3  # leases a task may have as long as no output of it was seen
RETRY_S, RETRY_MAX_S = 0.25, 4.0  # pause before the second attempt, at most; doubles; full jitter
UNPROVEN = frozenset({"timeout", "protocol"})  # we left while the engine may still be working
ABORT_LIMIT_S = 10.0  # an engine that still works on an aborted job after this gets its slot quarantined

# kind of EngineError -> (code of the `error` event, retriable)
FAILURES: dict[str, tuple[str, bool]] = {
    "refused": ("INVALID_PARAMS", False),
    "full": ("REPLICA_EXHAUSTED", True),
    "lost": ("WORKER_RESET", True),
    "timeout": ("DECODE_TIMEOUT", True),
    "protocol": ("WORKER_RESET", True),
    "failed": ("WORKER_RESET", True),
}


class _Passage:
    """The way of an engine's output into the log of one lease's task. `end`: once the engine has said that it is done.

    There is one for each open stream. A text that comes alone goes past it (`Inlet`).
    """

    __slots__ = ("_epoch_s", "_lease", "_now", "_output", "end")

    def __init__(self, core: Core, lease: Lease, clock: Clock) -> None:
        self._output, self._now = core.output, clock.now
        self._lease = lease
        self._epoch_s = clock.wall_ms() / 1000 - clock.now()  # of the monotonic clock: looked up once, not per token
        self.end: JobEnd | None = None

    def take(self, chunk: Chunk) -> bool:
        self.end, moment = chunk.end, self._now()
        wall_ms = round((self._epoch_s + moment) * 1000)
        return self._output(self._lease, chunk.texts, chunk.results, chunk.tokens_out, moment, wall_ms)


class Runs:
    """Executes leases. `engine_of` finds the engine behind one; `suspect` is told of engines that misbehave;
    `as_task` returns in a Task."""

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        engine_of: Callable[[Lease], Engine | None],
        suspect: Callable[[Lease, str], None],
        profiles: dict[str, Sampling],
        jitter: Callable[[float], float],
        as_task: Callable[[], Awaitable[None]],
        tracing: Tracing | None = None,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._engine_of = engine_of
        self._suspect = suspect
        self._profiles = profiles
        self._jitter = jitter
        self._as_task = as_task
        self._tracing = tracing
        self._given_up = False
        self._proving: Counter[Replica] = Counter()
        self._defaults: dict[tuple[str, tuple[str, ...]], Sampling] = {}  # by profile and features of the engine

    def bind(self, core: Core) -> None:
        self._core = core

    def give_up(self) -> None:
        """The daemon goes away: a task without output is left as it stands, to wait again after the restart."""
        self._given_up = True

    async def run(self, lease: Lease) -> None:
        """Stream the lease's task into its log, then settle once, whatever happened."""
        task = lease.task
        outcome: dict[str, Any] | None = None
        again = False
        engine = self._engine_of(lease)
        try:
            if engine is None:
                raise EngineError("lost", "the replica went away before the task reached it")
            if not getattr(engine, "taskless", False):
                await self._as_task()
            request = task.request if sized(lease) else await prepared(engine, lease)
            passage = _Passage(self._core, lease, self._clock)
            deliver = Deliver(passage.take, self._core.inlet(lease).text)
            if self._tracing is None:
                await engine.run(self._job(lease, request), deliver)
            else:
                job = self._job(lease, request)
                await self._tracing.call(lease, job, engine.run, deliver, lambda: passage.end)
            if task.terminal:
                outcome = {"slot_free": await self._freed(engine, lease)}
            elif (end := passage.end) is None:
                raise EngineError("lost", "the stream stopped before the engine said it was done")
            else:
                outcome = {"finish_reason": end.finish_reason, "usage": Usage(end.tokens_in, end.tokens_out)}
        except asyncio.CancelledError:
            # Aborted: the task is over already, only the slot is still to be proven free.
            if engine is not None and task.terminal:
                outcome = {"slot_free": await self._freed_unless_cancelled(engine, lease)}
        except EngineError as error:
            code, retriable = FAILURES[error.kind]
            outcome = {
                "failure": self._failure(task, code, error.message, retriable, getattr(error, "rule", None)),
                "slot_free": error.kind not in UNPROVEN,
            }
            if error.kind != "refused":
                self._suspect(lease, str(error))
                again = self._may_retry(task)
            if error.kind not in ("refused", "full"):
                self._blame(lease, str(error))
        except Exception as error:  # the last resort of the run: a bug must not leak a slot
            self._telemetry.event("run_failed", "a bug ended a run", error=error, job_id=task.task_id)
        finally:
            if again and outcome is not None:
                self._retry(lease, outcome["slot_free"])
            elif not self._given_up or task.terminal:
                if outcome is None:
                    outcome = {"failure": self._failure(task, "INTERNAL", "A bug ended the run.")}
                self._core.finish(lease, self._clock.now(), self._clock.wall_ms(), **outcome)
        if engine is not None and lease.quarantined and await self._freed_unless_cancelled(engine, lease):
            self._core.release(lease)

    def _may_retry(self, task: Task) -> bool:
        """Whether the task may be tried again: nothing of it was seen, and it has an attempt left."""
        return task.state is TaskState.STARTING and task.attempts < ATTEMPTS and not self._given_up

    def _retry(self, lease: Lease, slot_free: bool) -> None:
        pause_s = self._jitter(min(RETRY_MAX_S, RETRY_S * 2 ** (lease.task.attempts - 1)))
        self._core.retry(lease, self._clock.now() + pause_s, slot_free=slot_free)
        self._telemetry.count("orchestratord_task_retries_total", pool_id=lease.pool.id)
        self._telemetry.event(
            "task_retried",
            f"{lease.pool.id}/{lease.replica.id} failed it before any output; it will be tried again",
            job_id=lease.task.task_id,
            pool_id=lease.pool.id,
            replica_id=lease.replica.id,
        )

    def silent(self, lease: Lease, why: str) -> None:
        """A watchdog gives up on the engine behind this lease."""
        self._suspect(lease, why)
        self._blame(lease, why)

    def _blame(self, lease: Lease, why: str) -> None:
        """The engine failed the lease's task. Too often in a row, and its replica gets no more."""
        fault = Fault(
            "REPLICA_EXHAUSTED",
            f"{why}; too many tasks failed in a row, so it gets no work until a probe succeeds",
            self._clock.wall_ms(),
        )
        if self._core.blame(lease, fault, self._clock.now()):
            self._telemetry.count("orchestratord_breaker_trips_total", pool_id=lease.pool.id)
            self._telemetry.event(
                "breaker_opened",
                f"{lease.pool.id}/{lease.replica.id}: {fault.message}",
                pool_id=lease.pool.id,
                replica_id=lease.replica.id,
            )

    def _job(self, lease: Lease, request: TaskRequest) -> Job:
        return Job(
            workload=request.workload,
            max_tokens=request.max_tokens,
            seed=lease.task.admitted.seed,
            prompt=request.prompt or "",
            inputs=request.inputs or (),
            sampling=self._sampling(lease, request),
            keep_cache=not request.cold,
            slot=lease.slot,
        )

    def _sampling(self, lease: Lease, request: TaskRequest) -> Sampling:
        """The profile's values as far as this engine has knobs for them, and what the client asked for on top.

        A default that it has no knob for is none; what the client asked for was checked at admission.
        """
        profile, features = lease.pool.spec.profile_of(request), lease.replica.features
        defaults = self._defaults.get((profile, features))
        if defaults is None:
            foreign = {knob: None for knob in Sampling.__slots__ if knob not in features}
            defaults = self._defaults[profile, features] = replace(self._profiles[profile], **foreign)
        asked = request.sampling
        if asked is AS_THE_PROFILE or not (given := asked.given):
            return defaults
        return replace(defaults, **{knob: getattr(asked, knob) for knob in given})

    @staticmethod
    def _failure(task: Task, code: str, message: str, retriable: bool = False, rule: str | None = None) -> Failure:
        details = {"rule": rule} if rule is not None else None
        return Failure(code, message, task.request.engine, retriable, details=details)

    async def _freed_unless_cancelled(self, engine: Engine, lease: Lease) -> bool:
        try:
            return await self._freed(engine, lease)
        except asyncio.CancelledError:  # shutdown: nothing will be leased again
            return False

    def proving(self, replica: Replica) -> bool:
        """Whether an abort on it is being proven: it should not be asked more than that."""
        return self._proving[replica] > 0

    async def _freed(self, engine: Engine, lease: Lease) -> bool:
        """Whether the engine has let go of an aborted job: asks until it has, at most ABORT_LIMIT_S."""
        self._proving[lease.replica] += 1
        try:
            return await self._lets_go(engine, lease)
        finally:
            self._proving[lease.replica] -= 1
            self._proving += Counter()  # forgets what is zero

    async def _lets_go(self, engine: Engine, lease: Lease) -> bool:
        give_up = self._clock.now() + ABORT_LIMIT_S
        pause = 0.02
        while True:
            try:
                busy = await engine.busy()
            except EngineError as error:  # it may only be out of reach: health decides its fate
                self._suspect(lease, str(error))
                if (replica := lease.replica).state == "dead" or replica.incarnation != lease.incarnation:
                    return replica.kind == "process"  # our child is gone, and what it did with it
            else:
                if busy is None or lease.let_go(busy):
                    return True
            if self._clock.now() >= give_up:
                self._telemetry.event(
                    "slot_quarantined",
                    f"{lease.pool.id}/{lease.replica.id} ignores an abort; its slot is not used until it is idle",
                    pool_id=lease.pool.id,
                    replica_id=lease.replica.id,
                )
                return False
            await self._clock.sleep(pause)
            pause = min(pause * 2, 1.0)
