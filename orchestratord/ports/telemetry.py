"""What is told: events, counts, figures; and when an answer is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

# In a scope's extensions: a layer's function, to be called when the answer is over. Who goes on with an answer after
# the app has returned takes it out and calls it; what is still there then, the layer calls itself.
OVER = "orchestratord.over"


class Telemetry(Protocol):
    """Domain words in, metrics and log lines out. Never raises, never blocks, never sees a prompt or a token."""

    def event(self, name: str, human: str = "", /, **fields: Any) -> None:
        """Something worth a log line: past-tense snake_case name, a short sentence, flat fields."""

    def count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter of the metrics table."""

    def observe(self, series: str, value: float, /, **labels: str) -> None:
        """Add an observation to a histogram of the metrics table, or set a gauge to the value."""

    def meter(self, series: str, /, **labels: str) -> Callable[[float], None]:
        """What `count` or `observe` would do with the values it is called with: for whoever does so often."""
