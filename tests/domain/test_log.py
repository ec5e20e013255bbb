"""The event log and cursors over it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.log import EventLog
from orchestratord.wire import sse


def _token(event_id: int, text: str, index: int) -> bytes:
    return sse.TOKEN % (event_id, sse.quote(text), index)


def _log(texts: list[str]) -> EventLog:
    log = EventLog()
    log.append(sse.encode(1, "started", {}))
    log.open()
    for index, text in enumerate(texts):
        log.append(_token(log.next_id, text, index))
    return log


@given(st.lists(st.text(max_size=20), max_size=20), st.data())
def test_a_resume_gets_exactly_what_was_missed(texts: list[str], data: st.DataObject) -> None:
    """OC-CTRL-2020..2029: prefix plus resumed rest is the log, wherever the reader broke off."""
    log = _log(texts)
    log.seal()
    log.close(sse.encode(log.next_id, "end", {}))
    log.reveal()
    seen = data.draw(st.integers(0, log.last_id))
    rest = log.read(log.offset_after(seen))
    assert log.raw()[: log.offset_after(seen)] + rest == log.raw()
    assert [event_id for event_id, _, _ in sse.decode(rest)] == list(range(seen + 1, log.last_id + 1))


@given(st.lists(st.text(max_size=30), min_size=1, max_size=30), st.integers(1, 400))
def test_a_bounded_read_gives_whole_frames_and_misses_none(texts: list[str], limit: int) -> None:
    log = _log(texts)
    offset, parts = 0, []
    while part := log.read(offset, limit):
        assert part.endswith(b"\n\n")
        assert len(part) <= limit or part.count(b"\n\n") == 1
        parts.append(part)
        offset += len(part)
    assert b"".join(parts) == log.raw()


@given(st.text())
def test_no_token_text_can_forge_a_frame(text: str) -> None:
    """SSE-1001: whatever the engine says is one frame and round-trips."""
    frame = _token(2, text, 0)
    assert sse.split(frame) == [frame]
    assert sse.decode(frame) == [(2, "token", {"t": text, "i": 0})]


def test_a_terminal_id_that_skips_ahead_still_resumes() -> None:
    """SPEC 4: only after a crash; ids skip, never repeat."""
    log = _log(["a", "b"])
    log.seal()
    log.close(sse.encode(100, "error", {}), 100)
    log.reveal()
    assert log.last_id == 100
    for seen in (3, 50, 99):
        assert [event_id for event_id, _, _ in sse.decode(log.read(log.offset_after(seen)))] == [100]
    assert log.read(log.offset_after(100)) == b""


def test_the_last_event_that_is_told_is_one_a_reader_may_see() -> None:
    """ORCH-2002: `last_event_id` never runs ahead of what is durable, and counts what a crash has skipped."""
    log = _log(["a", "b"])
    assert log.visible_id == log.last_id == 3
    log.seal()
    log.close(sse.encode(100, "error", {}), 100)
    assert log.visible_id == 3
    log.reveal()
    assert log.visible_id == 100


def test_an_empty_log_has_no_bytes() -> None:
    assert EventLog().size == 0


def test_readers_are_woken_once_per_batch() -> None:
    log = _log([])
    wakes = []
    log.watch(lambda: wakes.append(1))
    log.append(*(_token(log.next_id + index, "x", index) for index in range(10)))
    assert (len(wakes), log.visible_id) == (1, 11)


def test_an_evicted_log_keeps_its_places_and_comes_back_byte_for_byte() -> None:
    """SPEC 4 (retention): memory is bounded, ids and offsets do not change."""
    log = _log(["a", "b"])
    log.seal()
    log.close(sse.encode(log.next_id, "end", {}))
    log.reveal()
    whole, size, offsets = log.raw(), log.size, [log.offset_after(i) for i in range(5)]
    log.evict()
    assert (log.raw(), log.evicted, log.size) == (b"", True, size)
    assert [log.offset_after(i) for i in range(5)] == offsets
    log.restore(whole)
    assert log.read(log.offset_after(2)) == whole[offsets[2] :]
