"""How many values a label may have in one family: the first ones, and `other` for all that come later.

Nothing a client writes is a label, and most values are of the code or the configuration. What an engine says of itself
is not: without a bound, one that calls itself something else at each start would grow every scrape for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

BUDGET: dict[str, int] = {
    "engine": 4,
    "engine_version": 64,
    "pool_id": 256,
    "replica_id": 1024,
    "device": 64,
    "priority": 8,
    "reason": 16,
    "policy": 16,
    "code": 32,
    "phase": 2,
    "result": 4,
    "origin": 2,
    "kind": 4,
    "state": 8,
    "model_id": 1024,
    "outcome": 4,
    "pinned": 2,
    "fallback": 2,
    "version": 1,
    "api_version": 1,
}
FREE = frozenset({"none", "unknown", "other"})  # ours, for what has no value: they take nobody's place
VALUE_CHARS = 128


class LabelBudget:
    """Which values were there first, family by family."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], set[str]] = {}

    def fit(self, family: str, labels: Sequence[str], values: Sequence[str]) -> list[str]:
        """The values, with `other` for each that is one too many."""
        return [self._fit(family, label, value[:VALUE_CHARS]) for label, value in zip(labels, values, strict=True)]

    def _fit(self, family: str, label: str, value: str) -> str:
        if value in FREE:
            return value
        seen = self._seen.setdefault((family, label), set())
        if value in seen:
            return value
        if len(seen) >= BUDGET[label]:
            return "other"
        seen.add(value)
        return value
