"""The journal: facts in the order of decisions, and when they are safe."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import Fact, JournaledTask, SessionDeleted
from orchestratord.domain.operation import PoolChanged
from orchestratord.ports.artifacts import Artifact


class Ticket(Protocol):
    """Resolved on the event loop when the fact is durable. Anybody may await it: a waiter that is cancelled leaves it
    as it is. Callbacks are called in the context they were added in and never in the call that adds them.

    Its result is None, except for `Finished` with a transcript source: then the transcript (`Artifact`).
    Its exception is a `JournalUnavailable`.
    """

    def __await__(self) -> Generator[Any, None, Any]: ...

    def done(self) -> bool: ...

    def result(self) -> Any: ...

    def exception(self) -> BaseException | None: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


class JournalUnavailable(Exception):
    """The journal could not make the fact durable; it is as if it had never been appended.

    Where the store failed, `reason` is what the system calls that (ENOSPC, SQLITE_FULL) and `remedy` what an operator
    does about it; neither quotes a fact.
    """

    def __init__(self, message: str, *, reason: str = "", remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(message)


class CatalogStore(Protocol):
    """Where the catalog is kept. Every journal is one: its entries are facts like others, so that there is one order
    of decisions and one writer. An entry is `CatalogChanged` as a whole, and gone with `CatalogRemoved`.
    """

    def append(self, fact: Fact) -> Ticket:
        """See `Journal.append`: durable when the ticket resolves, and without trace when it fails."""

    def catalog(self) -> list[CatalogEntry]:
        """Every entry as its last fact left it, as found by `open`, by id."""


class Journal(CatalogStore, Protocol):
    """Facts in decision order. `append` is synchronous; durability comes later, as a ticket."""

    def append(self, fact: Fact) -> Ticket:
        """Add a fact to the order now. Tickets resolve in append order, on the loop that called `open`.

        While the journal is not healthy, the ticket fails at once with JournalUnavailable. While it is too far
        behind, `Admitted` fails likewise, and `Frames` are left out: that task's later ones as well, so that what
        is stored has no gap; their tickets resolve at once.
        """

    async def open(self) -> list[JournaledTask]:
        """Open or create the store and return every task it knows, in admission order.

        Raises JournalUnavailable with a message that says what to do (locked by another daemon, newer schema,
        not writable).
        """

    def transcripts(self) -> list[tuple[str, Artifact]]:
        """(task id, transcript) of every `Finished` not yet `Archived`, as found by `open`: handed over, so once."""

    async def transcript(self, task_id: str) -> Artifact | None:
        """The transcript of a `Finished` not yet `Archived`, as its ticket had it; None if there is none, or it cannot
        be made any more. Raises JournalUnavailable.
        """

    def deleted_sessions(self) -> list[SessionDeleted]:
        """Every session deletion that still concerns a task `open` returned."""

    def changed_pools(self) -> list[PoolChanged]:
        """The last fact of every pool an operator ever changed, as found by `open`, by pool id."""

    async def log(self, task_id: str) -> bytes | None:
        """The whole event log of a finished task, byte for byte as far as it was journaled; None if there is
        no such task. Raises JournalUnavailable.
        """

    @property
    def healthy(self) -> bool:
        """False from a failed commit until the store accepts writes again."""

    def watch(self, changed: Callable[[JournalUnavailable | None], object]) -> None:
        """Have `changed` called on the loop from now on: with why, whenever the store stops accepting writes after it
        was opened, and with None when it accepts them again.
        """

    @property
    def backlog(self) -> int:
        """Bytes appended and not yet durable."""

    async def close(self) -> None:
        """Make everything appended durable and release the store. Idempotent."""
