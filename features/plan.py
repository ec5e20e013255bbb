"""How the daemon of a scenario is to be set up: collected step by step, then built."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from features.engines import Disk, Flaky, Speaking, archive
from orchestratord import connection, crowd
from orchestratord.app import daemon as application
from orchestratord.config import Settings
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings


class Plan:
    """Settings, pools and the ports that will fail. Closed once the daemon was built from it."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.store: Flaky | None = None
        self.directory: Path | None = None  # where journal and artifacts are, when they are to last
        self.pools: dict[str, dict[str, Any]] = {}
        self.buggy = False  # every operation raises as soon as it is called
        self.bare = False  # no pool at all
        self.undo = ExitStack()
        self._sections: dict[str, Any] = {}
        self._presets: list[tuple[str, Callable[[Speaking], object]]] = []
        self._coming: dict[tuple[str, str], list[Callable[[Speaking], object]]] = {}
        self._closed = False

    def pool(self, pool_id: str, **fields: Any) -> dict[str, Any]:
        """The configuration of a pool, which begins as the one everybody gets."""
        self._check(f"pool {pool_id}")
        pool = self.pools.setdefault(pool_id, mock_pool(pool_id))
        pool.update(fields)
        return pool

    def mock(self, pool_id: str, **fields: Any) -> None:
        """Settings of the engines of a pool."""
        for replica in self.pool(pool_id)["replicas"]:
            replica["mock"].update(fields)

    def queue(self, pool_id: str, **fields: Any) -> None:
        """Settings of the queue of a pool."""
        self.pool(pool_id)["queue"].update(fields)

    def preset(self, pool_id: str, change: Callable[[Speaking], object]) -> None:
        """Change the engines of a pool before the daemon first meets them."""
        self.pool(pool_id)
        self._presets.append((pool_id, change))

    def coming(self, pool_id: str, ref: str, change: Callable[[Speaking], object]) -> None:
        """Change the engines that a reload of the pool to this model will bring."""
        self.pool(pool_id)
        self._coming.setdefault((pool_id, ref), []).append(change)

    def section(self, name: str, value: Any) -> None:
        """A section of the settings, or one plain setting."""
        self._check(name)
        known = self._sections.get(name)
        self._sections[name] = {**known, **value} if isinstance(known, dict) else value

    def renew(self, name: str, value: dict[str, Any]) -> None:
        """A section of the settings as it will be from the next start on."""
        self._sections[name] = {**self._sections.get(name, {}), **value}

    @property
    def token(self) -> str | None:
        return self._sections.get("token")

    def persist(self) -> None:
        """Keep journal and artifacts on disk."""
        self._check("what is kept")
        self.directory = self.directory or Path(tempfile.mkdtemp(prefix="orchestratord-"))

    def break_store(self, fault: Exception | None) -> None:
        """From now on the store of artifacts raises this; None: nothing any more."""
        if self.store is None:
            self._check("its store")
            self.store = Flaky()
        self.store.fault = fault

    def limit_server(self, name: str, value: float) -> None:
        """Another limit of the HTTP server than the one it was built with."""
        target = crowd if hasattr(crowd, name) else connection
        self.undo.enter_context(patch.object(target, name, value))

    def _check(self, what: str) -> None:
        assert not self._closed, f"the daemon runs already: say this of {what} earlier in the scenario"

    # -- building -----------------------------------------------------------------------------------------------
    def build(self) -> LiveApp:
        """A daemon that has not started yet."""
        self._closed = True
        pools = [] if self.bare else list(self.pools.values()) or None
        settings = mock_settings(self.directory, pools=pools, **self._sections)
        parts: dict[str, Any] = {}
        if self.directory is not None:
            parts["journal"] = SqliteJournal(self.directory / "journal.db", archive, fault=self.disk)
        if self.store is not None:
            parts["store"] = self.store
        with ExitStack() as bugs:
            if self.buggy:
                bugs.enter_context(patch.object(application, "handler_table", _broken(application.handler_table)))
            app = LiveApp(settings, **parts)
        self._put_engines(app, settings)
        return app

    def _put_engines(self, app: LiveApp, settings: Settings) -> None:
        for pool in settings.pools:
            changes = [change for pool_id, change in self._presets if pool_id == pool.id]
            for replica in pool.replicas:
                self._put_engine(app, pool, replica, replica.id, changes)
                for (pool_id, ref), coming in self._coming.items():
                    if pool_id == pool.id:
                        self._put_engine(app, pool, replica, f"{replica.id}@{ref}", coming)

    @staticmethod
    def _put_engine(
        app: LiveApp, pool: Any, replica: Any, key: str, changes: list[Callable[[Speaking], object]]
    ) -> None:
        engine = Speaking(
            clock=app.daemon.clock,
            engine=pool.engine,
            slots=replica.mock.slots,
            ctx=replica.mock.ctx,
            token_ms=replica.mock.token_ms,
            load_ms=replica.mock.load_ms,
        )
        for change in changes:
            change(engine)
        app.daemon.mocks[pool.id, key] = engine


def _broken(table: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A handler table whose handlers all have a bug."""

    def broken(handler: Callable[..., Any]) -> Callable[..., Any]:
        async def bug(**_: Any) -> Any:
            raise ZeroDivisionError("a secret of the inside")

        bug.__signature__ = inspect.signature(handler)  # type: ignore[attr-defined]
        return bug

    return lambda services: {name: broken(handler) for name, handler in table(services).items()}
