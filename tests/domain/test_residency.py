"""Who is in memory: what does not fit together never is, who works is never cut, and nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.residency import Claim, Plan, Tenant, fits, plan

STARVE_S = 60.0
CARD = {"gpu:0": 10}


def out(name: str, size: int | None = 6, since: float = 0.0, **fields: Any) -> Tenant:
    """One that is not in memory, and wanted since then."""
    return Tenant(name, {"gpu:0": size}, "out", waiting_since=since, **fields)


def loaded(name: str, size: int | None = 6, **fields: Any) -> Tenant:
    return Tenant(name, {"gpu:0": size}, "in", **fields)


def decide(*tenants: Tenant, now: float = 0.0, capacity: dict[str, int] | None = None) -> Plan:
    return plan(tenants, CARD if capacity is None else capacity, now, STARVE_S)


def test_what_fits_is_loaded_at_once() -> None:
    """OD-2."""
    assert decide(out("a", 4), out("b", 6)).load == ("a", "b")


def test_of_two_that_do_not_fit_together_the_one_that_has_waited_longer_is_loaded() -> None:
    """And the room of the first is not what the second waits for in vain: it is named."""
    found = decide(out("a", since=5.0), out("b", since=4.0), now=10.0)
    assert found.load == ("b",)
    assert found.waits == {"a": ("b",)}


def test_an_idle_model_makes_room() -> None:
    """The longest unused one, and no more than it takes."""
    idle = [loaded("old", 3, used_at=1.0), loaded("older", 3, used_at=0.5), loaded("new", 3, used_at=2.0)]
    assert decide(out("a", 4), *idle, now=10.0).unload == (("older", "room"),)
    assert decide(out("a", 7), *idle, now=10.0).unload == (("older", "room"), ("old", "room"))


def test_those_that_would_not_help_stay() -> None:
    """One on another card is older, and has nothing to do with it."""
    other = Tenant("other", {"gpu:1": 6}, "in", since=-9.0, used_at=-5.0)
    found = decide(out("a"), other, loaded("b"), now=10.0, capacity={"gpu:0": 10, "gpu:1": 10})
    assert found.unload == (("b", "room"),)


def test_a_busy_model_stays_until_the_other_is_starved() -> None:
    """Then it yields: it is given nothing more to do, and is unloaded when it has finished."""
    busy = loaded("hot", working=True, wanted=True, empties_s=1e6)
    before = decide(out("a"), busy, now=59.0)
    assert (before.unload, before.yielding, before.waits, before.due) == ((), frozenset(), {"a": ("hot",)}, 60.0)
    starved = decide(out("a"), busy, now=60.0)
    assert (starved.unload, starved.yielding) == ((), {"hot"})
    done = decide(out("a"), replace(busy, working=False), now=61.0)
    assert (done.unload, done.yielding) == ((("hot", "room"),), frozenset())


def test_nobody_yields_to_one_that_has_gone() -> None:
    """The waiting task was cancelled: the hot pool goes on."""
    busy = loaded("hot", working=True, wanted=True)
    assert not decide(replace(out("a"), waiting_since=None), busy, now=99.0).yielding


def test_a_model_stays_for_its_minimum_even_when_idle() -> None:
    fresh = loaded("b", since=8.0, min_resident_s=5.0)
    early = decide(out("a"), fresh, now=10.0)
    assert (early.unload, early.due, early.waits) == ((), 13.0, {"a": ("b",)})
    assert decide(out("a"), fresh, now=13.0).unload == (("b", "room"),)


def test_what_is_leaving_is_waited_for_and_nothing_else_goes() -> None:
    leaving = replace(loaded("b"), phase="leaving")
    found = decide(out("a"), leaving, loaded("c", 4), now=10.0)
    assert (found.load, found.unload, found.waits) == ((), (), {"a": ("b",)})


def test_who_waits_first_is_not_overtaken_by_a_smaller_one() -> None:
    """The room left over is kept for it, or the small ones would keep it out for ever."""
    hot = loaded("hot", 5, working=True, wanted=True)
    found = decide(out("big", 8, since=1.0), out("small", 4, since=2.0), hot, now=10.0)
    assert found.load == ()
    assert found.waits["big"] == ("hot",)


def test_one_on_another_card_does_not_wait_behind_it() -> None:
    hot = loaded("hot", 5, working=True, wanted=True)
    other = Tenant("other", {"gpu:1": 3}, "out", waiting_since=9.0)
    found = decide(out("big", 8, since=1.0), other, hot, now=10.0, capacity={"gpu:0": 10, "gpu:1": 10})
    assert found.load == ("other",)


def test_without_figures_two_on_demand_models_do_not_share_a_device() -> None:
    """Neither when a size is unknown nor when the device's is; what is always there keeps nobody out."""
    assert decide(out("a", None), out("b", 1)).load == ("a",)
    assert decide(out("a", 1), out("b", 1), capacity={}).load == ("a",)
    always = loaded("base", None, on_demand=False)
    assert decide(out("a", 6), always).load == ("a",)
    assert decide(out("a", 6), always, capacity={}).load == ("a",)


def test_what_never_fits_is_said() -> None:
    """Beside what is always loaded, or at all."""
    assert decide(out("a", 11)).hopeless == ("a",)
    assert decide(out("a"), loaded("base", 5, on_demand=False)).hopeless == ("a",)


def test_two_that_are_always_loaded_are_not_started_together_if_they_do_not_fit() -> None:
    """And one that waits for its memory comes before any on-demand model."""
    first, second = (out(n, since=float("-inf"), on_demand=False) for n in "ab")
    found = decide(first, second, out("c", 4))
    assert (found.load, found.hopeless) == (("a", "c"), ("b",))
    busy = loaded("hot", working=True, wanted=True)
    assert decide(first, busy).yielding == {"hot"}


def test_an_operation_keeps_its_pool_as_it_is() -> None:
    """Neither loaded nor unloaded while a reload or a drain is on."""
    assert decide(out("a", fixed=True)).load == ()
    found = decide(out("a"), loaded("b", fixed=True), now=100.0)
    assert (found.unload, found.yielding, found.hopeless, found.waits) == ((), frozenset(), (), {"a": ("b",)})


def test_after_a_failed_load_there_is_a_pause() -> None:
    later = out("a", not_before=5.0)
    assert (decide(later, now=4.0).load, decide(later, now=4.0).due) == ((), 5.0)
    assert decide(later, now=5.0).load == ("a",)


def test_idle_models_may_be_unloaded_by_themselves() -> None:
    idle = loaded("a", used_at=10.0, idle_unload_s=30.0)
    assert (decide(idle, now=39.0).unload, decide(idle, now=39.0).due) == ((), 40.0)
    assert decide(idle, now=40.0).unload == (("a", "idle"),)
    assert decide(replace(idle, wanted=True), now=40.0).unload == ()


def test_when_it_will_be_loaded() -> None:
    """Of one that waits and of one that nobody waits for yet: what is in the way, and its own load."""
    idle = loaded("b", since=0.0, min_resident_s=20.0)
    assert decide(out("a", load_s=7.0), idle, now=10.0).opens["a"] == 27.0
    hot = loaded("b", working=True, wanted=True, running_s=2.0, empties_s=500.0)
    assert decide(out("a", load_s=7.0), hot, now=10.0).opens["a"] == 60.0 + 2.0 + 7.0
    soon = replace(hot, empties_s=5.0)
    assert decide(out("a", load_s=7.0), soon, now=10.0).opens["a"] == 10.0 + 5.0 + 7.0
    unwanted = replace(out("a", load_s=7.0), waiting_since=None)
    assert decide(unwanted, hot, now=10.0).opens["a"] == 10.0 + 60.0 + 2.0 + 7.0
    assert decide(unwanted, now=10.0).opens["a"] == 17.0


# -- properties ------------------------------------------------------------------------------------------------
RESOURCES = ("gpu:0", "gpu:1", "ram")
SIZES = st.one_of(st.none(), st.integers(0, 8))
CLAIMS = st.dictionaries(st.sampled_from(RESOURCES), SIZES, max_size=3)
TIMES = st.integers(0, 100).map(float)


@st.composite
def tenants(draw: st.DrawFn) -> list[Tenant]:
    """Any state at all, as long as those in memory fit together."""
    capacity = {"gpu:0": 10, "ram": 12}
    found: list[Tenant] = []
    for number in range(draw(st.integers(1, 6))):
        phase = draw(st.sampled_from(["out", "coming", "in", "leaving"]))
        busy = phase == "in"
        one = Tenant(
            f"t{number}",
            draw(CLAIMS),
            phase,
            on_demand=draw(st.booleans()),
            fixed=draw(st.integers(0, 9)) == 0,
            temporary=draw(st.integers(0, 9)) == 0,
            waiting_since=draw(st.one_of(st.none(), TIMES)) if phase == "out" else None,
            working=busy and draw(st.booleans()),
            wanted=busy and draw(st.booleans()),
            since=draw(TIMES),
            used_at=draw(TIMES),
            not_before=draw(st.sampled_from([float("-inf"), 50.0, 150.0])),
            min_resident_s=draw(st.sampled_from([0.0, 30.0])),
            idle_unload_s=draw(st.sampled_from([0.0, 40.0])),
            load_s=5.0,
        )
        if one.holds and not fits(one, [t for t in found if t.holds], capacity):
            one = replace(one, phase="out", working=False, wanted=False)
        found.append(one)
    return found


def check_room(held: list[Tenant], capacity: dict[str, int]) -> None:
    for resource, whole in capacity.items():
        assert sum(t.claim.get(resource) or 0 for t in held) <= whole
    for one, other in combinations([t for t in held if t.on_demand], 2):
        for resource in one.claim.keys() & other.claim.keys():
            blind = resource not in capacity or one.claim[resource] is None or other.claim[resource] is None
            assert not blind, (one, other)


@given(tenants(), TIMES)
def test_any_decision_is_sound(those: list[Tenant], now: float) -> None:
    """OD-2: no two that do not fit together are started together, and nothing that works is unloaded."""
    capacity = {"gpu:0": 10, "ram": 12}
    by_id = {t.id: t for t in those}
    found = plan(those, capacity, now, STARVE_S)
    check_room([t for t in those if t.holds or t.id in found.load], capacity)
    for name, _ in found.unload:
        one = by_id[name]
        assert one.phase == "in"
        assert one.on_demand
        assert not one.working
        assert not one.fixed
        assert not one.temporary
        assert now >= one.since + one.min_resident_s
    for name in found.yielding:
        assert by_id[name].hot
        assert by_id[name].phase == "in"
        assert by_id[name].on_demand
    wanting = {t.id for t in those if t.waiting_since is not None and not t.fixed and t.not_before <= now}
    assert {*found.load, *found.waits, *found.hopeless} == wanting, "everybody who waits is told something"
    assert found.due is None or found.due > now
    if found.yielding:
        assert any(now >= (t.waiting_since or 0) + STARVE_S for t in those if t.id in found.waits)
    assert all(opens >= now for opens in found.opens.values())


@given(st.lists(st.integers(0, 2**30), min_size=3, max_size=3), tenants(), TIMES)
def test_the_same_state_gives_the_same_decision(keys: list[int], those: list[Tenant], now: float) -> None:
    """Whatever order the pools are in."""
    capacity = {"gpu:0": 10, "ram": 12}
    shuffled = sorted(those, key=lambda t: hash((t.id, *keys)))
    assert plan(shuffled, capacity, now, STARVE_S) == plan(those, capacity, now, STARVE_S)


class Card:
    """A card and the tasks of agents, tick by tick of a second: what the planner decides is carried out."""

    def __init__(self, sizes: list[int], whole: int, load_s: int, task_s: int, min_resident_s: float) -> None:
        self.capacity = {"gpu:0": whole}
        self.load_s, self.task_s = load_s, task_s
        self.tenants = {
            f"m{i}": Tenant(f"m{i}", {"gpu:0": size}, "out", min_resident_s=min_resident_s)
            for i, size in enumerate(sizes)
        }
        self.queue: dict[str, list[int]] = {name: [] for name in self.tenants}  # arrivals
        self.running: dict[str, int] = {}  # model -> ends
        self.yielding: frozenset[str] = frozenset()
        self.longest_wait = self.swaps = 0

    def tick(self, now: int) -> None:
        for name, one in self.tenants.items():
            if self.running.get(name, now + 1) <= now:
                del self.running[name]
                self.set(name, used_at=float(now))
            if one.phase == "coming" and now >= one.since + self.load_s:
                self.set(name, phase="in", since=float(now), used_at=float(now))
            if one.phase == "leaving":
                self.set(name, phase="out", since=float(now))
            waits, one = self.queue[name], self.tenants[name]
            self.set(
                name,
                working=name in self.running,
                wanted=bool(waits),
                waiting_since=max(float(waits[0]), one.since) if waits and one.phase == "out" else None,
            )
        found = plan(list(self.tenants.values()), self.capacity, now, STARVE_S)
        assert not found.hopeless
        self.yielding = found.yielding
        for name in found.load:
            self.set(name, phase="coming", since=float(now))
        for name, _ in found.unload:
            assert name not in self.running
            self.set(name, phase="leaving", since=float(now))
            self.swaps += 1
        check_room([t for t in self.tenants.values() if t.holds], self.capacity)
        for name, one in self.tenants.items():
            if one.phase == "in" and name not in self.running and name not in self.yielding and self.queue[name]:
                self.longest_wait = max(self.longest_wait, now - self.queue[name].pop(0))
                self.running[name] = now + self.task_s

    def set(self, name: str, **fields: Any) -> None:
        self.tenants[name] = replace(self.tenants[name], **fields)


@given(
    sizes=st.lists(st.integers(3, 10), min_size=2, max_size=5),
    load_s=st.integers(0, 20),
    task_s=st.integers(1, 30),
    min_resident_s=st.sampled_from([0.0, 5.0, 90.0]),
    arrivals=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4)), max_size=40),
)
def test_nobody_starves(
    sizes: list[int], load_s: int, task_s: int, min_resident_s: float, arrivals: list[tuple[int, int]]
) -> None:
    """OD-2: however busy the others are, a model that somebody waits for is loaded within the documented bound.

    The first model always has work, and never lets go by itself.
    """
    card = Card(sizes, 10, load_s, task_s, min_resident_s)
    others = len(sizes) - 1
    turn = max(STARVE_S, min_resident_s) + task_s + load_s + 3  # 3: unloading, and the ticks in between
    out_since: dict[str, int] = {}
    for now in range(1000):
        if len(card.queue["m0"]) < 2:
            card.queue["m0"].append(now)
        for at, model in arrivals:
            if at == now and 0 < model < len(sizes):
                card.queue[f"m{model}"].append(now)
        card.tick(now)
        for name, one in card.tenants.items():
            if one.phase == "out" and card.queue[name]:
                waited = now - max(out_since.setdefault(name, now), 0)
                assert waited <= (others + 1) * turn, f"{name} waits {waited} s for its model"
            else:
                out_since.pop(name, None)


def test_two_hot_models_take_turns() -> None:
    """Not one swap per task: each stays for as long as it may starve the other."""
    card = Card([6, 6], 10, load_s=5, task_s=2, min_resident_s=5.0)
    for now in range(1000):
        for name in card.queue:
            if len(card.queue[name]) < 2:
                card.queue[name].append(now)
        card.tick(now)
    assert 12 <= card.swaps <= 16, card.swaps


@pytest.mark.parametrize("claim", [{}, {"gpu:0": 0}])
def test_who_takes_nothing_is_never_in_the_way(claim: Claim) -> None:
    light = Tenant("light", claim, "in", on_demand=False)
    assert decide(out("a", 10), light).load == ("a",)
