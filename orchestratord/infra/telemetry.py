"""The Telemetry port: log lines through a sink, numbers through prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.infra.logs import Sink, stamp
from orchestratord.infra.prometheus import Metrics


class StandardTelemetry:
    """What a daemon uses."""

    def __init__(self, metrics: Metrics, sink: Sink) -> None:
        self.metrics = metrics
        self._sink = sink

    def event(self, name: str, human: str = "", /, **fields: Any) -> None:
        level = "error" if name.endswith(_ERRORS) else "warning" if name in _WARNINGS else "info"
        self._sink({"event": name, "level": level, "timestamp": stamp(), "human": human, **fields})

    def count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        self.metrics.count(series, amount, labels)

    def observe(self, series: str, value: float, /, **labels: str) -> None:
        self.metrics.observe(series, value, labels)

    def meter(self, series: str, /, **labels: str) -> Callable[[float], None]:
        return self.metrics.meter(series, labels)


_ERRORS = ("failed", "broke")
_WARNINGS = frozenset({"replica_down", "slot_quarantined", "artifact_corrupt", "library_warned", "secret_exposed"})
