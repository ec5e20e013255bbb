"""Budgets: held at the worst case, settled once, never overspent, never leaked (I15)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestratord import mapping
from orchestratord.config import TariffSettings
from orchestratord.domain.budget import Account, Amounts, Budget, Tariff
from orchestratord.domain.errors import AdmissionReject
from orchestratord.domain.hooks import Limits
from orchestratord.domain.outcome import Failure, Usage
from tests.domain.test_core import Boom
from tests.domain.test_recovery import restart
from tests.domain.world import World

LIMITS = Limits(turns_max=10_000, budget=Budget(tokens=100, time=100_000, cost=5_000), tariff=Tariff(10, 1_000, 20_000))


def world(**fields: Any) -> World:
    return World(slots=2, capacity=50, limits=LIMITS, **fields)


def account(w: World, session_id: str = "s") -> Any:
    return w.core.sessions.get(session_id, w.now).account  # type: ignore[union-attr]


def test_a_task_holds_its_worst_case_and_is_settled_at_what_it_used() -> None:
    """ORCH-3099: prompt bound and max_tokens are held; the engine's count is charged."""
    w = world()
    w.admit(session_id="s", bound=10, max_tokens=30, deadline_ms=20_000)
    assert account(w).held == Amounts(40, 20_000, 10 + 10 + 600)
    (lease,) = w.dispatch()
    w.now += 2
    w.output(lease, "a")
    w.finish(lease, finish_reason="stop", usage=Usage(tokens_in=8, tokens_out=5))
    assert account(w).held == Amounts()
    assert account(w).spent == Amounts(13, 2000, 10 + 8 + 100)
    assert account(w).remaining() == {"tokens": 87, "time": 98_000, "cost": 4_882}


def test_an_engine_cannot_charge_more_than_was_held() -> None:
    """ORCH-3099: whatever it counts, the budget is not overspent."""
    w = world()
    w.admit(session_id="s", bound=10, max_tokens=30, deadline_ms=20_000)
    (lease,) = w.dispatch()
    w.now += 500  # far beyond its deadline
    w.output(lease, "a")
    w.finish(lease, finish_reason="length", usage=Usage(tokens_in=10_000, tokens_out=10_000))
    assert account(w).held == Amounts()
    assert account(w).spent == Amounts(40, 20_000, 10 + 10 + 600)


def test_an_account_is_never_charged_more_than_it_held() -> None:
    """The last guard, whoever settles."""
    ours = Account(Budget(tokens=10, time=10, cost=10))
    ours.hold(Amounts(5, 6, 7))
    ours.settle(Amounts(5, 6, 7), Amounts(50, 60, 70))
    assert (ours.held, ours.spent) == (Amounts(), Amounts(5, 6, 7))


@pytest.mark.parametrize(
    ("fields", "label", "told"),
    [
        ({"max_tokens": 98}, "budget-tokens", "100 tokens left, this task may need 101 tokens"),
        ({"deadline_ms": 100_001}, "budget-time", "100000 ms left, this task may need 100001 ms"),
        ({"max_tokens": 90, "bound": 3}, "budget-cost", "0.001 left, this task may need 0.001813"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_costs_nothing(fields: dict[str, Any], label: str, told: str) -> None:
    limits = LIMITS if label != "budget-cost" else Limits(budget=Budget(cost=1000), tariff=LIMITS.tariff)
    w = World(limits=limits)
    with pytest.raises(AdmissionReject) as refused:
        w.admit(session_id="s", **{"deadline_ms": 50_000, **fields})
    assert refused.value.policy_label == label
    assert told in refused.value.message
    assert refused.value.is_retriable is False
    assert refused.value.retry_after_ms == 600_000
    assert len(w.core.sessions) == 0


def test_a_token_that_costs_less_than_a_millionth_is_not_for_free() -> None:
    """ORCH-3099: at 0.00015 units for 1,000 tokens a million of them cost 0.15 units, and one no less than it does."""
    settings = TariffSettings(per_1k_tokens_in=0.00015, per_1k_tokens_out=0.0014)
    priced = mapping.tariff(settings)
    assert priced.cost(1_000_000, 0) == 150_000
    assert priced.cost(0, 1_000_000) == 1_400_000
    assert (priced.cost(1, 0), priced.cost(7, 0), priced.cost(0, 0)) == (1, 2, 0)


def test_turns_are_looked_at_before_budgets() -> None:
    """OC-CTRL-2010: where neither is left, that is what is said."""
    w = world()
    w.core.sessions.turns_max = 1
    w.admit(session_id="s", max_tokens=60, deadline_ms=20_000)
    with pytest.raises(AdmissionReject) as refused:
        w.admit(session_id="s", max_tokens=60, deadline_ms=20_000)
    assert refused.value.policy_label == "session-turns"


def test_a_task_that_never_started_is_charged_nothing() -> None:
    w = world()
    task = w.admit(session_id="s", deadline_ms=20_000)
    w.cancel(task)
    assert (account(w).held, account(w).spent) == (Amounts(), Amounts())


def test_a_task_that_waits_for_another_attempt_has_used_nothing() -> None:
    """ORCH-3099, OD-24: the first one came to nothing through the engine's fault, and no slot is held since."""
    world = World(slots=1, limits=Limits(budget=Budget(tokens=1000, time=1_000_000)))
    task = world.admit(session_id="s", deadline_ms=600_000)
    (lease,) = world.dispatch()
    world.now += 1
    world.core.retry(lease, world.now + 50)
    world.now += 40
    world.cancel(task)
    assert world.core.session("s", world.now).account.spent == Amounts()


def test_a_failed_commit_gives_the_hold_back() -> None:
    w = world()
    w.admit(session_id="s", deadline_ms=20_000)
    w.auto = False
    w.admit(session_id="s", deadline_ms=20_000)
    w.tickets[-1].resolve(Boom())
    assert account(w).held.time == 20_000


def test_deleting_a_session_does_not_refill_it() -> None:
    """ORCH-3023: what was spent counts until the TTL would have ended."""
    w = world()
    w.admit(session_id="s", max_tokens=60, deadline_ms=20_000)
    (lease,) = w.dispatch()
    w.finish(lease, finish_reason="stop", usage=Usage(tokens_in=3, tokens_out=60))
    w.core.delete_session("s", w.now, w.wall_ms)
    with pytest.raises(AdmissionReject):
        w.admit(session_id="s", max_tokens=60, deadline_ms=20_000)
    w.now += 600
    w.admit(session_id="s", max_tokens=60, deadline_ms=20_000)


@settings(max_examples=100, stateful_step_count=40, deadline=None)
class BudgetMachine(RuleBasedStateMachine):
    """Random lives against one session's account."""

    def __init__(self) -> None:
        super().__init__()
        self.world = world()
        self.tasks: list[Any] = []
        self.leases: list[Any] = []

    @rule(tokens=st.integers(1, 40), bound=st.integers(1, 10), seconds=st.integers(1, 30))
    def submit(self, tokens: int, bound: int, seconds: int) -> None:
        try:
            task = self.world.admit(session_id="s", max_tokens=tokens, bound=bound, deadline_ms=seconds * 1000)
        except Exception:
            return
        self.tasks.append(task)

    @rule()
    def dispatch(self) -> None:
        self.leases += self.world.dispatch()

    @precondition(lambda self: self.leases)
    @rule(count=st.integers(0, 60), prompt=st.none() | st.integers(0, 60), fails=st.booleans())
    def finish(self, count: int, prompt: int | None, fails: bool) -> None:
        lease = self.leases.pop(0)
        failure = Failure("WORKER_RESET", "gone", "llamacpp") if fails else None
        self.world.finish(lease, failure=failure, finish_reason=None if fails else "stop", usage=Usage(prompt, count))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.world.cancel(data.draw(st.sampled_from(self.tasks)))

    @rule(seconds=st.integers(1, 20))
    def pass_time(self, seconds: int) -> None:
        self.world.now += seconds
        self.world.core.expire(self.world.now, self.world.wall_ms)

    @rule()
    def crash(self) -> None:
        """Nothing that was settled or held is lost or doubled by a restart."""
        before = self.world.core.sessions.get("s", self.world.now)
        after = restart(self.world, 0, LIMITS).core.sessions.get("s", self.world.now)
        if before is not None and after is not None and not before.live:
            assert after.account.spent == before.account.spent

    @invariant()
    def spending_stays_within_the_budget(self) -> None:
        session = self.world.core.sessions.get("s", self.world.now)
        if session is None:
            return
        open_tasks = [t for t in self.tasks if not t.terminal and t.task_id in self.world.core.tasks]
        held = Amounts()
        for task in open_tasks:
            held = held.plus(task.admitted.held)
        assert session.account.held == held
        total = session.account.spent.plus(held)
        assert 0 <= total.tokens <= 100
        assert 0 <= total.time <= 100_000
        assert 0 <= total.cost <= 5_000


TestBudget = BudgetMachine.TestCase
