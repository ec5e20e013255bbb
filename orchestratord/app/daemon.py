"""How a daemon lives: what it serves, how it starts, drains and stops."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Any

from orchestratord import mapping
from orchestratord.app.parts import Parts
from orchestratord.domain.outcome import Failure
from orchestratord.framework import App, Front
from orchestratord.handlers import Services, artifacts, catalog, operations, pools, sessions, tasks
from orchestratord.infra import prometheus
from orchestratord.infra.journal.remedy import remedy
from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.middleware import BodyLimit, Guard
from orchestratord.ports import JournalUnavailable
from orchestratord.services.sessions import Sessions
from orchestratord.services.tasks import Tasks
from orchestratord.wire import sse

_HANDLERS = (tasks, sessions, pools, catalog, artifacts, operations)


class Daemon(Parts):
    """One daemon: settings in, something a server can run out."""

    stopping = False
    failure: str | None = None  # why it could not start

    @cached_property
    def services(self) -> Services:
        """What handlers call."""
        return Services(
            admission=self.admission,
            tasks=Tasks(self.core, self.clock),
            streams=self.streams,
            sessions=Sessions(self.core, self.clock),
            pools=self.pools,
            operations=self.operations,
            reloads=self.reloads,
            artifacts=self.artifacts,
            catalog=self.catalog,
            metrics=lambda: (prometheus.CONTENT_TYPE, self.metrics.render()),
            readiness=self.not_ready,
        )

    @cached_property
    def asgi(self) -> App:
        """What a server serves. Compiled on first use: a daemon whose services are called directly needs none."""
        front = Front(
            Guard(mapping.access(self.settings)),
            BodyLimit(self.settings.server.max_body_bytes, self.clock),
            self.telemetry,
        )
        return App(handler_table(self.services), front, mapping.tracing_layer(self.tracing), self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        try:
            await self.start()
        except Exception as error:
            if self.failure is None:
                self.telemetry.event("start_failed", "an unforeseen exception ended the start", exc_info=error)
            raise
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Recover what the journal knows, then bring the replicas up in the background.

        Raises JournalUnavailable, and OSError when the artifacts cannot be listed.
        """
        try:
            journaled = await self.journal.open()
            if isinstance(self.store, FileArtifacts):
                await self.store.open()
        except JournalUnavailable as error:
            self.failure = str(error)  # the server's lifespan swallows the exception
            raise
        except OSError as error:
            folder = self.settings.data_path / "artifacts"
            self.failure = f"cannot open the artifacts in {folder}: {error.strerror}. {remedy(error, folder)}"
            raise
        now, wall_ms = self.clock.now(), self.clock.wall_ms()
        self.core.catalog.restore(self.journal.catalog())
        self.core.restore_pools(self.journal.changed_pools(), wall_ms)
        self.core.restore(journaled, self.journal.deleted_sessions(), sse.split, now, wall_ms)
        self.artifacts.recover(self.journal.transcripts(), self.core)
        self.residents.start(
            [
                mapping.replica_spec(p, r).serving(self.core.pools[p.id].model)
                for p in self.settings.pools
                for r in p.replicas
            ]
        )
        work = (self.artifacts.serve(self.core), self.retention.serve(), self.cache_bound.serve())
        self._keepers = [asyncio.ensure_future(one) for one in work]
        self.gauges.start()
        self.sweeps.start()
        self.catalog.start()
        self.telemetry.event("daemon_started", f"serving {len(self.core.pools)} pools", recovered=len(journaled))

    async def drain(self, grace_s: float) -> None:
        """Stop taking work; let what runs finish within the grace; end or cut every stream."""
        self.stopping = True
        self.admission.closed = True
        self.dispatch.pause()
        try:
            async with self.clock.limit(grace_s):
                await self.dispatch.drained()
        except TimeoutError:
            pass
        self.interrupt()

    def interrupt(self) -> None:
        """End what has shown output, or would be lost; the rest waits again after the restart. Ends every stream."""
        now, wall_ms = self.clock.now(), self.clock.wall_ms()
        survives = self.settings.journal.kind != "memory"
        for task in list(self.core.tasks.values()):
            if not task.terminal and not (survives and task.first_token is None):
                message = "The daemon is shutting down. Submit the task again under a fresh task_id when it is back."
                self.core.fail(
                    task, Failure("WORKER_RESET", message, task.request.engine, True), now, wall_ms, "shutdown"
                )
        self.streams.stop()

    async def stop(self) -> None:
        """Stop engines, archive what is done, close the stores."""
        self.dispatch.pause()
        self.sweeps.stop()
        self.interrupt()
        self.runs.give_up()
        self.dispatch.abort_all()
        await self.dispatch.drained()
        await self.catalog.stop()
        await self.operations.stop()
        await self.residents.stop()
        await self.gauges.stop()
        await self.replicas.stop()
        await self.models.close()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self.recorder.stop()
        await self.journal.close()
        if self.tracing is not None:
            await self.tracing.close()
        self.telemetry.event("daemon_stopped", "everything is down")

    def not_ready(self) -> list[str]:
        """Why the daemon should get no traffic now; empty when it should."""
        reasons = ["the daemon is shutting down"] if self.stopping else []
        if not self.journal.healthy:
            reasons.append("the journal cannot be written")
        if self.pressure.high():
            reasons.append("the memory it may use is nearly full")
        if not self.core.pools:
            reasons.append("no pool is configured")
        return reasons + self.pools.not_ready()


def handler_table(services: Services) -> dict[str, Callable[..., Awaitable[Any]]]:
    """Every public function of the handler modules under its name, bound to the services."""
    found: dict[str, Callable[..., Awaitable[Any]]] = {}
    for module in _HANDLERS:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = partial(value, services)
    return found
