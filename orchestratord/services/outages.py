"""Outages of the journal in the log: one line when it cannot be written, one when it is back."""

from __future__ import annotations

from orchestratord.ports import Clock, JournalUnavailable, Telemetry, Timer

PAUSE_S = 10.0  # from one line about an outage to the next: a disk that comes and goes does not fill the log


class Outages:
    """`changed` is what a `Journal.watch` calls."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._outage: tuple[JournalUnavailable, float] | None = None  # why, and since when
        self._due: Timer | None = None  # it is told then, if it lasts so long
        self._next = self._clock.now()  # when the next may be told
        self._untold = 0  # outages that came and went before that

    def changed(self, why: JournalUnavailable | None) -> None:
        now = self._clock.now()
        if why is not None:
            self._outage = why, now
            if now >= self._next:
                self._tell()
            else:
                self._due = self._clock.call_at(self._next, self._tell)
        elif self._due is not None:
            self._due.cancel()
            self._due = None
            self._untold += 1
        elif self._outage is not None:
            seconds = now - self._outage[1]
            said = f"the journal is written again, after {seconds:.1f} s: tasks are accepted"
            self._telemetry.event("journal_recovered", said, outage_ms=round(seconds * 1000))

    def _tell(self) -> None:
        assert self._outage is not None
        why, _ = self._outage
        reason = why.reason or "unknown"
        said = f"the journal cannot be written ({reason}): tasks are refused, running ones go on"
        said += f". {why.remedy}" if why.remedy else ""
        self._telemetry.event("journal_failed", said, reason=reason, untold=self._untold or None)
        self._due = None
        self._untold = 0
        self._next = self._clock.now() + PAUSE_S
