"""Sessions: turns, time to live and KV warmth. Metadata only, never conversation text."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestratord.domain.budget import Account, Amounts, Budget
from orchestratord.domain.errors import AdmissionReject
from orchestratord.domain.pool import Prefix


@dataclass(slots=True, eq=False)
class Session:
    """A conversation's account. Its TTL runs only while no task of it is live."""

    id: str
    turns: int = 0
    live: int = 0
    forgotten: int = 0  # turns it had when it was deleted; what they spent counts until its TTL would have ended
    idle_since: float = 0.0
    account: Account = field(default_factory=lambda: Account(Budget()))
    warm: Prefix | None = None  # where its last prefix was left
    kv_tokens: int | None = None  # of that prefix, where the engine counts them

    @property
    def deleted(self) -> bool:
        """Gone for its client: nothing was admitted to it since it was deleted."""
        return 0 < self.turns <= self.forgotten

    @property
    def kv_warm(self) -> bool:
        """True only while that replica still holds the prefix."""
        return self.warm is not None and self.warm.there

    @property
    def kv_bytes(self) -> int | None:
        """What that prefix takes there; None while it is not there, or where nobody can say."""
        if self.warm is None or not self.kv_warm or self.kv_tokens is None:
            return None
        layout = self.warm.replica.kv
        return layout.bytes_of(self.kv_tokens) if layout is not None else None

    @property
    def kv_lost(self) -> bool:
        """It had a prefix in a slot once and has it no more; prefixes are never moved."""
        return self.warm is not None and not self.kv_warm


class Sessions:
    """Every session that has not expired."""

    def __init__(self, ttl_s: float, turns_max: int, budget: Budget) -> None:
        self.ttl_s = ttl_s
        self.turns_max = turns_max
        self.budget = budget
        self._by_id: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, session_id: str, now: float) -> Session | None:
        session = self._by_id.get(session_id)
        if session is not None and not session.live and now - session.idle_since >= self.ttl_s:
            del self._by_id[session_id]
            return None
        return session

    def find(self, session_id: str, now: float) -> Session | None:
        """The session as its client may see it: not one that was deleted."""
        session = self.get(session_id, now)
        return None if session is None or session.deleted else session

    def ttl_left(self, session: Session, now: float) -> float:
        """Seconds until it expires if nothing of it were live from now on."""
        return self.ttl_s if session.live else max(0.0, self.ttl_s - (now - session.idle_since))

    def check(self, session_id: str, amounts: Amounts, now: float) -> None:
        """Raises AdmissionReject when the session has no turn or not enough budget left. Changes nothing."""
        session = self.get(session_id, now)
        if session is not None and session.turns >= self.turns_max:
            raise AdmissionReject(
                f"Session {session_id} has used its {self.turns_max} turns. Use a new session_id, "
                "or wait until it expires.",
                policy_label="session-turns",
                retriable=False,
                retry_after_ms=int(self.ttl_left(session, now) * 1000),
            )
        if self.budget.unlimited:
            return
        account = Account(self.budget) if session is None else session.account
        short = account.exceeded_by(amounts)
        if short is not None:
            left, needed = account.remaining()[short], getattr(amounts, short)
            raise AdmissionReject(
                f"The {short} budget of session {session_id} has {_told(short, left)} left, this task may need "
                f"{_told(short, needed)}. Ask for less, or use another session.",
                policy_label=f"budget-{short}",
                retriable=False,
                retry_after_ms=int((self.ttl_left(session, now) if session else self.ttl_s) * 1000),
            )

    def take_turn(self, session_id: str, amounts: Amounts, now: float) -> None:
        """One more live task, with `amounts` held for it."""
        session = self.get(session_id, now)
        if session is None:
            session = self._by_id[session_id] = Session(session_id, idle_since=now, account=Account(self.budget))
        session.turns += 1
        session.live += 1
        session.account.hold(amounts)

    def return_turn(self, session_id: str, amounts: Amounts, *, live: bool) -> None:
        """The admission of a task came to nothing: as if it had never been tried. `live`: it has not ended since."""
        session = self._by_id.get(session_id)
        if session is not None and (live or session.turns > session.live):  # else it has expired and begun again
            session.turns -= 1
            if live:
                session.live -= 1
                session.account.release(amounts)
            if not session.turns:
                del self._by_id[session_id]

    def task_ended(self, session_id: str, held: Amounts, used: Amounts, now: float) -> None:
        """A live task is over: settle what was held for it."""
        session = self._by_id.get(session_id)
        if session is not None:
            session.live -= 1
            session.idle_since = max(session.idle_since, now)  # a restart ends tasks in the order of their admission
            session.account.settle(held, used)

    def delete(self, session_id: str, now: float) -> None:
        """Forget all but what it has spent: coming back under the same id does not refill it. Its TTL runs on."""
        session = self.get(session_id, now)
        if session is not None:
            since = now if session.live else session.idle_since
            turns = session.turns
            self._by_id[session_id] = Session(session_id, turns, session.live, turns, since, session.account)

    def expire(self, now: float) -> None:
        """Drop what has expired; `get` would do it too, this bounds memory."""
        for session_id in list(self._by_id):
            self.get(session_id, now)


def _told(name: str, amount: int) -> str:
    """An amount of a budget in the unit of its configuration."""
    return {"tokens": f"{amount} tokens", "time": f"{amount} ms", "cost": f"{amount / 1_000_000:g}"}[name]
