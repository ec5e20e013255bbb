"""Engines by the names the configuration gives: drivers of servers, and mocks in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from orchestratord.config import ConfigError, Settings
from orchestratord.infra.engines import registry
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.ports import Clock, Engine
from orchestratord.services.members import ReplicaSpec


class Engines:
    """`made`: mocks by pool, and by replica or `replica@model`; whoever puts one there first has it used."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._pools = settings.pools
        self._clock = clock
        self._drivers = drivers(settings)
        self.made: dict[tuple[str, str], MockEngine] = {}

    def connect(self, spec: ReplicaSpec, url: str) -> Engine:
        """A client of the server at `url`, or the mock in its place: one for each replica and model."""
        pool = next(p for p in self._pools if p.id == spec.pool_id)
        replica = next(r for r in pool.replicas if r.id == spec.id)
        if replica.mock is not None:
            model = spec.model.ref if spec.model is not None else pool.model
            key = (pool.id, replica.id if spec.model is None else f"{replica.id}@{model}")
            if key not in self.made:
                mock = replica.mock
                self.made[key] = MockEngine(
                    url,
                    clock=self._clock,
                    engine=pool.engine,
                    model_id=model,
                    slots=mock.slots,
                    ctx=mock.ctx,
                    token_ms=mock.token_ms,
                    prefill_ms=mock.prefill_ms,
                    load_ms=mock.load_ms,
                )
            self.made[key].start()
            return self.made[key]
        key_name = replica.api_key_env
        api_key = os.environ.get(key_name) if key_name else None
        make = self._drivers[pool.driver or pool.engine]
        process = replica.process
        known = {} if process is None else {"slots": process.slots, "ctx": process.ctx, "process": spec.process}
        options = registry.options(make, known, replica.options)
        engine: Engine = make(url, clock=self._clock, api_key=api_key, **options)
        return engine


def drivers(settings: Settings) -> dict[str, Callable[..., Any]]:
    """By name, every driver the pools need. Raises ConfigError for one that is not there or cannot do what is asked."""
    found: dict[str, Callable[..., Any]] = {}
    for pool in settings.pools:
        name = pool.driver or pool.engine
        real = [replica for replica in pool.replicas if replica.mock is None]
        try:
            if real or not pool.replicas:
                found[name] = registry.driver(name)
            for replica in real:
                registry.check(name, found[name], replica.options, starts=replica.process is not None)
        except registry.DriverError as error:
            raise ConfigError(f"pool {pool.id!r}: {error}") from None
    return found
