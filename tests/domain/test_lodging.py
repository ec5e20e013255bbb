"""Whole pools that share a memory: whatever happens to tasks, loads and operations, the books of the room are right."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestratord.domain import forecast
from orchestratord.domain.errors import AdmissionReject, PoolUnavailable, PoolUnready
from orchestratord.domain.hooks import Limits
from orchestratord.domain.lodging import Lodging, larger
from orchestratord.domain.operation import Fault, Model, Operation
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.pool import Lease, Pool, PoolSpec, Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.residency import Plan
from orchestratord.domain.task import Task
from tests.domain.world import World

WHOLE = 10
SIZES = {"red": 6, "blue": 6, "green": 3, "base": 2}  # red and blue never fit together; base is always loaded


class House(World):
    """Pools that are loaded on demand in a memory of ten, and one that is always loaded."""

    def __init__(self, *, min_resident_s: float = 0.0, sizes: dict[str, int] | None = None) -> None:
        super().__init__(limits=Limits(turns_max=10_000))
        hooks = self.core._hooks
        self.sizes = SIZES if sizes is None else sizes
        specs = [
            PoolSpec(p, "llamacpp", "mock", p, on_demand=p != "base", min_resident_s=min_resident_s) for p in self.sizes
        ]
        self.core = Lodging(specs, Limits(turns_max=10_000), hooks)
        for pool in self.core.pools.values():
            self.core.add_replica(pool.id, Replica("r0"))
            self.core.lodge(pool, {"limit": self.sizes[pool.id]})

    @property
    def pools(self) -> dict[str, Pool]:
        return self.core.pools

    def phase(self, pool: str) -> str:
        return self.pools[pool].stay.phase

    def arrange(self) -> Plan:
        return self.core.arrange(lambda: {"limit": WHOLE}, self.now, self.wall_ms)

    def load(self, pool: str, took_s: float = 4.0) -> None:
        self.ready(1, pool)
        self.core.loaded(self.pools[pool], took_s, {"limit": self.sizes[pool]}, self.now)

    def step(self) -> list[Lease]:
        """What the dispatcher does."""
        self.arrange()
        return self.dispatch()

    def fail_load(self, pool: str) -> None:
        self.core.load_failed(self.pools[pool], Fault("VRAM_OOM", "no room", self.wall_ms), self.now, self.wall_ms)
        self.commit()


def test_one_that_is_always_loaded_gets_its_room_at_once() -> None:
    house = House()
    assert house.arrange().load == ("base",)
    assert [house.phase(p) for p in SIZES] == ["out", "out", "out", "in"]


def test_who_waits_for_a_model_is_told_how_long_its_queue_takes() -> None:
    """OC-CTRL-2010: `backoff_ms` is 0 below half full only, and counts the load; also before the first one."""
    house = House()
    told = [house.admit(model_ref="red").admitted.admission.backoff_ms for _ in range(QueueSpec().capacity)]
    half = len(told) // 2
    assert told[: half - 1] == [0] * (half - 1)
    assert min(told[half:]) > house.pools["red"].stay.load_s * 1000
    assert told[half:] == sorted(told[half:])


def test_a_swap_from_the_first_task_to_the_last() -> None:
    """OD-2: the tasks say what happens to them, and the books are right at each step."""
    house = House()
    first = house.admit(model_ref="red")
    assert house.arrange().load == ("base", "red")
    assert house.dispatch() == [], "nothing is there yet"
    house.load("red")
    (lease,) = house.step()
    assert lease.task is first
    second = house.admit(model_ref="blue")
    assert house.step() == []
    assert house.pools["blue"].stay.waits_for == ("red",)
    house.finish(lease)
    assert house.arrange().unload == (("red", "room"),)
    assert house.pools["red"].ready, "it takes tasks, for when it is back"
    assert not house.pools["red"].ready_replicas
    house.core.unloaded(house.pools["red"], house.now)
    assert house.arrange().load == ("blue",)
    house.load("blue")
    assert [lease.task for lease in house.step()] == [second]
    assert house.pools["red"].stay.swaps == 1


def test_a_quarantined_slot_does_not_keep_a_model() -> None:
    """Unloading ends whatever an engine still does with a task that is over; its slot is free in its next life."""
    house = House()
    house.admit(model_ref="red")
    house.arrange()
    house.load("red")
    (lease,) = house.step()
    house.finish(lease, finish_reason="stop", slot_free=False)
    house.admit(model_ref="blue")
    assert house.arrange().unload == (("red", "room"),)
    house.core.unloaded(house.pools["red"], house.now)
    assert house.pools["red"].leases == []


def test_those_who_wait_for_a_model_that_does_not_load_are_told_in_the_end() -> None:
    """OD-2: after three attempts; until the pause is over newcomers are refused, then one more attempt is made."""
    house = House()
    task = house.admit(model_ref="red")
    for attempt in range(3):
        assert "red" in house.arrange().load, attempt
        assert task.state is TaskState.QUEUED
        house.fail_load("red")
        assert "red" not in house.arrange().load, "there is a pause first"
        house.now += 4
    assert task.failure is not None
    assert (task.failure.code, task.failure.retriable) == ("POOL_UNAVAILABLE", True)
    with pytest.raises(PoolUnavailable) as refused:
        house.admit(model_ref="red")
    assert refused.value.retry_after_ms == 26_000
    due = house.core.next_due(house.now)
    assert due == house.now + 26
    house.now = due
    house.arrange()
    again = house.admit(model_ref="red")
    assert "red" in house.arrange().load
    house.fail_load("red")
    assert again.state is TaskState.FAILED, "one failure is enough now"
    house.now += 30
    with pytest.raises(PoolUnavailable):
        house.admit(model_ref="red")
    house.core.forgive(house.pools["red"])
    house.admit(model_ref="red")
    assert "red" in house.arrange().load


def test_a_load_that_works_makes_good_for_those_that_failed() -> None:
    house = House()
    house.admit(model_ref="red")
    for _ in range(2):
        house.arrange()
        house.fail_load("red")
        house.now += 4
    house.arrange()
    house.load("red")
    assert house.pools["red"].stay.failures == 0


def test_loads_are_remembered_and_the_last_ones_count_most() -> None:
    stay = House().pools["red"].stay
    assert stay.load_s == 10.0
    for seconds in (4.0, 4.0, 4.0, 4.0, 9.0):
        stay.observe(seconds)
    assert 5.0 < stay.load_s < 6.5


def operation(kind: Any, pool: str = "red") -> Operation:
    return Operation("an id", pool, kind, "pending", pool, 1, 0, to_model_ref="next" if kind == "reload" else None)


def test_room_for_a_reload_is_booked_beside_what_is_there_and_what_waits() -> None:
    """And it is the pool's own once the new model serves."""
    house = House(sizes={"red": 6, "green": 3, "base": 2})
    house.arrange()
    assert not house.core.book(house.pools["base"], {"limit": 9}, lambda: {"limit": WHOLE})
    assert house.core.book(house.pools["base"], {"limit": 5}, lambda: {"limit": WHOLE})
    house.admit(model_ref="red")
    assert house.arrange().load == (), "2 and 5 are taken"
    house.core.move_in(house.pools["base"], house.now, {"limit": 4})
    assert house.arrange().load == ("red",), "now it is 4"
    assert not house.core.book(house.pools["base"], {"limit": 1}, lambda: {"limit": WHOLE})


def test_a_reload_in_place_waits_for_idle_models_to_go_and_keeps_the_way_back() -> None:
    """What the old model took is kept until it is clear that it is not needed any more."""
    house = House(sizes={"red": 3, "green": 3, "base": 4})
    house.admit(model_ref="green")
    house.arrange()
    house.load("green")
    (lease,) = house.step()
    house.finish(lease)
    base, told = house.pools["base"], []
    house.core.begin(operation("reload", "base"), draining=True)
    house.core.move_out(base, {"limit": 8}, told.append, house.now)
    house.admit(model_ref="red")
    found = house.arrange()
    assert (found.unload, found.load, told) == ((("green", "room"),), (), [])
    house.core.unloaded(house.pools["green"], house.now)
    assert (house.arrange().load, told) == ((), [True]), "its room is taken, red waits"
    house.core.move_in(base, house.now)
    assert base.stay.claim == {"limit": 4}
    house.core.conclude(base, "rolled_back", 0)
    assert house.arrange().load == ("red",)


def test_the_way_back_is_kept_open_for_a_larger_old_model() -> None:
    """The new one takes less; until it serves, nobody gets what the old one would need again."""
    house = House(sizes={"red": 7, "base": 4})
    house.arrange()
    house.core.begin(operation("reload", "base"), draining=True)
    house.core.move_out(house.pools["base"], {"limit": 1}, lambda _: None, house.now)
    house.admit(model_ref="red")
    assert house.arrange().load == ()


def test_a_hot_model_yields_and_the_other_gets_as_long_a_turn() -> None:
    """OD-2: what waits for the one that yielded does not count as starved from the time it came, or both would do
    nothing but load."""
    house = House()
    house.admit(model_ref="red")
    house.arrange()
    house.load("red")
    (lease,) = house.step()
    house.admit(model_ref="red")
    house.admit(model_ref="blue")
    house.now += 60
    assert house.step() == []
    assert house.pools["red"].stay.yielding
    house.finish(lease)
    house.admit(model_ref="red")
    assert house.dispatch() == [], "a free slot, and a task, and yet nothing is started"
    house.admit(model_ref="red")
    loads_ms = 1000 * (house.pools["blue"].stay.load_s + house.pools["red"].stay.load_s)
    predicted_ms = forecast.start_ms(house.pools["red"], "interactive", now=house.now)
    assert predicted_ms >= loads_ms, "both models have to be loaded before it starts"
    assert house.arrange().unload == (("red", "room"),)
    house.core.unloaded(house.pools["red"], house.now)
    house.arrange()
    house.load("blue")
    (lease,) = house.step()
    house.now += 59
    house.step()
    assert not house.pools["blue"].stay.yielding
    house.now += 1
    house.step()
    assert house.pools["blue"].stay.yielding


def test_a_reload_to_a_model_that_never_fits_is_told() -> None:
    house = House()
    house.arrange()
    base, told = house.pools["base"], []
    house.core.begin(operation("reload", "base"), draining=True)
    house.core.move_out(base, {"limit": 11}, told.append, house.now)
    house.arrange()
    assert told == [False]
    wakes = house.wakes
    house.core.give_back(base)
    assert house.wakes == wakes + 1, "somebody may be waiting for that room"
    house.core.give_back(base)
    assert house.wakes == wakes + 1, "nothing was booked any more"
    assert larger({"a": 1, "b": None}, {"a": 2, "c": 3}) == {"a": 2, "b": None, "c": 3}


def test_a_drained_pool_is_not_loaded() -> None:
    """OD-2: and its tasks wait for the resume."""
    house = House()
    house.admit(model_ref="red")
    house.core.begin(operation("drain"), draining=True)
    house.core.conclude(house.pools["red"], "succeeded", 0)
    assert house.arrange().load == ("base",)
    house.core.begin(operation("resume"), draining=False)
    house.core.conclude(house.pools["red"], "succeeded", 0)
    assert house.arrange().load == ("red",)


def test_a_swap_of_models_forgets_the_thrash() -> None:
    house = House()
    red = house.pools["red"]
    red.stay.evicted_at = house.now
    house.core.begin(operation("reload"), draining=False)
    house.core.swap(red, Model("next"), [Replica("r0")])
    assert not red.stay.came_back_soon(house.now)


class Households(RuleBasedStateMachine):
    """Any mix of arrivals, ends, cancels, loads that work or fail, drains and time."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(min_resident_s=5.0)
        self.leases: list[Lease] = []
        self.waiting: list[Task] = []
        self._settle()

    def _settle(self) -> None:
        before = {lease.id for pool in self.house.pools.values() for lease in pool.at_work}
        plan = self.house.arrange()
        for name, _ in plan.unload:
            assert not self.house.pools[name].at_work, "what works is not cut"
        after = {lease.id for pool in self.house.pools.values() for lease in pool.at_work}
        assert before == after
        if "base" in plan.load:
            self.house.ready(1, "base")
        leases = self.house.dispatch()
        for lease in leases:
            assert not lease.pool.stay.yielding
            assert lease.pool.stay.phase in ("coming", "in")
        self.leases += leases

    @rule(pool=st.sampled_from(list(SIZES)))
    def arrive(self, pool: str) -> None:
        with suppress(PoolUnavailable, PoolUnready, AdmissionReject):
            self.waiting.append(self.house.admit(model_ref=pool))
        self._settle()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), free=st.booleans())
    def end(self, data: st.DataObject, free: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.leases.remove(lease)
        self.house.finish(lease, finish_reason="stop", slot_free=free)
        self._settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(task)
        self.house.cancel(task)
        for lease in [lease for lease in self.leases if lease.task is task]:
            self.leases.remove(lease)
            self.house.finish(lease)
        self._settle()

    @rule(data=st.data(), works=st.booleans())
    def load_ends(self, data: st.DataObject, works: bool) -> None:
        coming = [p.id for p in self.house.pools.values() if p.stay.phase == "coming"]
        if coming:
            pool = data.draw(st.sampled_from(coming))
            if works:
                self.house.load(pool)
            else:
                self.house.fail_load(pool)
            self._settle()

    @rule(data=st.data())
    def unload_ends(self, data: st.DataObject) -> None:
        leaving = [p for p in self.house.pools.values() if p.stay.phase == "leaving"]
        if leaving:
            self.house.core.unloaded(data.draw(st.sampled_from(leaving)), self.house.now)
            self._settle()

    @rule(pool=st.sampled_from(list(SIZES)), draining=st.booleans())
    def operate(self, pool: str, draining: bool) -> None:
        one = self.house.pools[pool]
        if one.draining != draining:
            self.house.core.begin(operation("drain" if draining else "resume", pool), draining=draining)
            self.house.commit()
            self.house.core.conclude(one, "succeeded", 0)
            self.house.commit()
            self._settle()

    @rule(seconds=st.sampled_from([1.0, 5.0, 30.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        target = self.house.now + seconds
        while (due := self.house.core.next_due(self.house.now)) is not None and due <= target:
            assert due > self.house.now
            self.house.now = due
            self.house.core.expire(self.house.now, self.house.wall_ms)
            self.leases = [lease for lease in self.leases if not lease.task.terminal or lease in lease.pool.leases]
            self._settle()
        self.house.now = target
        self._settle()

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        held = [p.id for p in self.house.pools.values() if p.stay.phase != "out"]
        assert sum(SIZES[p] for p in held) <= WHOLE, held

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Whoever waits has a reason: a load, room that is named, a turn on a model that is there, or a pause."""
        for pool in self.house.pools.values():
            waits = [task for task in pool.queue if task.committed]
            stay = pool.stay
            if waits and not pool.draining and pool.spec.on_demand and stay.phase == "out":
                assert stay.waits_for or self.house.now < stay.not_before, pool.id
            if waits and stay.phase == "in" and not pool.draining and not stay.yielding:
                assert not any(r.free for r in pool.replicas.values()), "there is a slot for it"


Households.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_households = Households.TestCase
