"""The Telemetry port: log lines through structlog (JSON, or readable on a terminal), numbers through prometheus."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import orjson
import structlog

from orchestratord.infra.prometheus import Metrics


def make_logger(stream: TextIO | None = None, *, readable: bool | None = None) -> Any:
    """A structlog logger on `stream` (stderr): one line per record, whatever a field contains."""
    stream = stream or sys.stderr
    if readable is None:
        readable = stream.isatty()
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: Any = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if readable
        else structlog.processors.JSONRenderer(
            serializer=lambda record, **_: orjson.dumps(record, default=repr).decode()
        )
    )
    return structlog.wrap_logger(structlog.PrintLogger(stream), processors=[*shared, last])


class StandardTelemetry:
    """What a daemon uses. Fields that are None are left out of the line."""

    def __init__(self, metrics: Metrics, logger: Any) -> None:
        self.metrics = metrics
        self._log = logger

    def event(self, name: str, human: str = "", /, **fields: Any) -> None:
        level = "error" if name.endswith("failed") else "warning" if name in _WARNINGS else "info"
        present = {key: value for key, value in fields.items() if value is not None}
        getattr(self._log, level)(name, human=human, **present)

    def count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        self.metrics.count(series, amount, labels)

    def observe(self, series: str, value: float, /, **labels: str) -> None:
        self.metrics.observe(series, value, labels)


_WARNINGS = frozenset({"replica_down", "slot_quarantined", "artifact_corrupt", "journal_down"})
