"""Estimates: positions, starts, chances."""

from __future__ import annotations

from heapq import heapify, heapreplace
from math import exp
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import eta as simulation
from orchestratord.domain import eta, forecast
from orchestratord.domain.eta import Prior, ServiceModel
from orchestratord.domain.outcome import Usage
from orchestratord.domain.pool import Pool, PoolSpec, Replica
from orchestratord.domain.queue import NEAR, QueueSpec
from tests.domain.world import World

times = st.floats(1, 10_000)


def observe(
    model: ServiceModel, service_ms: float, units: int, *, now: float = 0.0, slots: int = 1, **fields: Any
) -> None:
    model.observe(World().request(**fields), units, service_ms, slots, now)


def start_ms(slots: int, running: list[float], ahead: list[float], rest_ms: float = 0.0) -> float:
    return eta.start_ms(slots, len(running), sum(running), ahead, rest_ms)


def listed(slots: int, running: list[float], ahead: list[float]) -> float:
    """List scheduling, the exact answer if every figure were true: the running tasks evenly staggered."""
    mean = sum(running) / len(running) if running else 0.0
    free = [mean * (k + 1) / (len(running) + 1) for k in range(len(running))] + [0.0] * (slots - len(running))
    heapify(free)
    for estimate in ahead:
        heapreplace(free, free[0] + estimate)
    return free[0]


# -- starts ------------------------------------------------------------------------------------------------
@given(st.integers(1, 8), st.lists(times, max_size=8), st.lists(times, max_size=20), times)
def test_more_work_ahead_never_starts_earlier(
    slots: int, running: list[float], ahead: list[float], more: float
) -> None:
    running = running[:slots]
    assert start_ms(slots, running, [*ahead, more]) >= start_ms(slots, running, ahead)
    assert start_ms(slots + 1, running, ahead) <= start_ms(slots, running, ahead)
    assert start_ms(slots, running, ahead, more) >= start_ms(slots, running, ahead)


def test_one_slot_is_a_plain_sum() -> None:
    assert start_ms(1, [100], [30, 40]) == 50 + 30 + 40
    assert start_ms(1, [], [30, 40]) == 30 + 40
    assert start_ms(2, [100], []) == 0


def test_of_several_running_tasks_one_ends_sooner() -> None:
    assert start_ms(4, [100, 100, 100, 100], []) == 20


@given(st.integers(1, 8), st.lists(times, max_size=8), st.lists(times, max_size=40))
def test_sharing_the_work_is_list_scheduling_within_one_service(
    slots: int, running: list[float], ahead: list[float]
) -> None:
    """The bound `eta.start_ms` names."""
    running = running[:slots]
    off = start_ms(slots, running, ahead) - listed(slots, running, ahead)
    assert abs(off) <= (slots - 1) / slots * max([*running, *ahead], default=0.0) + 1e-6


@settings(max_examples=30)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 16), st.sampled_from(["interactive", "batch"])), min_size=1, max_size=60),
    st.sampled_from(["interactive", "batch"]),
)
def test_what_lies_beyond_the_near_tasks_counts_as_their_mean(slots: int, queued: Any, priority: Any) -> None:
    """The work beyond is off by at most the difference of two services for each task; the near ones are exact."""
    world = World(slots=slots, queue=QueueSpec(100))
    pool = world.core.pools["home"]
    for _ in range(slots):
        world.admit()
    world.dispatch()
    waiting = [world.admit(expected_tokens=hint, priority=lane) for hint, lane in queued]
    for task in (None, waiting[-1]):
        lane = priority if task is None else task.request.priority
        ahead = [pool.service.estimate_ms(other.request) for other in pool.queue.ahead_of(lane, task)]
        with mock.patch.object(forecast, "NEAR", 1000):
            whole = forecast.start_ms(pool, lane, task)
        pool.near.clear()
        beyond = max(0, len(ahead) - NEAR)
        bound = beyond * (max(ahead) - min(ahead)) / slots if ahead else 0.0
        assert abs(forecast.start_ms(pool, lane, task) - whole) <= bound + 1e-6
        assert forecast.position(pool, lane, task) == len(ahead)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "admit", "admit", "remove", "again", "observe"]), st.integers(0, 60)),
        max_size=80,
    )
)
def test_what_is_kept_of_the_front_of_a_queue_is_what_stands_there(steps: Any) -> None:
    """Nothing that happens to a queue or its service model goes unnoticed."""
    world = World(slots=1, queue=QueueSpec(100))
    pool = world.core.pools["home"]
    for number in range(NEAR):
        world.admit(priority="batch", expected_tokens=number + 1)
    for act, number in steps:
        waiting = list(pool.queue)
        if act == "admit":
            world.admit(expected_tokens=1 + number % 16, priority="batch" if number % 3 else "interactive")
        elif act == "observe":
            observe(pool.service, 100.0 + number, 10)
        elif waiting:
            task = waiting[number % len(waiting)]
            pool.queue.remove(task)
            if act == "again":
                pool.queue.again(task)
        for lane in ("interactive", "batch"):
            assert forecast._newcomers_near(pool, lane) == forecast._look(pool, lane, None, None)


def test_batch_is_overtaken_by_interactive_work_that_is_still_to_come() -> None:
    """Half of the slot's time goes to interactive work: batch waits twice as long, interactive work does not."""
    world = World(slots=1)
    pool = world.core.pools["home"]
    for second in range(500):
        observe(pool.service, 500.0, 10, now=float(second))
    world.admit()
    world.dispatch()
    assert pool.service.interactive_load == pytest.approx(0.5, abs=0.01)
    assert forecast.start_ms(pool, "batch") == pytest.approx(2 * forecast.start_ms(pool, "interactive"), rel=0.02)


def test_the_interactive_load_is_bounded_and_survives_an_idle_night() -> None:
    model = ServiceModel(Prior())
    assert model.interactive_load == 0
    for second in range(200):
        observe(model, 5_000.0, 10, now=float(second))
    assert model.interactive_load == eta.LOAD_MAX
    busy = ServiceModel(Prior())
    for second in range(200):
        observe(busy, 500.0, 10, now=float(second))
    observe(busy, 500.0, 10, now=40_000.0)
    assert busy.interactive_load > 0.4


def test_without_a_ready_slot_the_work_ahead_still_counts() -> None:
    assert start_ms(0, [], [100.0, 100.0]) == 200


# -- services ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_demand", [False, True])
def test_of_a_replica_that_is_down_nothing_is_expected(on_demand: bool) -> None:
    """The estimate is made of the slots there are; only a model that is not loaded will have them all."""
    pool = Pool(PoolSpec("home", "llamacpp", "mock", "m", on_demand=on_demand))
    for name, state in (("up", "ready"), ("down", "dead")):
        pool.replicas[name] = Replica(name, state=state, slots=2)  # type: ignore[arg-type]
    assert pool.slots_when_loaded == 2
    pool.replicas["up"].state = "dead"
    assert pool.slots_when_loaded == (4 if on_demand else 0)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_pool_is_empty_when_its_slots_have_shared_all_that_waits(slots: int) -> None:
    """OD-2: how long a model that is waited for will still be busy."""
    world = World(slots=slots, capacity=10)
    pool = world.core.pools["home"]
    assert forecast.empties_ms(pool) == 0
    tasks = [world.admit() for _ in range(6)]
    whole = sum(pool.service.estimate_ms(task.request) for task in tasks)
    assert forecast.empties_ms(pool) == pytest.approx(whole / slots)


def test_the_prior_holds_until_the_first_observation_and_not_longer() -> None:
    """SPEC 2: estimates come from observed service times; before any, a documented prior."""
    model, request = ServiceModel(Prior(100, 20, 0.5)), World().request(max_tokens=100)
    assert model.estimate_ms(request) == 100 + 50 * 20
    assert model.units_per_s is None
    observe(model, 500, 50, max_tokens=100)
    assert model.estimate_ms(request) == 500
    assert model.units_per_s == 100


def test_a_hint_is_believed_until_hints_were_seen_to_be_off() -> None:
    model, hinted = ServiceModel(Prior()), World().request(max_tokens=1000, expected_tokens=100)
    observe(model, 500, 50, max_tokens=1000)
    assert model.estimate_ms(hinted) == 1000
    observe(model, 500, 50, max_tokens=1000, expected_tokens=100)
    assert model.estimate_ms(hinted) == pytest.approx(500)


def test_each_priority_has_its_own_lengths_and_borrows_them_before() -> None:
    model = ServiceModel(Prior())
    batch = World().request(max_tokens=100, priority="batch")
    observe(model, 200, 20, max_tokens=100)
    assert model.estimate_ms(batch) == 200
    observe(model, 800, 80, max_tokens=100, priority="batch")
    assert model.estimate_ms(batch) == pytest.approx(800)
    assert model.estimate_ms(World().request(max_tokens=100)) == pytest.approx(200)


def test_what_ended_without_output_or_time_teaches_nothing() -> None:
    model = ServiceModel(Prior())
    observe(model, 500, 0)
    observe(model, 0, 5)
    assert model.observations == 0


def test_the_spread_is_that_of_estimates_around_what_came() -> None:
    """It holds the unknown length too, not the speed alone."""
    model, request = ServiceModel(Prior()), World().request(max_tokens=100)
    assert model.spread(request) == eta.PRIOR_SPREAD
    for turn in range(400):
        observe(model, 500.0 if turn % 2 else 1000.0, 50 if turn % 2 else 100, max_tokens=100)
    assert model.spread(request) == pytest.approx(0.35, abs=0.03)  # ln(1000/750), ln(500/750)


def test_the_estimate_changes_when_and_only_when_service_times_slots_or_the_queue_change() -> None:
    """Issue 2, line 5."""
    world = World(slots=1)
    pool = world.core.pools["home"]

    def estimate() -> float:
        return forecast.start_ms(pool, "batch")

    world.admit()
    (lease,) = world.dispatch()
    world.admit()
    seen = [estimate()]
    world.now += 30  # time alone tells nothing
    world.output(lease, "a")
    assert estimate() == seen[0]
    world.admit(priority="batch")  # the queue
    seen.append(estimate())
    observe(pool.service, 9_000, 10)  # service times
    seen.append(estimate())
    world.now += 3600
    assert estimate() == seen[-1]
    world.ready(2)  # slots
    seen.append(estimate())
    assert len(set(seen)) == 4
    assert seen[1] > seen[0]
    assert seen[3] < seen[2]


def test_a_finished_task_is_observed_with_its_request() -> None:
    world = World(slots=1)
    world.admit(max_tokens=100, expected_tokens=10)
    (lease,) = world.dispatch()
    world.now += 2
    world.finish(lease, finish_reason="stop", usage=Usage(1, 20))
    service = world.core.pools["home"].service
    assert service.ms_per_unit == pytest.approx(100)
    assert service.estimate_ms(world.request(max_tokens=100, expected_tokens=10)) == pytest.approx(2000)


# -- chances -----------------------------------------------------------------------------------------------
@given(st.floats(1, 1e6), st.floats(0.1, 2), st.floats(0, 1e6))
def test_the_chance_to_be_on_time_grows_with_the_time_left(needed: float, spread: float, spent: float) -> None:
    chances = [eta.on_time_probability(left, needed, spread, spent) for left in (0, needed / 2, needed, 2 * needed)]
    assert chances == sorted(chances)
    assert all(0 <= c <= 1 for c in chances)
    assert eta.on_time_probability(needed, needed, spread) == 0.5


def test_the_chance_of_known_cases() -> None:
    """One spread above the median: 84 %. Having come as far as the median, what was the upper half is all there is."""
    assert eta.on_time_probability(1000 * exp(0.5), 1000, 0.5) == pytest.approx(0.8413, abs=1e-4)
    assert eta.on_time_probability(1000 * (exp(0.5) - 1), 1000, 0.5, 1000) == pytest.approx(0.6827, abs=1e-4)
    assert eta.on_time_probability(1, 0, 0.5) == 1
    assert eta.on_time_probability(1e3, 1, 0.5, 1e9) < 0.01


def test_a_task_that_waits_behind_more_has_less_chance_and_time_takes_it_away() -> None:
    world = World(slots=1, capacity=10)
    pool = world.core.pools["home"]
    first, second = (world.admit(deadline_ms=1500) for _ in range(2))
    before = forecast.on_time_probability(pool, first, world.now)
    assert 0 < forecast.on_time_probability(pool, second, world.now) < before < 1
    world.now += 1
    assert forecast.on_time_probability(pool, first, world.now) < before
    (lease,) = world.dispatch()
    assert forecast.on_time_probability(pool, first, world.now) > 0
    begun, needed, spread = world.now, pool.service.estimate_ms(first.request), pool.service.spread(first.request)
    for tick in range(1, 10):
        world.now = begun + tick / 20
        left = (first.deadline - world.now) * 1000
        so_far = eta.on_time_probability(left, needed, spread, tick * 50)
        assert forecast.on_time_probability(pool, first, world.now) == so_far, f"it has run for {tick * 50} ms"
    world.finish(lease)
    assert forecast.on_time_probability(pool, first, world.now) == 1


def test_the_simulation_holds_the_bars_and_repeats_itself() -> None:
    """Issue 2: under steady load; docs/estimates.md has the whole run."""
    runs = [simulation.one("steady", slots, seed)[2] for slots in (1, 4) for seed in range(2)]
    chance = simulation.score(simulation.at_admission(runs))
    assert simulation.errors(runs, simulation.ESTIMATE).median <= simulation.BAR_MEDIAN
    assert chance.brier <= min(simulation.BAR_BRIER, chance.constant)
    assert simulation.one("steady", 1, 0)[2] == runs[0]


def test_a_hint_counts_for_no_more_than_the_task_may_have() -> None:
    """OC-CTRL-2010: else a client's nonsense would refuse its own task, and spoil what others' hints are worth."""
    world = World()
    wild, full = (world.request(max_tokens=100, expected_tokens=n) for n in (2_000_000_000, 100))
    service = world.core.pools["home"].service
    assert service.estimate_ms(wild) == service.estimate_ms(full)
    service.observe(wild, 100, 1000.0, 1, world.now)
    assert service.estimate_ms(full) == pytest.approx(1000)
    world.admit(max_tokens=100, expected_tokens=2_000_000_000, deadline_ms=60_000)
