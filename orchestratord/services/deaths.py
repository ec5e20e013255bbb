"""Deaths of replicas: why one fell, who is told, and when it is given up."""

from __future__ import annotations

from contextlib import suppress

from orchestratord.domain.core import Core
from orchestratord.domain.diagnosis import Diagnosis, diagnose
from orchestratord.domain.operation import Fault
from orchestratord.ports import Clock, EngineError, ReplicaProcess, Telemetry
from orchestratord.services.members import Down, Member

LAST_WORDS_S = 0.5  # what an engine whose connection broke gets to die
TAIL_LINES = 20


class Deaths:
    def __init__(self, core: Core, clock: Clock, telemetry: Telemetry) -> None:
        self._core = core
        self._clock = clock
        self._telemetry = telemetry

    async def fell(self, member: Member, error: Exception, *, was_ready: bool) -> Down:
        """The replica is down, as health and metrics say from now on; what is returned tells why."""
        spec, process = member.spec, member.process
        if process is not None and isinstance(error, EngineError) and error.kind == "lost":
            self._core.replica_loading(spec.pool_id, member.replica, "its connection broke")  # it gets no more work
            await self._last_words(process)
        if process is not None and process.returncode is not None:
            self._core.replica_loading(spec.pool_id, member.replica, "it has exited")
            await process.wait()  # its last lines may still be on their way, and they tell why
        tail = tuple(process.tail()[-TAIL_LINES:]) if process is not None else ()
        found = Diagnosis("POOL_UNAVAILABLE", str(error) or type(error).__name__)
        if process is not None and process.returncode is not None:
            found = diagnose(process.returncode, tail)
        elif spec.process is not None and process is None:
            found = diagnose(None, (), found.message)
        fault = Fault(found.code, found.message, self._clock.wall_ms(), tail)
        self._core.replica_failed(spec.pool_id, member.replica, fault)
        if spec.process is not None:
            self._telemetry.count("orchestratord_engine_faults_total", pool_id=spec.pool_id, code=found.code)
        self._telemetry.event(
            "replica_down", f"{spec.pool_id}/{spec.id}: {found.message}", pool_id=spec.pool_id, replica_id=spec.id
        )
        name = "orchestratord_replica_losses_total" if was_ready else "orchestratord_preloads_total"
        labels = {} if was_ready else {"outcome": "failed"}
        self._telemetry.count(name, pool_id=spec.pool_id, **labels)
        return Down(found.message, tail, found.code)

    async def _last_words(self, process: ReplicaProcess) -> None:
        """A connection that broke may be the first sign of a death: give it a moment to show."""
        with suppress(TimeoutError):
            async with self._clock.limit(LAST_WORDS_S):
                await process.wait()

    def given_up(self, member: Member) -> None:
        """It was restarted too often, and stays down until an operator wants it back."""
        spec, replica, restarts = member.spec, member.replica, member.restarts
        last = replica.last_error
        message = (
            f"It was restarted {restarts.limit} times within {restarts.window_s:g} s and stays down until the pool is "
            f"resumed or reloaded. Last: {last.message if last is not None else replica.reason}"
        )
        fault = Fault("RESTART_STORM", message, self._clock.wall_ms(), last.log_tail if last is not None else ())
        self._core.replica_failed(spec.pool_id, replica, fault)
        self._telemetry.event(
            "replica_given_up", f"{spec.pool_id}/{spec.id}: {message}", pool_id=spec.pool_id, replica_id=spec.id
        )
