"""What would go past the log: words of libraries, exceptions nobody caught. They become lines like all others.

Left alone they would be printed as they are, over several lines, and quote whatever was at hand.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import threading
from typing import Any

from orchestratord.ports import Telemetry


def capture(telemetry: Telemetry) -> None:
    """For the whole process, for good."""
    logging.root.handlers[:] = [_Handler(telemetry)]
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, tb: _uncaught(telemetry, "the program", error)
    threading.excepthook = lambda found: _uncaught(telemetry, "a thread", found.exc_value)
    sys.unraisablehook = lambda found: _uncaught(telemetry, "the garbage collector", found.exc_value)


def capture_loop(telemetry: Telemetry, loop: asyncio.AbstractEventLoop) -> None:
    """asyncio's own messages; its default handler would print the repr of exceptions."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        telemetry.event("loop_failed", str(context.get("message", "unknown")), exc_info=error)

    loop.set_exception_handler(handle)


def no_core_dump() -> None:
    """The memory of this process holds prompts and keys: a crash must not write them to disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _uncaught(telemetry: Telemetry, where: str, error: BaseException | None) -> None:
    telemetry.event("uncaught_failed", f"an exception ended {where}", exc_info=error)


class _Handler(logging.Handler):
    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        name = "library_failed" if record.levelno >= logging.ERROR else "library_warned"
        said = str(record.msg) if error is not None or record.args else record.getMessage()
        self._telemetry.event(name, f"{record.name} says: {said}", exc_info=error)
