"""The catalog as decision state: which models are known, retired, trusted.

A change counts from the step that decides it, is shown once it is durable, and is undone if it cannot be. Undecided
changes of one entry resolve in their order, so what is durable is always what the last resolved one said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial

from orchestratord.domain import modelref
from orchestratord.domain.entry import CatalogChanged, CatalogEntry, CatalogRemoved
from orchestratord.domain.errors import Conflict, ModelDeprecated, NotFound, Refusal, UntrustedArtifact
from orchestratord.domain.facts import Fact
from orchestratord.domain.hooks import Ticket
from orchestratord.domain.pool import Pool
from orchestratord.domain.trust import STRICT, TrustPolicy

MAX_ENTRIES = 10_000
LABELLED = 1024  # ids that are labels of metrics; later ones share `other`


class Catalog:
    """`changed` is called after every change, also after one that was undone."""

    def __init__(
        self, record: Callable[[Fact], Ticket], policy: TrustPolicy, changed: Callable[[], object] = lambda: None
    ) -> None:
        self.policy = policy
        self._record = record
        self._changed = changed
        self._durable: dict[str, CatalogEntry] = {}
        self._decided: dict[str, CatalogEntry] = {}
        self._pending: dict[str, Ticket] = {}  # the last undecided change of an entry
        self._by_source: dict[str, str] = {}
        self._by_digest: dict[str, set[str]] = {}
        self._labels: set[str] = set()
        self._stamp = 0

    # -- reading -----------------------------------------------------------------------------------------
    def newest(self) -> list[CatalogEntry]:
        """Every entry that is durable, newest first: they became so in the order of their creation."""
        return list(reversed(self._durable.values()))

    def oldest(self) -> Iterable[CatalogEntry]:
        """The same the other way round."""
        return self._durable.values()

    def get(self, model_id: str) -> CatalogEntry:
        """Raises NotFound."""
        return _found(self._durable.get(model_id), model_id)

    def decided(self, model_id: str) -> CatalogEntry:
        """The entry as changes have to see it, durable or not. Raises NotFound."""
        return _found(self._decided.get(model_id), model_id)

    def undecided(self, model_id: str, spelt: str | None = None) -> Ticket | None:
        """The ticket of a change that is still open, of this entry or of the one with this source."""
        return self._pending.get(model_id) or self._pending.get(self._by_source.get(spelt or "", ""))

    def label(self, model_id: str) -> str:
        """The id as a label: itself for the first 1,024 of this life of the daemon, then `other`."""
        if model_id not in self._labels:
            if len(self._labels) >= LABELLED:
                return "other"
            self._labels.add(model_id)
        return model_id

    def stamp(self, wall_ms: int) -> int:
        """When an entry that is created now was created: the wall's time, but later than any before."""
        self._stamp = max(wall_ms, self._stamp + 1)
        return self._stamp

    # -- changing ----------------------------------------------------------------------------------------
    def create(self, entry: CatalogEntry) -> Ticket:
        """Raises Conflict: one entry per id and per source."""
        if entry.id in self._decided:
            raise Conflict(f"There is a catalog model {entry.id!r} already. Delete it first, or choose another id.")
        if (other := self._by_source.get(entry.key)) is not None:
            raise Conflict(
                f"Catalog model {other!r} has the same source. Use that entry, or delete it first.", model_id=other
            )
        if len(self._decided) >= MAX_ENTRIES:
            raise Conflict(f"The catalog holds {MAX_ENTRIES} models, the most it can. Delete some first.")
        return self.change(entry)

    def change(self, entry: CatalogEntry) -> Ticket:
        return self._gate(entry.id, entry, CatalogChanged(entry))

    def remove(self, model_id: str) -> Ticket:
        return self._gate(model_id, None, CatalogRemoved(model_id))

    def _gate(self, model_id: str, entry: CatalogEntry | None, fact: Fact) -> Ticket:
        self._decide(model_id, entry)
        ticket = self._pending[model_id] = self._record(fact)
        ticket.add_done_callback(partial(self._settled, model_id, entry))
        self._changed()
        return ticket

    def _settled(self, model_id: str, entry: CatalogEntry | None, ticket: Ticket) -> None:
        if ticket.exception() is None:
            if entry is None:
                self._durable.pop(model_id, None)
            else:
                self._durable[model_id] = entry
        if self._pending.get(model_id) is ticket:
            del self._pending[model_id]
            self._decide(model_id, self._durable.get(model_id))
            self._changed()

    def _decide(self, model_id: str, entry: CatalogEntry | None) -> None:
        former = self._decided.pop(model_id, None)
        if former is not None:
            if self._by_source.get(former.key) == model_id:
                del self._by_source[former.key]
            for digest in former.digests:
                self._by_digest[digest].discard(model_id)
                if not self._by_digest[digest]:
                    del self._by_digest[digest]
        if entry is not None:
            self._decided[model_id] = entry
            self._by_source[entry.key] = model_id
            for digest in entry.digests:
                self._by_digest.setdefault(digest, set()).add(model_id)

    def restore(self, entries: Iterable[CatalogEntry]) -> None:
        """Become what the store holds. Called once, before anything is admitted."""
        for entry in sorted(entries, key=lambda entry: (entry.created_ms, entry.id)):
            settled = entry.after_restart()
            self._durable[entry.id] = entry
            self._decide(entry.id, entry)
            self.label(entry.id)
            self._stamp = entry.created_ms
            if settled is not entry:
                self.change(settled)

    # -- judging -----------------------------------------------------------------------------------------
    def applying(self, refs: Iterable[str], digests: Iterable[str | None] = ()) -> list[CatalogEntry]:
        """The entries that speak of a model: by its source, or by what its bytes hash to."""
        ids = {self._by_source.get(modelref.key(ref)) for ref in refs}
        for digest in digests:
            ids |= self._by_digest.get(digest or "", set())
        return [self._decided[model_id] for model_id in sorted(i for i in ids if i is not None)]

    def of_pool(self, pool: Pool, *refs: str) -> list[CatalogEntry]:
        """The entries that speak of what a pool serves, or of what a task calls that."""
        if not self._decided:
            return []
        return self.applying((pool.spec.model_ref, *refs), {r.model_digest for r in pool.replicas.values()})

    def users(self, model_id: str, pools: Iterable[Pool]) -> list[Pool]:
        """The pools that serve a model, or are being reloaded to serve it."""
        return [pool for pool in pools if any(entry.id == model_id for entry in self.of_pool(pool, *_coming(pool)))]

    def refusal(self, entries: Collection[CatalogEntry], what: str, *, strict: bool, new: bool) -> Refusal | None:
        """Why a model that these entries speak of may not be used. Retirement only concerns what is `new`."""
        if new and (gone := next((entry for entry in entries if entry.retired), None)) is not None:
            return ModelDeprecated(
                f"{what} is retired: catalog model {gone.id!r} says so. Use another model.", model_id=gone.id
            )
        policy = self.policy.tightened(STRICT) if strict else self.policy
        if not entries and policy.strict:
            return UntrustedArtifact(
                f"{what} is not in the catalog, and the trust policy is strict. Enter and verify it first.",
                rule="trust",
            )
        for entry in entries:
            if (why := entry.untrusted(policy)) is not None:
                why = why.replace("{id}", entry.id).removesuffix(".")
                return UntrustedArtifact(f"{what} is not trusted: {why}.", rule="trust", model_id=entry.id)
        return None

    def barred(self, ref: str, pools: Iterable[Pool], *, strict: bool, new: bool) -> dict[str, Refusal]:
        """Which of these pools may not take a task for this reference, and why."""
        if not self._decided and not strict and not self.policy.strict:
            return {}
        found = ((p.id, self.refusal(self.of_pool(p, ref), f"Model {ref}", strict=strict, new=new)) for p in pools)
        return {pool_id: refusal for pool_id, refusal in found if refusal is not None}


def _coming(pool: Pool) -> tuple[str, ...]:
    """The model a running reload will bring."""
    running = pool.operation
    return (running.to_model_ref,) if running is not None and not running.over and running.to_model_ref else ()


def _found(entry: CatalogEntry | None, model_id: str) -> CatalogEntry:
    if entry is None:
        raise NotFound(f"There is no catalog model {model_id!r}. See GET /v1/catalog/models.")
    return entry
