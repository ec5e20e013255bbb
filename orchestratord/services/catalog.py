"""The model catalog: entries, their checks, and what retiring one does to the pools that serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from orchestratord.domain import modelref
from orchestratord.domain.control import Control
from orchestratord.domain.entry import CatalogEntry, ModelState
from orchestratord.domain.errors import Conflict, InvalidParams, NotFound, StorageUnavailable, UntrustedArtifact
from orchestratord.domain.pool import Pool
from orchestratord.domain.trust import Findings, Signature
from orchestratord.ports import Clock, ModelProofs, Telemetry
from orchestratord.services.durability import durable
from orchestratord.services.operations import Operations
from orchestratord.services.verification import Verification

RETRY_S = 1.0  # until a change that nobody waits for is journaled again


class CatalogModels:
    """Every change is journaled before its method returns. Raises NotFound, Conflict and StorageUnavailable."""

    def __init__(
        self,
        core: Control,
        operations: Operations,
        verification: Verification,
        proofs: ModelProofs,
        clock: Clock,
        telemetry: Telemetry,
        drain_ms: int,
    ) -> None:
        self._core = core
        self._catalog = core.catalog
        self._operations = operations
        self._verification = verification
        self._proofs = proofs
        self._clock = clock
        self._telemetry = telemetry
        self._drain_ms = drain_ms
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._drains: set[asyncio.Task[None]] = set()

    # -- entries -----------------------------------------------------------------------------------------
    async def create(self, entry: CatalogEntry) -> CatalogEntry:
        """Also raises InvalidParams and UntrustedArtifact: what no policy here can ever allow."""
        self._check_source(entry)
        while (ticket := self._catalog.undecided(entry.id, entry.key)) is not None:
            await _settled(ticket)
        entry = replace(entry, created_ms=self._catalog.stamp(self._clock.wall_ms()))
        await durable(self._catalog.create(entry))
        self._telemetry.event("model_entered", f"catalog model {entry.id} was entered", model_id=entry.id)
        return entry

    def _check_source(self, entry: CatalogEntry) -> None:
        try:
            modelref.normalise(entry.source_url)
        except ValueError as error:
            raise InvalidParams(str(error), rule="trust", field="source_url") from error
        policy = self._catalog.policy.tightened(entry.trust_policy)
        unknown = sorted(set((entry.trust_policy.ca_roots if entry.trust_policy else None) or ()) - self._proofs.roots)
        if unknown:
            raise InvalidParams(
                f"There is no root {unknown[0]!r}. Configured in trust.roots: "
                f"{', '.join(sorted(self._proofs.roots)) or 'none'}.",
                rule="trust",
                field="trust_policy.ca_roots",
            )
        registry = modelref.registry(entry.source_url)
        if not policy.allows(registry):
            raise UntrustedArtifact(f"{registry} is none of the allowed registries.", rule="trust", field="source_url")

    def page(self, after: tuple[int, str] | None, state: ModelState | None) -> Iterator[CatalogEntry]:
        """Newest first, from below the key `after` on."""
        for entry in self._catalog.newest():
            if (after is None or (entry.created_ms, entry.id) < after) and state in (None, entry.state):
                yield entry

    def get(self, model_id: str) -> CatalogEntry:
        return self._catalog.get(model_id)

    async def delete(self, model_id: str) -> None:
        self._known(model_id)
        if users := self._catalog.users(model_id, self._core.pools.values()):
            raise Conflict(
                f"Pool {users[0].id} serves catalog model {model_id!r}. Reload it with another model first.",
                pool_id=users[0].id,
            )
        await durable(self._catalog.remove(model_id))
        self._telemetry.event("model_removed", f"catalog model {model_id} was removed", model_id=model_id)
        if (check := self._checks.get(model_id)) is not None:
            check.cancel()

    def _known(self, model_id: str) -> CatalogEntry:
        """As changes have to see it: what is not durable yet is not there for others."""
        self._catalog.get(model_id)
        return self._catalog.decided(model_id)

    # -- checks ------------------------------------------------------------------------------------------
    async def verify(self, model_id: str) -> None:
        """Begin a check, or join the one that runs."""
        entry = self._known(model_id)
        if entry.checking:
            ticket = self._catalog.undecided(model_id)
        else:
            ticket = self._catalog.change(replace(entry, checking=True, interrupted=False))
            check = asyncio.get_running_loop().create_task(self._check(entry, ticket), name=f"verify-{model_id}")
            self._checks[model_id] = check
            check.add_done_callback(lambda done: self._forget(model_id, done))
        if ticket is not None:
            await durable(ticket)

    def _forget(self, model_id: str, done: asyncio.Task[None]) -> None:
        if self._checks.get(model_id) is done:
            del self._checks[model_id]

    async def _check(self, entry: CatalogEntry, ticket: Any) -> None:
        try:
            await durable(ticket)
        except StorageUnavailable:
            return  # it never began; whoever asked is told so
        try:
            findings, signatures = await self._verification.check(entry)
        except Exception as error:  # the last resort: a bug must not leave a check that never ends
            self._telemetry.event("check_broke", "a bug ended a check", error=error, model_id=entry.id)
            findings = Findings(self._clock.wall_ms(), "error", "a bug ended the check", fault="error")
            signatures = ()
        if await self._record(entry.id, findings, signatures):
            self._tell(entry.id, findings)

    async def _record(self, model_id: str, findings: Findings, signatures: tuple[Signature, ...]) -> bool:
        """Journal what was found, however long that takes. False if the entry is gone."""
        while True:
            ticket = self._catalog.undecided(model_id)
            try:
                entry = self._catalog.decided(model_id)
            except NotFound:
                if ticket is None:
                    return False
                await _settled(ticket)  # a removal may still fail
                continue
            try:
                await durable(
                    self._catalog.change(replace(entry, checking=False, findings=findings, signatures=signatures))
                )
            except StorageUnavailable:
                await self._clock.sleep(RETRY_S)
            else:
                return True

    def _tell(self, model_id: str, findings: Findings) -> None:
        users = self._catalog.users(model_id, self._core.pools.values())
        result = "passed" if findings.fault is None else "failed"
        self._telemetry.count(
            "catalog_verifications_total",
            result=result,
            reason=findings.reason,
            engine=users[0].spec.engine if users else "none",
        )
        self._telemetry.event(
            "model_verified",
            f"catalog model {model_id} {result} its check" + (f": {findings.message}" if findings.message else ""),
            model_id=model_id,
            result=result,
            reason=findings.reason,
            digest=findings.digest,
        )

    # -- state -------------------------------------------------------------------------------------------
    async def set_state(self, model_id: str, state: ModelState, deadline_ms: int | None) -> CatalogEntry:
        """Retired also drains the pools that serve the model; that goes on behind the answer."""
        entry = self._known(model_id)
        ticket = self._catalog.undecided(model_id)
        if entry.state != state:
            ticket = self._catalog.change(replace(entry, state=state, state_ms=self._clock.wall_ms()))
            self._telemetry.event("model_state_set", f"catalog model {model_id} is {state}", model_id=model_id)
        if state == "Retired":
            self._behind(self._retire(model_id, ticket, deadline_ms or self._drain_ms))
        if ticket is not None:
            await durable(ticket)
        return self._catalog.get(model_id)

    async def _retire(self, model_id: str, ticket: Any, deadline_ms: int) -> None:
        if ticket is not None:
            await _settled(ticket)
        users = self._catalog.users(model_id, self._core.pools.values())
        await asyncio.gather(*(self._drain(model_id, pool, deadline_ms) for pool in users))

    async def _drain(self, model_id: str, pool: Pool, deadline_ms: int) -> None:
        """Drain a pool as soon as nothing else is done to it, if it serves the retired model then."""
        while self._serves_retired(model_id, pool):
            try:
                await self._operations.drain(pool.id, deadline_ms, "retired")
            except Conflict:
                await self._operations.over(pool)
                await self._clock.sleep(0)
            except StorageUnavailable:
                await self._clock.sleep(RETRY_S)
            else:
                return

    def _serves_retired(self, model_id: str, pool: Pool) -> bool:
        with suppress(NotFound):
            return self._catalog.decided(model_id).retired and bool(self._catalog.users(model_id, [pool]))
        return False

    # -- life --------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Drain what a crash has kept from being drained. An operator's later resume stands."""
        for entry in self._catalog.newest():
            for pool in self._catalog.users(entry.id, self._core.pools.values()) if entry.retired else ():
                last = pool.operation
                resumed = last is not None and last.kind == "resume" and last.started_ms >= entry.state_ms
                if not pool.draining and not resumed:
                    self._behind(self._drain(entry.id, pool, self._drain_ms))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def stop(self) -> None:
        """Leave everything as it stands: the journal knows what a restart makes of it."""
        work = [*self._checks.values(), *self._drains]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def _settled(ticket: Any) -> None:
    """Wait until a change is decided, whichever way."""
    with suppress(StorageUnavailable):
        await durable(ticket)
