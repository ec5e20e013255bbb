"""Sweeps: what is due for many tasks at once. One timer each, and the fast one only while something runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestratord.domain.core import Core
from orchestratord.domain.outcome import Failure
from orchestratord.domain.pool import Lease
from orchestratord.ports import Clock, Journal, JournalUnavailable, Timer

FLUSH_S = 0.25
RETENTION_S = 10.0


@dataclass(frozen=True, slots=True)
class Watchdogs:
    """Longest silences and the longest run of a pool's tasks, in seconds; 0 is off (OC-CORE-1022)."""

    first_token_s: float = 120.0
    idle_s: float = 60.0
    wall_s: float = 0.0

    def verdict(self, lease: Lease, now: float) -> tuple[str, bool] | None:
        """Why this task has to be given up, and whether the engine is to blame; None if it has not."""
        task = lease.task
        if task.terminal or task.started is None or task.last_output is None:
            return None
        if self.wall_s and now - task.started >= self.wall_s:
            return f"It ran for {self.wall_s:g} s, the limit of pool {lease.pool.id}.", False
        if task.first_token is None:
            if self.first_token_s and now - task.started >= self.first_token_s:
                return f"The engine gave no token within {self.first_token_s:g} s.", True
        elif self.idle_s and now - task.last_output >= self.idle_s:
            return f"The engine gave nothing for {self.idle_s:g} s.", True
        return None


class Sweeps:
    def __init__(
        self,
        core: Core,
        clock: Clock,
        journal: Journal,
        watchdogs: dict[str, Watchdogs],
        blame: Callable[[Lease, str], None],
    ) -> None:
        self._core = core
        self._clock = clock
        self._journal = journal
        self._trimming: asyncio.Future[None] | None = None
        self._watchdogs = watchdogs
        self._blame = blame
        self._running: Timer | None = None
        self._retention: Timer | None = None

    def start(self) -> None:
        self._retention = self._clock.call_at(self._clock.now() + RETENTION_S, self._retain)

    def stop(self) -> None:
        for timer in (self._running, self._retention):
            if timer is not None:
                timer.cancel()
        if self._trimming is not None:
            self._trimming.cancel()

    def leased(self) -> None:
        """Something runs: sweep it until nothing does."""
        if self._running is None:
            self._running = self._clock.call_at(self._clock.now() + FLUSH_S, self._sweep)

    def _trim(self) -> None:
        """Finished logs beyond the memory they may take are read from the journal from then on."""
        if self._core.tasks.log_bytes > self._core.limits.log_bytes and self._trimming is None:
            self._trimming = asyncio.ensure_future(self._evict())
            self._trimming.add_done_callback(lambda _: setattr(self, "_trimming", None))

    async def _evict(self) -> None:
        tasks = self._core.tasks
        while tasks.log_bytes > self._core.limits.log_bytes and (task := tasks.oldest_log()) is not None:
            try:
                stored = await self._journal.log(task.task_id)
            except JournalUnavailable:
                return
            # Under a backlog frames are left out of the journal: such a log exists in memory only.
            if stored is not None and len(stored) == task.log.size and not task.log.watchers:
                task.log.evict()

    def _sweep(self) -> None:
        self._running = None
        now, wall_ms = self._clock.now(), self._clock.wall_ms()
        leases = [lease for pool in self._core.pools.values() for lease in pool.leases if not lease.quarantined]
        for lease in leases:
            self._core.flush(lease.task, now)
            verdict = self._watchdogs[lease.pool.id].verdict(lease, now)
            if verdict is not None:
                why, silent = verdict
                if silent:  # its health may be fine: only its tasks tell
                    self._blame(lease, why)
                failure = Failure("DECODE_TIMEOUT", why, lease.task.request.engine, retriable=True)
                self._core.fail(lease.task, failure, now, wall_ms, "watchdog")
        self._trim()
        if leases:
            self.leased()

    def _retain(self) -> None:
        self._core.forget(self._clock.now())
        self._trim()
        self.start()
