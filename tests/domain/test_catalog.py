"""The catalog decides at once, shows what is durable, and undoes what could not be written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.catalog import LABELLED, MAX_ENTRIES, Catalog
from orchestratord.domain.entry import CatalogChanged, CatalogEntry
from orchestratord.domain.errors import (
    AdmissionReject,
    Conflict,
    ModelDeprecated,
    NotFound,
    PoolUnready,
    Refusal,
    UntrustedArtifact,
)
from orchestratord.domain.facts import Fact
from orchestratord.domain.hooks import Sized
from orchestratord.domain.pool import Replica
from orchestratord.domain.request import Caller, PlacementHints
from orchestratord.domain.trust import Findings, TrustPolicy
from tests.domain.world import HandTicket, World

DIGEST = "sha256:" + "a" * 64
PASSED = Findings(1, "ok", "", DIGEST, signed=True, bill=True)
FALSE = Findings(1, "digest", "its digest is another", "sha256:" + "b" * 64, fault="digest")


class Books:
    """A catalog whose tickets a test resolves."""

    def __init__(self, policy: TrustPolicy | None = None) -> None:
        self.tickets: list[HandTicket] = []
        self.catalog = Catalog(self._record, policy or TrustPolicy())

    def _record(self, fact: Fact) -> HandTicket:
        self.tickets.append(HandTicket(fact))
        return self.tickets[-1]

    def resolve(self, error: BaseException | None = None) -> None:
        """The oldest open ticket: a journal resolves in order."""
        next(ticket for ticket in self.tickets if not ticket.done).resolve(error)

    @property
    def shown(self) -> list[str]:
        return [entry.id for entry in self.catalog.newest()]


def entry(model_id: str = "a", source: str | None = None, **fields: Any) -> CatalogEntry:
    return CatalogEntry(model_id, source or f"file:{model_id}", fields.pop("created_ms", 1), **fields)


def conflict(books: Books, wanted: CatalogEntry) -> Conflict:
    with pytest.raises(Conflict) as error:
        books.catalog.create(wanted)
    return error.value


# -- one entry per id and source -----------------------------------------------------------------------------
def test_an_id_and_a_source_are_taken_from_the_decision_on() -> None:
    """ORCH-3060: before it is durable, too."""
    books = Books()
    books.catalog.create(entry("a", "file:x/./y"))
    assert (books.shown, books.catalog.decided("a").id) == ([], "a")
    conflict(books, entry("a", "file:other"))
    assert conflict(books, entry("b", "file:x/y")).details == {"model_id": "a"}
    books.resolve()
    assert books.shown == ["a"]


def test_a_removed_entry_frees_both_at_once() -> None:
    books = Books()
    books.catalog.create(entry("a"))
    books.resolve()
    books.catalog.remove("a")
    assert books.shown == ["a"], "it is shown until it is gone for good"
    books.catalog.create(entry("a"))
    books.resolve()
    books.resolve()
    assert books.shown == ["a"]


@pytest.mark.parametrize("what", ["create", "change", "remove"])
def test_what_could_not_be_written_did_not_happen(what: str) -> None:
    books = Books()
    books.catalog.create(entry("a"))
    books.resolve()
    if what == "create":
        books.catalog.create(entry("b"))
    elif what == "change":
        books.catalog.change(entry("a", state="Retired"))
    else:
        books.catalog.remove("a")
    books.resolve(OSError())
    assert books.shown == ["a"]
    assert books.catalog.decided("a").state == "Active"
    assert books.catalog.undecided("a") is None
    with pytest.raises(NotFound):
        books.catalog.decided("b")
    conflict(books, entry("c", "file:a"))


def test_the_catalog_is_bounded() -> None:
    books = Books()
    books.catalog.restore(entry(f"m{n}", created_ms=n) for n in range(MAX_ENTRIES))
    assert "the most it can" in str(conflict(books, entry("one-more")))


steps = st.lists(
    st.tuples(st.sampled_from(["create", "retire", "find", "remove", "resolve", "fail"]), st.integers(0, 3)),
    max_size=40,
)


@given(steps)
def test_what_is_shown_is_what_is_durable(history: list[tuple[str, int]]) -> None:
    """Any mixture of changes, commits and failures: shown is what a journal would hold, and lookups agree."""
    books = Books()
    durable: dict[str, CatalogEntry] = {}

    def settle(error: BaseException | None) -> None:
        for ticket in [t for t in books.tickets if not t.done]:
            if error is None:
                fact = ticket.fact
                if isinstance(fact, CatalogChanged):
                    durable[fact.entry.id] = fact.entry
                else:
                    durable.pop(fact.model_id)  # type: ignore[union-attr]
            ticket.resolve(error)  # a failure takes everything appended so far along
            if error is None:
                break

    for step, number in history:
        model_id = f"m{number}"
        try:
            if step == "create":
                books.catalog.create(entry(model_id, f"file:{number % 3}", created_ms=books.catalog.stamp(5)))
            elif step == "resolve":
                settle(None)
            elif step == "fail":
                settle(OSError())
            elif step == "remove":
                books.catalog.decided(model_id)
                books.catalog.remove(model_id)
            else:
                known = books.catalog.decided(model_id)
                changed = replace(known, state="Retired") if step == "retire" else replace(known, findings=PASSED)
                books.catalog.change(changed)
        except (Conflict, NotFound):
            pass
        assert {each.id: each for each in books.catalog.newest()} == durable
        stamps = [each.created_ms for each in books.catalog.newest()]
        assert stamps == sorted(stamps, reverse=True)
    while any(not ticket.done for ticket in books.tickets):
        settle(OSError())
    for number in range(3):
        by_source = {e.id for e in durable.values() if e.source_url == f"file:{number}"}
        assert len(by_source) < 2
        assert {e.id for e in books.catalog.applying([f"file:./{number}"])} == by_source
    by_digest = {e.id for e in durable.values() if DIGEST in e.digests}
    assert {e.id for e in books.catalog.applying([], [DIGEST])} == by_digest


# -- restarts ------------------------------------------------------------------------------------------------
def test_a_check_that_was_cut_short_is_over_and_the_last_one_stands() -> None:
    """ORCH-3061."""
    books = Books()
    books.catalog.restore([entry("a", checking=True, findings=PASSED), entry("b", created_ms=2)])
    assert [(t.fact.entry.id, t.fact.entry.checking) for t in books.tickets] == [("a", False)]  # type: ignore[union-attr]
    books.resolve()
    found = books.catalog.get("a")
    assert (found.checking, found.interrupted, found.findings) == (False, True, PASSED)


def test_moments_go_on_after_a_restart() -> None:
    books = Books()
    books.catalog.restore([entry("a", created_ms=900)])
    assert [books.catalog.stamp(500), books.catalog.stamp(500), books.catalog.stamp(1000)] == [901, 902, 1000]


def test_labels_are_bounded_for_one_life() -> None:
    """OC-METRICS-7102: the first 1,024 ids, whatever becomes of them; the rest share one."""
    books = Books()
    assert [books.catalog.label(f"m{n}") for n in range(LABELLED)] == [f"m{n}" for n in range(LABELLED)]
    assert books.catalog.label("late") == "other"
    assert books.catalog.label("m0") == "m0"


# -- what tasks may use --------------------------------------------------------------------------------------
def world(*entries: CatalogEntry, policy: TrustPolicy | None = None, pools: tuple[str, ...] = ("home",)) -> World:
    """Pools that serve model `m`, and a catalog that knows it."""
    found = World(pools=pools)
    found.core.catalog.policy = policy or TrustPolicy()
    found.core.catalog.restore(entries)
    return found


def refused(world: World, *, strict: bool = False, **fields: Any) -> Refusal:
    request = world.request(**fields)
    with pytest.raises(Refusal) as error:
        world.core.admit(Sized(request, b"x", 7, 3, None, Caller("c", "localhost"), strict), world.now, world.wall_ms)
    return error.value


def test_a_retired_model_takes_no_new_tasks_but_keeps_those_it_has() -> None:
    """ORCH-3062: refused from the decision on."""
    there = world(entry("e", "m"))
    waiting = there.admit()
    there.core.catalog.change(entry("e", "m", state="Retired"))
    assert isinstance(refused(there), ModelDeprecated)
    assert [lease.task for lease in there.dispatch()] == [waiting]


def test_a_retirement_that_could_not_be_written_refuses_nobody_any_more() -> None:
    there = world(entry("e", "m"))
    there.core.catalog.change(entry("e", "m", state="Retired"))
    there.tickets[-1].resolve(OSError())
    there.admit()


def test_the_catalog_comes_before_the_session_and_after_nothing() -> None:
    """OC-CTRL-2010: the order of checks."""
    there = world(entry("e", "m"))
    there.core.sessions.turns_max = 1
    there.admit(session_id="s")
    assert isinstance(refused(there, session_id="s"), AdmissionReject)
    there.core.catalog.change(entry("e", "m", state="Retired"))
    assert isinstance(refused(there, session_id="s"), ModelDeprecated)


def test_the_catalog_comes_before_placement_also_where_no_pool_serves_the_model() -> None:
    """OC-CTRL-2010: the order of checks."""
    there = world(entry("old", "file:old", state="Retired"), entry("new", "file:new"))
    assert isinstance(refused(there, model_ref="file:old"), ModelDeprecated)
    assert isinstance(refused(there, model_ref="file:new"), PoolUnready)
    assert isinstance(refused(there, model_ref="file:other"), PoolUnready)
    assert isinstance(refused(there, model_ref="file:other", strict=True), UntrustedArtifact)


def test_a_digest_speaks_of_whatever_pool_has_it() -> None:
    """ORCH-3062: given or found."""
    for fields in ({"digest": DIGEST}, {"findings": PASSED}):
        there = world(entry("e", "hf:acme/coder", state="Retired", **fields))
        there.admit()
        there.core.pools["home"].replicas["r0"].model_digest = DIGEST
        assert isinstance(refused(there), ModelDeprecated)


def test_a_name_of_two_models_means_the_one_that_may_be_used() -> None:
    """ORCH-3062: and a pin to the other says why it may not."""
    there = world(entry("e", "file:old"), pools=("home", "spare"))
    there.core.add_replica("spare", Replica("r0"))
    there.ready(1, "spare")
    there.ready(9, "home")
    home = there.core.pools["home"]
    home.spec = replace(home.spec, model_ref="file:old", aliases=("m",))
    assert there.admit().pool_id == "home", "it has more room"
    there.core.catalog.change(entry("e", "file:old", state="Retired"))
    assert there.admit().pool_id == "spare"
    assert isinstance(refused(there, placement=PlacementHints(mode="pin", pin_pool_id="home")), ModelDeprecated)


def test_why_a_model_is_not_trusted_is_told_as_one_sentence() -> None:
    """ORCH-3097: what a check said may end with a full stop of its own, or not."""
    for said in ("it is elsewhere. Move it.", "it is elsewhere. Move it"):
        there = world(entry("e", "m", findings=replace(PASSED, fault="not_allowed", message=said)))
        assert refused(there, strict=True).message.endswith(": its check failed: it is elsewhere. Move it.")


def test_strict_trust_of_one_client_binds_one_task() -> None:
    """ORCH-3097: what is known of the model decides, and others are let in."""
    there = world(entry("e", "m"))
    assert isinstance(refused(there, strict=True), UntrustedArtifact)
    there.admit()
    there.core.catalog.change(entry("e", "m", findings=PASSED))
    request = there.request()
    task, _ = there.core.admit(
        Sized(request, b"x", 7, 3, None, Caller("c", "localhost"), True), there.now, there.wall_ms
    )
    assert task.admitted.strict_trust


def test_what_was_found_false_is_taken_from_waiting_tasks() -> None:
    """ORCH-3037: from those that run it is too late."""
    there = world(entry("e", "m"))
    leased = [there.admit(), there.admit()]
    waiting = there.admit()
    assert {lease.task for lease in there.dispatch()} == set(leased)
    there.core.catalog.change(entry("e", "m", findings=FALSE))
    there.dispatch()
    there.commit()
    assert waiting.failure is not None
    assert waiting.failure.code == "UNTRUSTED_ARTIFACT"
    assert not any(task.terminal for task in leased)


def test_an_empty_catalog_is_never_asked() -> None:
    """Admission does not pay for a catalog nobody uses."""
    there = world()
    there.core.catalog.of_pool = None  # type: ignore[assignment,method-assign]
    there.admit()
