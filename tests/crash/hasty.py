"""A daemon with a deliberate fault, for a check that must notice: it acknowledges before its journal has committed.

Every fact reaches the journal a moment late, while the tickets of admissions resolve at once, as with a cache that
writes behind. `python -m tests.crash.hasty serve ...`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from orchestratord.cli import main
from orchestratord.domain.facts import Admitted
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.infra.journal.tickets import Ticket

BEHIND_S = 0.2


def _settle(ours: Ticket, real: Ticket) -> None:
    if ours.done():
        return
    error = real.exception()
    if error is None:
        ours.resolve(real.result())
    else:
        ours.fail(error)


def hasty(append: Any) -> Any:
    """`append`, behind its callers' backs."""

    def later(self: SqliteJournal, fact: Any) -> Ticket:
        loop = asyncio.get_running_loop()
        ticket = Ticket(loop)
        if isinstance(fact, Admitted):
            ticket.resolve()
        loop.call_later(BEHIND_S, lambda: append(self, fact).add_done_callback(lambda real: _settle(ticket, real)))
        return ticket

    return later


if __name__ == "__main__":
    SqliteJournal.append = hasty(SqliteJournal.append)  # type: ignore[method-assign]
    sys.exit(main())
