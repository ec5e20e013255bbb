"""Reload: another model for a pool, in two phases. Until the swap is journaled the old model is the one that counts.

resolve -> verify -> preload -> probe -> swap -> retire. The new model comes up beside the old one if memory allows,
which costs nobody anything; else the pool drains first and the old one makes room. Whatever fails, the old model serves
on or is brought back. A crash before the swap's fact boots the old model, after it the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from orchestratord.domain.control import Control
from orchestratord.domain.errors import Conflict, InvalidParams, StorageUnavailable
from orchestratord.domain.operation import Fault, Model, Operation
from orchestratord.domain.pool import Pool, Replica
from orchestratord.ports import Clock, HostMemory, ModelFiles, ModelUnavailable, Telemetry
from orchestratord.services.durability import durable
from orchestratord.services.members import Down, ReplicaSpec
from orchestratord.services.operations import Operations
from orchestratord.services.replicas import Replicas
from orchestratord.services.trust import Trust


@dataclass(frozen=True, slots=True)
class ReloadSettings:
    """`drain_s`: what running tasks get before they are ended; `load_s`: what a model gets to come up;
    `memory_bytes`: what all engines of the daemon may take together, None: what the host has."""

    drain_s: float = 300.0
    load_s: float = 600.0
    memory_bytes: int | None = None


class Reloads:
    """`swapped` is called after each swap: what was remembered of the old model is void."""

    def __init__(
        self,
        operations: Operations,
        core: Control,
        replicas: Replicas,
        files: ModelFiles,
        trust: Trust,
        memory: HostMemory,
        clock: Clock,
        telemetry: Telemetry,
        settings: ReloadSettings,
        swapped: Callable[[], object],
    ) -> None:
        self._operations = operations
        self._core = core
        self._replicas = replicas
        self._files = files
        self._trust = trust
        self._memory = memory
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings
        self._swapped = swapped
        self._promised: dict[str, int] = {}  # pool -> bytes its new model will take, while the old one is there

    async def reload(self, pool_id: str, ref: str) -> Operation:
        """Begin to change the model; returns once that is journaled.

        Raises NotFound, Conflict, InvalidParams (a reference that no policy allows), ModelDeprecated,
        UntrustedArtifact and StorageUnavailable.
        """
        pool = self._operations.pool(pool_id)
        if (known := self._operations.running(pool, "reload", ref, None)) is not None:
            return await self._operations.joined(pool, known)
        specs = self._replicas.specs(pool)
        if not specs or any(spec.model_is_foreign for spec in specs):
            raise Conflict(
                f"Pool {pool.id} has engines this daemon did not start: change their model where they were started.",
                pool_id=pool.id,
            )
        named = self._alias(ref)
        if named is None:
            self._check(pool, ref)
        self._trust.check(named.spec.model_ref if named is not None else ref)
        return await self._operations.begin(
            pool, "reload", lambda: self._work(pool, ref, specs), draining=pool.draining, to_ref=ref
        )

    def _check(self, pool: Pool, ref: str) -> None:
        try:
            self._files.check(ref)
        except ModelUnavailable as error:
            raise InvalidParams(str(error), rule="trust", pool_id=pool.id) from error

    def _alias(self, ref: str) -> Pool | None:
        """The pool whose model is meant when `ref` is no reference but the name of a pool."""
        return next((p for p in self._core.pools.values() if ref in (p.id, *p.spec.aliases)), None)

    # -- the two phases ----------------------------------------------------------------------------------
    async def _work(self, pool: Pool, ref: str, old: list[ReplicaSpec]) -> None:
        try:
            model = await self._model(pool, ref, old)
        except ModelUnavailable as error:
            self._operations.conclude(pool, "failed", self._fault(error.code, error))
            return
        new = [spec.serving(model) for spec in old]
        beside = self._fit_beside(pool, old, new)
        try:
            await self._change(pool, model, old, new, beside=beside)
        finally:
            self._promised.pop(pool.id, None)

    async def _change(
        self, pool: Pool, model: Model, old: list[ReplicaSpec], new: list[ReplicaSpec], *, beside: bool
    ) -> None:
        was_draining = pool.draining
        shadows: list[Replica] = []
        try:
            if not beside:
                await self._make_room(pool)
            self._core.advance(pool, "preloading")
            shadows = await self._bring_up(pool, new)
            ticket = self._core.commit(pool, model)
            await durable(ticket)
        except Exception as error:  # also a bug: whatever it was, the old model has to serve
            await self._undo(pool, shadows, old, beside=beside, draining=was_draining)
            self._operations.conclude(pool, "rolled_back", self._fault(_code(error), error))
            return
        former = self._core.swap(pool, model, shadows)
        self._swapped()
        for replica in shadows:
            self._replicas.adopt(replica)
        await self._operations.emptied(
            pool,
            self._clock.now() + self._settings.drain_s,
            f"Pool {pool.id} was reloaded, and the old model was kept for no longer than {self._settings.drain_s:g} s.",
            former,
        )
        await asyncio.gather(*(self._replicas.retire(pool.id, replica) for replica in former))
        self._operations.conclude(pool, "succeeded", beside=beside)

    async def _model(self, pool: Pool, ref: str, old: list[ReplicaSpec]) -> Model:
        """Raises ModelUnavailable."""
        self._core.advance(pool, "fetching")
        if (named := self._alias(ref)) is not None:
            specs = self._replicas.specs(named)
            path = next((spec.process.model_path for spec in specs if spec.process is not None), None)
            ref = named.spec.model_ref
        else:
            path = await self._files.resolve(ref) if any(spec.process for spec in old) else None
        self._core.advance(pool, "verifying")
        if path is None:
            return Model(ref)
        digest = await self._files.verify(path)
        return Model(ref, path, await self._trust.vet(pool, ref, path) or digest)

    async def _make_room(self, pool: Pool) -> None:
        self._core.hold(pool, draining=True)
        self._core.advance(pool, "draining")
        self._telemetry.count("drain_events_total", pool_id=pool.id, reason="reload")
        pool.opens_at = ends = self._clock.now() + self._settings.drain_s
        await self._operations.emptied(pool, ends, f"Pool {pool.id} is being reloaded, and could wait no longer.")
        for replica in pool.replicas.values():
            await self._replicas.stand_down(replica)
            self._core.replica_loading(pool.id, replica, "made room for a reload")

    async def _bring_up(self, pool: Pool, specs: list[ReplicaSpec]) -> list[Replica]:
        """Every replica of the new model, proven. Raises Down or TimeoutError, and then none of them is left."""

        def probing() -> None:
            self._core.advance(pool, "probing")

        trials = [asyncio.ensure_future(self._replicas.try_out(spec, probing)) for spec in specs]
        try:
            async with self._clock.limit(self._settings.load_s):
                return await asyncio.gather(*trials)
        except TimeoutError:
            raise TimeoutError(f"the new model did not come up within {self._settings.load_s:g} s") from None
        finally:
            if not all(trial.done() and not trial.cancelled() and trial.exception() is None for trial in trials):
                for trial in trials:
                    trial.cancel()
                done = await asyncio.gather(*trials, return_exceptions=True)
                for replica in done:
                    if isinstance(replica, Replica):
                        await self._replicas.retire(pool.id, replica)

    async def _undo(
        self, pool: Pool, shadows: list[Replica], old: list[ReplicaSpec], *, beside: bool, draining: bool
    ) -> None:
        """As if nothing had been tried."""
        for replica in shadows:
            await self._replicas.retire(pool.id, replica)
        if not beside:
            back = [self._replicas.bring_back(*pair) for pair in zip(old, pool.replicas.values(), strict=True)]
            with suppress(TimeoutError):  # it is tried on and on; only this wait has an end
                async with self._clock.limit(self._settings.load_s):
                    await asyncio.gather(*back, return_exceptions=True)
            self._core.hold(pool, draining=draining)

    # -- memory ------------------------------------------------------------------------------------------
    def _fit_beside(self, pool: Pool, old: list[ReplicaSpec], new: list[ReplicaSpec]) -> bool:
        """Whether the new model can be loaded while the old one serves; if so, that memory is promised to it."""
        need = sum(self._need(pool, before, after) for before, after in zip(old, new, strict=True))
        if self._settings.memory_bytes is not None:
            used = sum(self._used(other) for other in self._core.pools.values())
            if used + sum(self._promised.values()) + need > self._settings.memory_bytes:
                return False
        available = self._memory.available() if any(spec.process for spec in new) else None
        if available is not None and sum(self._promised.values()) + need > available:
            return False
        self._promised[pool.id] = need
        return True

    def _used(self, pool: Pool) -> int:
        """What the engines of a pool take: as declared, else as measured."""
        specs = self._replicas.specs(pool)
        declared = sum(spec.memory_bytes or 0 for spec in specs)
        return declared or sum(self._memory.resident(pid) or 0 for pid in self._replicas.pids(pool))

    def _need(self, pool: Pool, old: ReplicaSpec, new: ReplicaSpec) -> int:
        """What the new one will take: as declared, else what the old one takes with one file for the other."""
        if new.memory_bytes is not None:
            return new.memory_bytes
        if old.process is None or new.process is None:
            return 0
        size = self._memory.file_size
        share = self._used(pool) // max(1, len(pool.replicas))
        return max(share - size(old.process.model_path), 0) + size(new.process.model_path)

    def _fault(self, code: str, error: Exception) -> Fault:
        tail = error.tail if isinstance(error, Down) else ()
        return Fault(code, str(error) or type(error).__name__, self._clock.wall_ms(), tail)


def _code(error: Exception) -> str:
    if isinstance(error, StorageUnavailable):
        return error.code
    return "POOL_UNAVAILABLE" if isinstance(error, Down | TimeoutError) else "INTERNAL"
