"""Estimates: positions, starts, chances."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain import eta, forecast
from orchestratord.domain.eta import Prior, ServiceModel
from tests.domain.world import World

times = st.floats(1, 10_000)


@given(st.integers(1, 8), st.lists(times, max_size=8), st.lists(times, max_size=20), times)
def test_more_work_ahead_never_starts_earlier(
    slots: int, running: list[float], ahead: list[float], more: float
) -> None:
    running = running[:slots]
    assert eta.start_ms(slots, running, [*ahead, more]) >= eta.start_ms(slots, running, ahead)
    assert eta.start_ms(slots + 1, running, ahead) <= eta.start_ms(slots, running, ahead)


def test_one_slot_is_a_plain_sum() -> None:
    assert eta.start_ms(1, [100], [30, 40]) == 50 + 30 + 40
    assert eta.start_ms(2, [100], []) == 0


def test_the_prior_holds_until_the_first_observation_and_not_longer() -> None:
    """SPEC 2: estimates come from observed service times; before any, a documented prior."""
    model, request = ServiceModel(Prior(100, 20, 0.5)), World().request(max_tokens=100)
    assert model.estimate_ms(request) == 100 + 50 * 20
    assert model.units_per_s is None
    model.observe(500, 50, 100)
    assert model.estimate_ms(request) == 500
    assert model.units_per_s == 100


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
    pool.service.observe(9_000, 10, 10)  # service times
    seen.append(estimate())
    world.ready(2)  # slots
    seen.append(estimate())
    assert len(set(seen)) == 4
    assert seen[1] > seen[0]
    assert seen[3] < seen[2]


@given(st.floats(1, 1e6), st.floats(0.1, 2))
def test_the_chance_to_be_on_time_grows_with_the_time_left(needed: float, spread: float) -> None:
    chances = [eta.on_time_probability(left, needed, spread) for left in (0, needed / 2, needed, 2 * needed)]
    assert chances == sorted(chances)
    assert chances[2] == 0.5
    assert all(0 <= c <= 1 for c in chances)
