"""A run: one task on one lease, from the engine call to the slot's return. It never raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestratord.domain.core import Core
from orchestratord.domain.outcome import Failure, Usage
from orchestratord.domain.pool import Lease
from orchestratord.domain.request import Sampling
from orchestratord.domain.task import Task
from orchestratord.ports import Clock, Engine, EngineError, Job, Telemetry
from orchestratord.services.narration import DEFAULT_PROFILE

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


class Runs:
    """Executes leases. `engine_of` finds the engine behind one; `suspect` is told of engines that misbehave."""

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        engine_of: Callable[[Lease], Engine | None],
        suspect: Callable[[Lease, str], None],
        profiles: dict[str, Sampling],
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._engine_of = engine_of
        self._suspect = suspect
        self._profiles = profiles
        self._given_up = False

    def bind(self, core: Core) -> None:
        self._core = core

    def give_up(self) -> None:
        """The daemon goes away: a task without output is left as it stands, to wait again after the restart."""
        self._given_up = True

    async def run(self, lease: Lease) -> None:
        """Stream the lease's task into its log, then settle once, whatever happened."""
        outcome: dict[str, Any] = {"failure": self._failure(lease.task, "INTERNAL", "A bug ended the run.")}
        engine = self._engine_of(lease)
        try:
            if engine is None:
                raise EngineError("lost", "the replica went away before the task reached it")
            outcome = await self._stream(engine, lease)
            if lease.task.terminal:
                outcome["slot_free"] = await self._freed(engine, lease)
        except asyncio.CancelledError:
            # Aborted: the task is over already, only the slot is still to be proven free.
            if engine is not None and lease.task.terminal:
                outcome["slot_free"] = await self._freed_unless_cancelled(engine, lease)
        except EngineError as error:
            code, retriable = FAILURES[error.kind]
            outcome = {"failure": self._failure(lease.task, code, error.message, retriable)}
            if error.kind != "refused":
                self._suspect(lease, str(error))
        except Exception as error:  # the last resort of the run: a bug must not leak a slot
            self._telemetry.event("run_failed", "a bug ended a run", error=repr(error), job_id=lease.task.task_id)
        finally:
            if not self._given_up or lease.task.terminal:
                self._core.finish(lease, self._clock.now(), self._clock.wall_ms(), **outcome)

    async def _stream(self, engine: Engine, lease: Lease) -> dict[str, Any]:
        core, clock = self._core, self._clock
        async with engine.stream(self._job(lease)) as chunks:
            async for chunk in chunks:
                if not core.output(lease, chunk.texts, chunk.results, chunk.tokens_out, clock.now(), clock.wall_ms()):
                    break
                if chunk.end is not None:
                    end = chunk.end
                    return {
                        "finish_reason": end.finish_reason,
                        "usage": Usage(end.tokens_in, end.tokens_out),
                    }
        if lease.task.terminal:
            return {}
        raise EngineError("lost", "the stream stopped before the engine said it was done")

    def _job(self, lease: Lease) -> Job:
        task = lease.task
        request = task.request
        profile = self._profiles[request.sampler_profile_version or DEFAULT_PROFILE]
        given = {k: v for k in Sampling.__slots__ if (v := getattr(request.sampling, k)) is not None}
        return Job(
            workload=request.workload,
            max_tokens=request.max_tokens,
            seed=task.admitted.seed,
            prompt=request.prompt or "",
            inputs=request.inputs or (),
            sampling=replace(profile, **given),
            keep_cache=request.kv_hint != "cold",
            slot=lease.slot,
        )

    @staticmethod
    def _failure(task: Task, code: str, message: str, retriable: bool = False) -> Failure:
        return Failure(code, message, task.request.engine, retriable)

    async def _freed_unless_cancelled(self, engine: Engine, lease: Lease) -> bool:
        try:
            return await self._freed(engine, lease)
        except asyncio.CancelledError:  # shutdown: nothing will be leased again
            return False

    async def _freed(self, engine: Engine, lease: Lease) -> bool:
        """Whether the engine has let go of an aborted job: asks until it has, at most ABORT_LIMIT_S."""
        give_up = self._clock.now() + ABORT_LIMIT_S
        pause = 0.02
        while True:
            try:
                busy = await engine.busy()
            except EngineError:
                return True  # nothing runs on an engine that does not answer; health decides its fate
            if busy is None or lease.slot not in busy:
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
