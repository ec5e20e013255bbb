"""`testing.checker`: a correct run has no finding, and every kind of fault is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.testing.checker import (
    KINDS,
    CancelAck,
    Finding,
    Kind,
    LeaseRecord,
    Reader,
    RunRecord,
    Seen,
    TaskRecord,
    check,
)

Ending = Literal["stop", "canceled", "error", "reset"]
STATES = {"stop": "ended", "canceled": "canceled", "error": "failed", "reset": "failed"}
METRICS = Seen(None, "metrics", {"queue_depth": 0, "on_time_probability": 1.0})


def make_log(texts: list[str], ending: Ending, skip: int = 0) -> list[Seen]:
    """All log events of a correct task."""
    log = [Seen(1, "started", {"queue_position": 0, "predicted_start_ms": 1})]
    log += [Seen(2 + index, "token", {"t": text, "i": index}) for index, text in enumerate(texts)]
    last = len(log) + 1
    if ending in ("stop", "canceled"):
        payload: dict[str, Any] = {"tokens_out": len(texts), "decode_ms": 1, "finish_reason": ending}
        return [*log, Seen(last, "end", payload)]
    code = "WORKER_RESET" if ending == "reset" else "INTERNAL"
    return [*log, Seen(last + (skip if ending == "reset" else 0), "error", {"code": code})]


def make_task(task_id: str, log: list[Seen], ending: Ending) -> TaskRecord:
    """A correct task that nobody watched."""
    terminal = log[-1]
    final: dict[str, Any] = {"state": STATES[ending], "last_event_id": terminal.id, "session_id": "s"}
    if terminal.event == "end":
        final["finish_reason"] = terminal.payload["finish_reason"]
    else:
        final["error"] = {"code": terminal.payload["code"]}
    text = "".join(seen.payload["t"] for seen in log if seen.event == "token")
    return TaskRecord(task_id, final=final, session_id="s", transcript=text)


@st.composite
def readers(draw: st.DrawFn, log: list[Seen], number: int) -> Reader:
    """Some correct view of a log: from anywhere, to anywhere, with metrics between."""
    after = draw(st.integers(0, len(log) - 1))
    until = draw(st.integers(after, len(log)))
    events: list[Seen] = []
    for seen in log[after:until]:
        metrics: bool = draw(st.booleans())
        if events and metrics:
            events.append(METRICS)
        events.append(seen)
    closed: Literal["end", "client", "cut"] = "end" if until == len(log) else draw(st.sampled_from(["client", "cut"]))
    return Reader(f"r{number}", log[after - 1].id or 0 if after else 0, events, closed)


@st.composite
def tasks(draw: st.DrawFn, number: int) -> TaskRecord:
    ending: Ending = draw(st.sampled_from(["stop", "canceled", "error", "reset"]))
    log = make_log(draw(st.lists(st.text(max_size=3), max_size=5)), ending, draw(st.integers(0, 900)))
    task = make_task(f"t{number}", log, ending)
    task.readers = [draw(readers(log, index)) for index in range(draw(st.integers(0, 3)))]
    task.cancels = [CancelAck(log[-1].id or 0, index) for index in range(draw(st.integers(0, 2)))]
    return task


@st.composite
def leases(draw: st.DrawFn) -> list[LeaseRecord]:
    """Slots of two replicas, each used again and again without overlap."""
    found: list[LeaseRecord] = []
    for replica, slots in (("a", 1), ("b", 2)):
        for slot in range(slots):
            now = 0
            for turn in range(draw(st.integers(0, 3))):
                start = now + draw(st.integers(0, 2))
                now = start + draw(st.integers(1, 3))
                found.append(LeaseRecord(f"{replica}{slot}{turn}", f"t{turn}", replica, slots, start, now))
    return found


@st.composite
def runs(draw: st.DrawFn) -> RunRecord:
    record = RunRecord([draw(tasks(number)) for number in range(draw(st.integers(0, 3)))], draw(leases()))
    if draw(st.booleans()):
        record.tasks.append(TaskRecord("refused", admission_status=429))
    return record


@given(runs())
def test_a_correct_run_has_no_finding(record: RunRecord) -> None:
    """Whoever reads from wherever, whatever the endings and however often it was cancelled."""
    assert check(record) == []


# -- faults
def typical() -> RunRecord:
    """One cancelled task with two whole readers, and two leases one after the other."""
    log = make_log(["a", "b", "c"], "canceled")
    task = make_task("t", log, "canceled")
    task.readers = [Reader("r1", 0, [*log]), Reader("r2", 0, [*log])]
    task.cancels = [CancelAck(5)]
    return RunRecord([task], [LeaseRecord("l1", "t", "a", 1, 0, 4), LeaseRecord("l2", "u", "a", 1, 4, 6)])


def events_of(record: RunRecord, reader: int = 0) -> list[Seen]:
    return record.tasks[0].readers[reader].events


def retold(position: int, **payload: Any) -> Callable[[RunRecord], None]:
    """Reader 1 is told another payload."""

    def change(record: RunRecord) -> None:
        events = events_of(record)
        events[position] = events[position]._replace(payload={**events[position].payload, **payload})

    return change


def other_bytes(record: RunRecord) -> None:
    events_of(record)[1] = events_of(record)[1]._replace(raw=b"one")
    events_of(record, 1)[1] = events_of(record, 1)[1]._replace(raw=b"other")


def status(**changes: Any) -> Callable[[RunRecord], None]:
    def change(record: RunRecord) -> None:
        final = record.tasks[0].final
        assert final is not None
        final.update(changes)

    return change


def nobody_ended(record: RunRecord) -> None:
    for reader in record.tasks[0].readers:
        reader.events.pop()
        reader.closed = "cut"


def second_terminal_for_another(record: RunRecord) -> None:
    events_of(record, 1)[-1] = Seen(6, "error", {"code": "INTERNAL"})


def set_final(final: dict[str, Any] | None) -> Callable[[RunRecord], None]:
    return lambda record: setattr(record.tasks[0], "final", final)


def set_cancels(*acks: CancelAck) -> Callable[[RunRecord], None]:
    return lambda record: setattr(record.tasks[0], "cancels", list(acks))


FAULTS: list[tuple[Kind, str, Callable[[RunRecord], object]]] = [
    ("late_token", "a token after the seal", lambda run: events_of(run).append(Seen(6, "token", {"t": "x", "i": 3}))),
    ("two_terminals", "one reader gets two", lambda run: events_of(run).append(Seen(6, "error", {"code": "INTERNAL"}))),
    ("two_terminals", "two readers get different ones", second_terminal_for_another),
    ("missing_terminal", "the stream just ends", lambda run: events_of(run).pop()),
    ("missing_terminal", "the task never ends", status(state="running")),
    ("missing_terminal", "tasks are left in the queue", lambda run: setattr(run, "queued", 1)),
    ("event_after_terminal", "metrics after the end", lambda run: events_of(run).append(METRICS)),
    ("event_after_terminal", "another reader's id is above it", second_terminal_for_another),
    ("gap", "a token is left out", lambda run: events_of(run).pop(2)),
    ("gap", "the end skips ids", lambda run: events_of(run).append(events_of(run).pop()._replace(id=9))),
    ("duplicate", "a token comes twice", lambda run: events_of(run).insert(2, events_of(run)[2])),
    ("divergent_readers", "another text under one id", retold(2, t="x")),
    ("divergent_readers", "other bytes under one id", other_bytes),
    ("lost_task", "the status is gone", set_final(None)),
    ("leaked_lease", "a lease stays", lambda run: setattr(run.leases[1], "released", None)),
    ("leaked_lease", "the counter says so", lambda run: setattr(run, "active_leases", 1)),
    ("overcommitted_slots", "two leases of one slot", lambda run: setattr(run.leases[1], "acquired", 3)),
    ("overcommitted_slots", "a strict task shares", lambda run: setattr(run.leases[0], "takes", 2)),
    ("order", "started is missing", lambda run: events_of(run).pop(0)),
    ("order", "started comes again", lambda run: events_of(run).insert(1, events_of(run)[0])),
    ("order", "a token without an id", lambda run: events_of(run).insert(1, Seen(None, "token", {"t": "", "i": 0}))),
    ("order", "metrics with an id", lambda run: events_of(run).insert(1, METRICS._replace(id=2))),
    ("order", "a resumed reader gets started", lambda run: setattr(run.tasks[0].readers[0], "after", 1)),
    ("wrong_cancel", "the seal is not the terminal id", set_cancels(CancelAck(4))),
    ("wrong_cancel", "two acks differ", set_cancels(CancelAck(5), CancelAck(6, 1))),
    ("status_disagrees", "another state", status(state="ended")),
    ("status_disagrees", "another last id", status(last_event_id=4)),
    ("status_disagrees", "another reason", status(finish_reason="stop")),
    ("status_disagrees", "an error nobody was told", status(error={"code": "INTERNAL"})),
    ("status_disagrees", "another session", status(session_id="other")),
    ("token_index", "i jumps", retold(2, i=5)),
    ("text_mismatch", "the transcript is short", lambda run: setattr(run.tasks[0], "transcript", "ab")),
]


@pytest.mark.parametrize(("kind", "what", "inject"), FAULTS, ids=[f"{kind}: {what}" for kind, what, _ in FAULTS])
def test_every_fault_is_found(kind: Kind, what: str, inject: Callable[[RunRecord], object]) -> None:
    """The run is correct without the fault, and with it the fault is named."""
    record = typical()
    assert check(record) == []
    inject(record)
    found = check(record)
    assert kind in {finding.kind for finding in found}, f"{what}: {found}"


def test_every_kind_has_a_fault() -> None:
    """No kind of finding goes untried."""
    assert {kind for kind, _, _ in FAULTS} == set(KINDS)


@settings(max_examples=50)
@given(runs(), st.sampled_from(FAULTS))
def test_a_fault_is_found_in_any_company(
    record: RunRecord, fault: tuple[Kind, str, Callable[[RunRecord], object]]
) -> None:
    """Correct tasks around it neither hide a fault nor are blamed for it."""
    kind, _, inject = fault
    faulty = typical()
    inject(faulty)
    merged = RunRecord(
        faulty.tasks + copy.deepcopy(record.tasks),
        faulty.leases + [lease for lease in record.leases if lease.replica_id != "a"],
        faulty.active_leases,
        faulty.queued,
    )
    found = check(merged)
    assert kind in {finding.kind for finding in found}
    assert found == check(faulty)


# -- what is not a fault
def crashed(transcript: str, tokens: list[str]) -> list[Finding]:
    log = make_log(tokens, "reset", 50)
    task = make_task("t", log, "reset")
    task.session_id, task.transcript = None, transcript
    task.readers = [Reader("r", 0, log)]
    return check(RunRecord([task]))


def test_a_crash_may_lose_recorded_text_but_not_change_it() -> None:
    """After WORKER_RESET the transcript holds what was recorded: a part of what was seen, or more."""
    assert crashed("a", ["a", "b"]) == crashed("abc", ["a", "b"]) == []
    assert [finding.kind for finding in crashed("x", ["a", "b"])] == ["text_mismatch"]


def test_what_nobody_saw_is_not_guessed() -> None:
    """Without a reader, or with a part of the log only, there is nothing to compare the transcript with."""
    record = typical()
    record.tasks[0].transcript = "other"
    record.tasks[0].readers = []
    assert check(record) == []
    record.tasks[0].readers = [Reader("r", 3, make_log(["a", "b", "c"], "canceled")[3:])]
    assert check(record) == []


def test_a_reader_with_nothing_more_to_come_needs_no_terminal_event() -> None:
    """The 204 to a reader that has the terminal event already is a complete view."""
    record = typical()
    record.tasks[0].readers = [Reader("r", 5, [], "end")]
    assert check(record) == []


def test_a_refused_task_promises_nothing() -> None:
    """Only an accepted task must end, and be known."""
    assert check(RunRecord([TaskRecord("t", admission_status=400)])) == []


def test_an_unended_task_without_readers_is_found() -> None:
    """The status alone tells that a task never ended."""
    record = typical()
    nobody_ended(record)
    status(state="running")(record)
    assert [(finding.kind, finding.task_id) for finding in check(record)] == [("missing_terminal", "t")]
