"""Judges what was seen of a whole run: readers, cancels, leases and the state at the end.

It knows the promises of the contract and nothing of the daemon, so the same record can come from a unit test, a
simulation or a real deployment. A record is taken when the run is over: every task that was accepted has had its time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal[
    "late_token",  # a token above the seal of a cancel
    "two_terminals",  # more than one terminal event
    "missing_terminal",  # accepted, and never over
    "event_after_terminal",
    "gap",  # an event left out
    "duplicate",  # an event told twice to one reader
    "divergent_readers",  # two readers were told different things under one id
    "lost_task",  # accepted, and unknown at the end
    "leaked_lease",  # a lease nobody gave back
    "overcommitted_slots",  # more leases at once than a replica has slots
    "order",  # `started` is not the first event, or an id where none belongs
    "wrong_cancel",  # a cancel named another id than that of the terminal event
    "status_disagrees",  # the status says otherwise than the terminal event
    "token_index",  # `i` does not count from 0
    "text_mismatch",  # the transcript is not what the tokens say
]
KINDS: tuple[Kind, ...] = get_args(Kind)
TERMINAL_EVENTS = frozenset({"end", "error"})
TERMINAL_STATES = frozenset({"ended", "canceled", "failed"})


class Seen(NamedTuple):
    """One event as one reader got it. `raw`, where known, lets readers be compared byte by byte."""

    id: int | None
    event: str
    payload: Any
    raw: bytes = b""


@dataclass(slots=True)
class Reader:
    """One stream. `after` is the last event id the reader had; 0 from the start.

    closed: "end" - by the daemon, as finished; "client" - the reader left; "cut" - the connection or the daemon broke.
    """

    reader_id: str
    after: int = 0
    events: list[Seen] = field(default_factory=list)
    closed: Literal["end", "client", "cut"] = "end"


@dataclass(slots=True)
class CancelAck:
    """A 204 to a cancel: the id it named, and its place in the order of the whole run."""

    seal: int
    index: int = 0


@dataclass(slots=True)
class TaskRecord:
    """Everything seen of one task. `final` is its last TaskStatus; None when the daemon did not know it."""

    task_id: str
    admission_status: int = 202
    readers: list[Reader] = field(default_factory=list)
    cancels: list[CancelAck] = field(default_factory=list)
    final: dict[str, Any] | None = None
    session_id: str | None = None
    transcript: str | None = None

    def log(self) -> dict[int, Seen]:
        """Every log event anyone saw, by id in order; of several under one id the first."""
        merged: dict[int, Seen] = {}
        for reader in self.readers:
            for seen in reader.events:
                if seen.id is not None:
                    merged.setdefault(seen.id, seen)
        return dict(sorted(merged.items()))


@dataclass(slots=True)
class LeaseRecord:
    """One lease. `slots` is how many the replica has, `takes` how many of them this lease holds."""

    lease_id: str
    task_id: str
    replica_id: str
    slots: int
    acquired: int
    released: int | None
    takes: int = 1


@dataclass(slots=True)
class RunRecord:
    """A whole run. Lease indexes are places in one order of events."""

    tasks: list[TaskRecord] = field(default_factory=list)
    leases: list[LeaseRecord] = field(default_factory=list)
    active_leases: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise; `task_id` is None when it is nobody's in particular."""

    kind: Kind
    task_id: str | None
    detail: str


def check(record: RunRecord) -> list[Finding]:
    """Every broken promise of the run; [] for a correct one."""
    findings = [
        Finding(kind, task.task_id, detail)
        for task in record.tasks
        if task.admission_status == 202
        for kind, detail in _task(task)
    ]
    findings += _leases(record)
    if record.queued:
        findings.append(Finding("missing_terminal", None, f"{record.queued} tasks are queued at the end"))
    return findings


Broken = Iterator[tuple[Kind, str]]


def _task(task: TaskRecord) -> Broken:
    log = task.log()
    for reader in task.readers:
        for kind, detail in _reader(reader):
            yield kind, f"reader {reader.reader_id}: {detail}"
    terminals = {(seen.id, seen.event) for reader in task.readers for seen in reader.events if _terminal(seen)}
    if len(terminals) > 1:
        yield "two_terminals", f"{sorted(terminals, key=str)}"
    terminal = next((seen for seen in log.values() if _terminal(seen)), None)
    yield from _ending(task, terminal)
    yield from _cancels(task, terminal)
    yield from _divergence(task, log)
    if terminal is not None and task.transcript is not None:
        yield from _text(task.transcript, log, terminal)


def _terminal(seen: Seen) -> bool:
    return seen.event in TERMINAL_EVENTS


def _lost_process(seen: Seen) -> bool:
    return seen.event == "error" and seen.payload.get("code") == "WORKER_RESET"


def _reader(reader: Reader) -> Broken:
    """What one reader alone can tell."""
    names = [seen.event for seen in reader.events]
    if reader.after == 0 and names and names[0] != "started":
        yield "order", f"the first event is {names[0]}"
    if "started" in names[reader.after == 0 :]:
        yield "order", "started is not the first event"
    over = [index for index, name in enumerate(names) if name in TERMINAL_EVENTS]
    if over and over[0] < len(names) - 1:
        yield "event_after_terminal", f"{names[over[0] + 1]} after {names[over[0]]}"
    if len(over) > 1:
        yield "two_terminals", f"{[names[index] for index in over]}"
    expected, index = reader.after + 1, None if reader.after else 0
    for seen in reader.events:
        if (seen.id is None) != (seen.event == "metrics"):
            yield "order", f"{seen.event} {'without' if seen.id is None else 'with'} an id"
        if seen.event == "token":
            if index is not None and seen.payload.get("i") != index:
                yield "token_index", f"token {seen.id} has index {seen.payload.get('i')}, expected {index}"
            index = seen.payload.get("i", -1) + 1
        if seen.id is None:
            continue
        if seen.id < expected:
            yield "duplicate", f"{seen.event} {seen.id} though {expected} was next"
        elif seen.id > expected and not _lost_process(seen):
            yield "gap", f"{seen.event} {seen.id} though {expected} was next"
        expected = seen.id + 1


def _ending(task: TaskRecord, terminal: Seen | None) -> Broken:
    """Whether the task came to its one end, and every view agrees on it."""
    state = task.final["state"] if task.final else None
    if task.final is None:
        yield "lost_task", "accepted, and unknown at the end"
    elif state not in TERMINAL_STATES:
        yield "missing_terminal", f"the task is {state} at the end"
    last = terminal.id if terminal else (task.final or {}).get("last_event_id")
    for reader in task.readers:
        ended = any(_terminal(seen) for seen in reader.events)
        if reader.closed == "end" and not ended and (last is None or reader.after < last):
            yield "missing_terminal", f"the stream of reader {reader.reader_id} ended without one"
    if task.final is None or terminal is None:
        return
    stray = {seen.id for seen in task.log().values() if (seen.id or 0) > (terminal.id or 0)}
    if stray:
        yield "event_after_terminal", f"ids {sorted(filter(None, stray))} above the terminal event {terminal.id}"
    told = {
        "state": _state(terminal),
        "last_event_id": terminal.id,
        "finish_reason": terminal.payload.get("finish_reason"),
    }
    if task.session_id is not None:
        told["session_id"] = task.session_id
    for name, value in told.items():
        if task.final.get(name) != value:
            yield "status_disagrees", f"{name} is {task.final.get(name)!r}, the terminal event says {value!r}"
    code, failure = terminal.payload.get("code"), task.final.get("error") or {}
    if failure.get("code") != code:
        yield "status_disagrees", f"the error is {failure.get('code')}, the terminal event says {code}"


def _state(terminal: Seen) -> str:
    if terminal.event == "error":
        return "failed"
    return "canceled" if terminal.payload.get("finish_reason") == "canceled" else "ended"


def _cancels(task: TaskRecord, terminal: Seen | None) -> Broken:
    """A seal is the id of the terminal event, whoever asks and however often; no token is above it."""
    last = terminal.id if terminal else (task.final or {}).get("last_event_id")
    for ack in sorted(task.cancels, key=lambda ack: ack.index):
        if last is not None and ack.seal != last:
            yield "wrong_cancel", f"cancel {ack.index} said {ack.seal}, the last event is {last}"
        last = ack.seal if last is None else last
        for reader in task.readers:
            for seen in reader.events:
                if seen.event == "token" and (seen.id or 0) > ack.seal:
                    yield "late_token", f"reader {reader.reader_id} got token {seen.id} above the seal {ack.seal}"


def _divergence(task: TaskRecord, log: dict[int, Seen]) -> Broken:
    for reader in task.readers:
        for seen in reader.events:
            if seen.id is None:
                continue
            first = log[seen.id]
            same_bytes = not (seen.raw and first.raw) or seen.raw == first.raw
            if (seen.event, seen.payload) != (first.event, first.payload) or not same_bytes:
                yield "divergent_readers", f"reader {reader.reader_id} got {seen[:3]}, another one {first[:3]}"


def _text(transcript: str, log: dict[int, Seen], terminal: Seen) -> Broken:
    """The transcript holds all the tokens; after a crash, what of them was recorded."""
    below = [event_id for event_id in log if event_id < (terminal.id or 0)]
    if below != list(range(1, len(below) + 1)):
        return  # nobody saw it all
    text = "".join(seen.payload["t"] for seen in log.values() if seen.event == "token")
    if _lost_process(terminal):
        if not (text.startswith(transcript) or transcript.startswith(text)):
            yield "text_mismatch", f"the transcript {transcript!r} and what was seen, {text!r}, part ways"
    elif len(below) == (terminal.id or 0) - 1 and text != transcript:
        yield "text_mismatch", f"the transcript says {transcript!r}, the tokens {text!r}"


def _leases(record: RunRecord) -> Iterator[Finding]:
    for lease in record.leases:
        if lease.released is None:
            yield Finding("leaked_lease", lease.task_id, f"lease {lease.lease_id} on {lease.replica_id} is still held")
    if record.active_leases:
        yield Finding("leaked_lease", None, f"{record.active_leases} leases are active at the end")
    moves: dict[str, list[tuple[int, int, LeaseRecord]]] = defaultdict(list)
    for lease in record.leases:
        moves[lease.replica_id].append((lease.acquired, lease.takes, lease))
        if lease.released is not None:
            moves[lease.replica_id].append((lease.released, -lease.takes, lease))
    for replica, steps in moves.items():
        held = 0
        for _, change, lease in sorted(steps, key=lambda step: step[:2]):  # of one moment, releases come first
            held += change
            if change > 0 and held > lease.slots:
                yield Finding("overcommitted_slots", lease.task_id, f"{held} of {lease.slots} slots of {replica}")
