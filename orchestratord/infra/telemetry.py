"""The Telemetry port: log lines through structlog, numbers through prometheus."""

from __future__ import annotations

from typing import Any

from orchestratord.infra.prometheus import Metrics


class StandardTelemetry:
    """What a daemon uses. Fields that are None are left out of the line."""

    def __init__(self, metrics: Metrics, logger: Any) -> None:
        self.metrics = metrics
        self._log = logger

    def event(self, name: str, human: str = "", /, **fields: Any) -> None:
        level = "error" if name.endswith(_ERRORS) else "warning" if name in _WARNINGS else "info"
        present = {key: value for key, value in fields.items() if value is not None}
        getattr(self._log, level)(name, human=human, **present)

    def count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        self.metrics.count(series, amount, labels)

    def observe(self, series: str, value: float, /, **labels: str) -> None:
        self.metrics.observe(series, value, labels)


_ERRORS = ("failed", "broke")
_WARNINGS = frozenset({"replica_down", "slot_quarantined", "artifact_corrupt", "library_warned"})
