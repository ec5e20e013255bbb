"""Residents: carries out what was decided about who is in memory, and says how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from orchestratord.domain.lodging import Lodging
from orchestratord.domain.operation import Fault
from orchestratord.domain.pool import Pool
from orchestratord.ports import Clock, Telemetry
from orchestratord.services.members import Down, ReplicaSpec
from orchestratord.services.replicas import Replicas
from orchestratord.services.room import Room


class Residents:
    """`step` is called whenever something may have changed; loads and unloads go on behind it."""

    def __init__(
        self, core: Lodging, replicas: Replicas, room: Room, clock: Clock, telemetry: Telemetry, load_limit_s: float
    ) -> None:
        self._core = core
        self._replicas = replicas
        self._room = room
        self._clock = clock
        self._telemetry = telemetry
        self._load_limit_s = load_limit_s
        self._work: dict[str, asyncio.Task[None]] = {}  # the last load or unload of each pool
        self._stopped = False

    def start(self, specs: Iterable[ReplicaSpec]) -> None:
        """Take over the pools of these replicas. Those that are always loaded come up as far as there is room."""
        self._replicas.register(specs)
        for pool in self._core.pools.values():
            self._core.lodge(pool, self._room.claim(self._replicas.specs(pool)))

    def step(self) -> None:
        if self._stopped:
            return
        plan = self._core.arrange(self._room.capacity, self._clock.now(), self._clock.wall_ms())
        for pool in (self._core.pools[i] for i in plan.load):
            if pool.spec.on_demand:
                self._begin(pool, "load", self._load(pool))
            else:
                self._replicas.supervise(pool)
        for pool_id, why in plan.unload:
            pool = self._core.pools[pool_id]
            self._begin(pool, "unload", self._unload(pool, why))

    def _begin(self, pool: Pool, what: str, work: Coroutine[Any, Any, None]) -> None:
        self._work[pool.id] = asyncio.get_running_loop().create_task(work, name=f"{what}-{pool.id}")

    async def _load(self, pool: Pool) -> None:
        begun = self._clock.now()
        if pool.stay.came_back_soon(begun):
            self._telemetry.count("orchestratord_model_thrash_total", pool_id=pool.id)
        try:
            async with self._clock.limit(self._load_limit_s):
                await self._replicas.load(pool)
        except Exception as error:  # whatever it was, nothing of it may be left, and those who wait must learn of it
            await self._stand_down(pool)
            late = f"its model did not load within {self._load_limit_s:g} s"
            reason = late if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            tail = error.tail if isinstance(error, Down) else ()
            code = error.code if isinstance(error, Down) else "POOL_UNAVAILABLE"
            now, wall_ms = self._clock.now(), self._clock.wall_ms()
            self._core.load_failed(pool, Fault(code, reason, wall_ms, tail), now, wall_ms)
            self._telemetry.count("orchestratord_model_loads_total", pool_id=pool.id, outcome="failed")
            self._telemetry.event("model_not_loaded", f"pool {pool.id}: {reason}", pool_id=pool.id)
            return
        took_s = self._clock.now() - begun
        claim = self._room.claim(self._replicas.specs(pool), self._replicas.pids(pool))
        self._core.loaded(pool, took_s, claim, self._clock.now())
        self._telemetry.count("orchestratord_model_loads_total", pool_id=pool.id, outcome="ready")
        self._telemetry.observe("orchestratord_model_load_ms", took_s * 1000, pool_id=pool.id)
        self._telemetry.event(
            "model_loaded", f"pool {pool.id}: loaded in {took_s:.1f} s", pool_id=pool.id, load_ms=int(took_s * 1000)
        )

    async def _unload(self, pool: Pool, why: str) -> None:
        await self._stand_down(pool)
        self._core.unloaded(pool, self._clock.now())
        self._telemetry.count("orchestratord_model_unloads_total", pool_id=pool.id, reason=why)
        self._telemetry.event("model_unloaded", f"pool {pool.id}: {why}", pool_id=pool.id, reason=why)

    async def _stand_down(self, pool: Pool) -> None:
        await asyncio.gather(*(self._replicas.stand_down(replica) for replica in pool.replicas.values()))

    async def settled(self, pool: Pool) -> None:
        """Return when the pool is neither being loaded nor unloaded."""
        while pool.stay.phase in ("coming", "leaving"):
            await asyncio.shield(self._work[pool.id])

    async def stop(self) -> None:
        self._stopped = True
        for work in self._work.values():
            work.cancel()
        await asyncio.gather(*self._work.values(), return_exceptions=True)
