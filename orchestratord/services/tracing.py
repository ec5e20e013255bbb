"""The Tracing port: spans of a task's life, for whoever wants them (OD-23).

Off, there is no tracing at all: where it would be told something, a None is looked at. It sees ids, counts, settings
and outcomes, and never a prompt or a text; nothing of it happens per token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from orchestratord.domain.pool import Lease
from orchestratord.domain.task import Task
from orchestratord.ports import Deliver, Job, JobEnd

Run = Callable[[Job, Deliver], Awaitable[None]]


class Tracing(Protocol):
    """No method but `call` raises anything, and none blocks."""

    def admitted(self, task: Task) -> None:
        """A task waits from now on. Called in the context of the request that brought it, if one did."""

    def started(self, lease: Lease) -> None:
        """A task waits no more."""

    async def call(self, lease: Lease, job: Job, run: Run, deliver: Deliver, end: Callable[[], JobEnd | None]) -> None:
        """One attempt: `await run(job, deliver)`, with the trace in the job. `end`: the engine's figures, afterwards.

        Raises what `run` raises.
        """

    def ended(self, task: Task) -> None:
        """A task is over."""
