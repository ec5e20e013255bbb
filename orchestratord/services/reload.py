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

from orchestratord.domain.errors import Conflict, InvalidParams, StorageUnavailable
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.modelref import is_reference
from orchestratord.domain.operation import Fault, Model, Operation
from orchestratord.domain.pool import Pool, Replica
from orchestratord.domain.residency import Claim
from orchestratord.ports import Clock, ModelFiles, ModelUnavailable, Telemetry
from orchestratord.services.durability import durable
from orchestratord.services.members import Down, ReplicaSpec
from orchestratord.services.operations import Operations
from orchestratord.services.replicas import Replicas
from orchestratord.services.residents import Residents
from orchestratord.services.room import Room
from orchestratord.services.trust import Trust


@dataclass(frozen=True, slots=True)
class ReloadSettings:
    """`drain_s`: what running tasks get before they are ended; `load_s`: what a model gets to come up, and what room
    for it gets to become free."""

    drain_s: float = 300.0
    load_s: float = 600.0


class NoRoom(Exception):
    """The new model does not fit, whoever makes room for it."""


class Reloads:
    """`swapped` is called after each swap: what was remembered of the old model is void."""

    def __init__(
        self,
        operations: Operations,
        core: Lodging,
        replicas: Replicas,
        files: ModelFiles,
        trust: Trust,
        residents: Residents,
        room: Room,
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
        self._residents = residents
        self._room = room
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings
        self._swapped = swapped

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
        await self._residents.settled(pool)
        claim = self._room.successor(pool.stay.claim, old, new)
        beside = self._core.book(pool, claim, self._room.capacity)
        try:
            await self._change(pool, model, old, new, claim, beside=beside)
        finally:
            self._core.give_back(pool)

    async def _change(
        self,
        pool: Pool,
        model: Model,
        old: list[ReplicaSpec],
        new: list[ReplicaSpec],
        claim: Claim,
        *,
        beside: bool,
    ) -> None:
        was_draining, was_loaded = pool.draining, pool.stay.phase == "in"
        shadows: list[Replica] = []
        try:
            if not beside:
                await self._make_room(pool, claim)
            self._core.advance(pool, "preloading")
            shadows = await self._bring_up(pool, new)
            ticket = self._core.commit(pool, model)
            await durable(ticket)
        except Exception as error:  # also a bug: whatever it was, the old model has to serve
            await self._undo(pool, shadows, old, restore=was_loaded and not beside, draining=was_draining)
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
        taken = self._room.claim(self._replicas.specs(pool), self._replicas.pids(pool))
        self._core.move_in(pool, self._clock.now(), taken)
        self._operations.conclude(pool, "succeeded", beside=beside)

    async def _model(self, pool: Pool, ref: str, old: list[ReplicaSpec]) -> Model:
        """Raises ModelUnavailable."""
        self._core.advance(pool, "fetching")
        if (named := self._alias(ref)) is not None:
            specs = self._replicas.specs(named)
            path = next((spec.process.model_path for spec in specs if spec.process is not None), None)
            ref = named.spec.model_ref
            if path is not None and is_reference(path):  # it has not come up yet
                path = await self._files.resolve(path)
        else:
            path = await self._files.resolve(ref) if any(spec.process for spec in old) else None
        self._core.advance(pool, "verifying")
        if path is None:
            return Model(ref)
        digest = await self._files.verify(path)
        return Model(ref, path, await self._trust.vet(pool, ref, path) or digest)

    async def _make_room(self, pool: Pool, claim: Claim) -> None:
        """Nothing of the old model is left in memory, and the new one has its room. Raises NoRoom."""
        self._core.hold(pool, draining=True)
        self._core.advance(pool, "draining")
        self._telemetry.count("drain_events_total", pool_id=pool.id, reason="reload")
        pool.opens_at = ends = self._clock.now() + self._settings.drain_s
        await self._operations.emptied(pool, ends, f"Pool {pool.id} is being reloaded, and could wait no longer.")
        for replica in pool.replicas.values():
            await self._replicas.stand_down(replica)
            self._core.replica_loading(pool.id, replica, "made room for a reload")
        there: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def told(room: bool) -> None:
            if not there.done():
                there.set_result(room)

        pool.opens_at = self._clock.now() + pool.stay.load_s
        self._core.move_out(pool, claim, told, self._clock.now())
        try:
            async with self._clock.limit(self._settings.load_s):
                room = await there
        except TimeoutError:
            room = False
        if not room:
            raise NoRoom("the new model does not fit into memory beside what has to stay there")

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
        self, pool: Pool, shadows: list[Replica], old: list[ReplicaSpec], *, restore: bool, draining: bool
    ) -> None:
        """As if nothing had been tried; `restore`: the old model was loaded, and had to go."""
        for replica in shadows:
            await self._replicas.retire(pool.id, replica)
        if restore:
            self._core.move_in(pool, self._clock.now())
            back = [self._replicas.bring_back(*pair) for pair in zip(old, pool.replicas.values(), strict=True)]
            with suppress(TimeoutError):  # it is tried on and on; only this wait has an end
                async with self._clock.limit(self._settings.load_s):
                    await asyncio.gather(*back, return_exceptions=True)
        self._core.hold(pool, draining=draining)

    def _fault(self, code: str, error: Exception) -> Fault:
        tail = error.tail if isinstance(error, Down) else ()
        return Fault(code, str(error) or type(error).__name__, self._clock.wall_ms(), tail)


def _code(error: Exception) -> str:
    if isinstance(error, StorageUnavailable):
        return error.code
    if isinstance(error, Down):
        return error.code
    return "POOL_UNAVAILABLE" if isinstance(error, NoRoom | TimeoutError) else "INTERNAL"
