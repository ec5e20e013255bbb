"""Budgets: tokens, time and cost of one session. Held at the worst case on admission, settled once at the end.

Amounts are integers (cost in millionths of the configured unit), so nothing drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestratord.domain.record import record
from orchestratord.domain.request import TaskRequest


@record
class Amounts:
    """Tokens, milliseconds on a slot, millionths of a cost unit."""

    tokens: int = 0
    time: int = 0
    cost: int = 0

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(self.tokens + other.tokens, self.time + other.time, self.cost + other.cost)

    def minus(self, other: Amounts) -> Amounts:
        return Amounts(self.tokens - other.tokens, self.time - other.time, self.cost - other.cost)

    def capped(self, most: Amounts) -> Amounts:
        return Amounts(min(self.tokens, most.tokens), min(self.time, most.time), min(self.cost, most.cost))


NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class Budget:
    """What one session may spend; None is no limit."""

    tokens: int | None = None
    time: int | None = None
    cost: int | None = None

    @property
    def unlimited(self) -> bool:
        return self.tokens is None and self.time is None and self.cost is None


@dataclass(frozen=True, slots=True)
class Tariff:
    """What work costs, in millionths of a unit. Tokens by the thousand: one alone may cost less than a millionth."""

    per_task: int = 0
    per_1k_in: int = 0
    per_1k_out: int = 0

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """Rounded up."""
        return self.per_task - -(self.per_1k_in * tokens_in + self.per_1k_out * tokens_out) // 1000


class Account:
    """One session's spending. Invariant: spent + held never exceeds the budget, and neither is negative."""

    __slots__ = ("budget", "held", "spent")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = self.spent = NOTHING

    def remaining(self) -> dict[str, int]:
        """What could still be held, of each budget that is configured."""
        budget, spent, held = self.budget, self.spent, self.held
        left = {}
        if budget.tokens is not None:
            left["tokens"] = max(0, budget.tokens - spent.tokens - held.tokens)
        if budget.time is not None:
            left["time"] = max(0, budget.time - spent.time - held.time)
        if budget.cost is not None:
            left["cost"] = max(0, budget.cost - spent.cost - held.cost)
        return left

    def exceeded_by(self, amounts: Amounts) -> str | None:
        """The first budget `amounts` would not fit into, or None."""
        return next((name for name, left in self.remaining().items() if getattr(amounts, name) > left), None)

    def hold(self, amounts: Amounts) -> None:
        self.held = amounts if self.held is NOTHING else self.held.plus(amounts)

    def release(self, held: Amounts) -> None:
        """The task came to nothing."""
        self.held = self.held.minus(held)

    def settle(self, held: Amounts, used: Amounts) -> None:
        """The task is over: what it used, never more than was held for it, replaces the hold."""
        self.held = self.held.minus(held)
        self.spent = self.spent.plus(used.capped(held))


def worst_case(request: TaskRequest, prompt_bound: int, tariff: Tariff) -> Amounts:
    """The most a task can use: every token it may produce, and its slot until the deadline."""
    out = request.max_tokens if request.workload == "completion" else 0
    return Amounts(prompt_bound + out, request.deadline_ms, tariff.cost(prompt_bound, out))
