"""What a connection makes of reads: the way past the parser, held to the way through it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestratord.infra.engines import http1
from orchestratord.infra.engines.http1 import Connection
from orchestratord.infra.engines.sse import SSEDecoder
from tests.turns import turn_of_loop

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Socket:
    """As much of a transport as a connection needs."""

    closed = False

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def chunk(body: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(body), extension, body)


def events_of(
    reads: list[bytes], *, short: bool, refuse: frozenset[int] = frozenset()
) -> tuple[list[bytes], int, bool]:
    """The events of a reply that comes in these reads, how many of them went past the parser, and whether the
    connection lived. refuse: events that are not taken when they are offered."""
    found: list[bytes] = []
    passed = 0

    async def scenario() -> bool:
        nonlocal passed
        connection = Connection("here", (), lambda _: None)
        connection.connection_made(Socket())  # type: ignore[arg-type]
        reply = connection.ask(b"")
        connection.data_received(HEAD)
        decoder = SSEDecoder()

        def offered(line: bytes) -> bool:
            nonlocal passed
            if len(found) in refuse:
                return False
            found.append(line)
            passed += 1
            return True

        def read(data: bytes) -> bool:
            found.extend(decoder.feed(data))
            reply.event = offered if short and decoder.between else None
            return True

        reading = asyncio.ensure_future(reply.each(read))
        await turn_of_loop()
        for data in reads:
            if not connection._transport.is_closing():
                connection.data_received(data)
        lived = not connection._transport.is_closing()
        reading.cancel()
        await asyncio.wait({reading})
        return lived

    lived = asyncio.run(scenario())
    return found, passed, lived


LINES = st.binary(max_size=40).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b""))
ODD = st.sampled_from(
    [
        chunk(b": a comment\n\n"),
        chunk(b"data: one\n\ndata: two\n\n"),
        chunk(b"data: one\ndata: two\n\n"),
        chunk(b"data: one\r\n\r\n"),
        chunk(b"data: be") + chunk(b"gun\n\n"),
        chunk(b"data:unspaced\n\n"),
        chunk(b"data: extended\n\n", b";a=b"),
        chunk(b"event: name\ndata: named\n\n"),
        b"12\r\ndata: 0123456789\n\n\r\n",
        b"0E\r\ndata: upper!\n\n\r\n",
    ]
)
PLAIN = LINES.map(lambda line: chunk(b"data: %b\n\n" % line))


@given(
    st.lists(st.one_of(PLAIN, PLAIN, ODD), max_size=12),
    st.lists(st.integers(0, 600), max_size=4),
    st.frozensets(st.integers(0, 12), max_size=3),
)
@example([chunk(b"data: aaaa\n\n")] * 4, [], frozenset())
def test_events_are_the_same_past_the_parser(chunks: list[bytes], cuts: list[int], refuse: frozenset[int]) -> None:
    """However the reads fall, and whatever is not taken."""
    whole, ends, reads = b"".join(chunks), set(), []
    for data in chunks:
        ends.add(sum(map(len, reads)) + len(data))
        reads.append(data)
    ends = sorted({*ends, *(cut for cut in cuts if cut < len(whole))})
    reads = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    through, none, _ = events_of(reads, short=False)
    past, _, lived = events_of(reads, short=True, refuse=refuse)
    assert (past, none, lived) == (through, 0, True)


def test_reads_of_one_event_go_past_the_parser_after_the_first() -> None:
    reads = [chunk(b"data: event %d\n\n" % number) for number in range(5)]
    assert events_of(reads, short=True) == ([b"event %d" % number for number in range(5)], 4, True)


def test_reads_of_one_event_go_past_the_parser_behind_one_of_many() -> None:
    events = [chunk(b"data: event %d\n\n" % number) for number in range(6)]
    reads = [*events[:2], b"".join(events[2:4]), *events[4:]]
    assert events_of(reads, short=True) == ([b"event %d" % number for number in range(6)], 3, True)


@pytest.mark.parametrize(
    "read",
    [
        b"12\r\ndata: 123456789\n\n\r\n",  # longer than it says it is, by what the next one lacks
        b"zz\r\ndata: 123456789\n\n\r\n",
        b"\r\n\r\ndata: 12345678\n\n\r\n",
    ],
)
def test_a_read_that_only_looks_like_a_chunk_is_left_to_the_parser(read: bytes) -> None:
    good = chunk(b"data: 123456789\n\n")
    found, _, _ = events_of([good, good, read, good], short=True)
    assert found == events_of([good, good, read, good], short=False)[0]
    assert len(found) < 4


def test_what_lies_within_a_chunk_is_no_chunk() -> None:
    """Nor is what begins within the size of one."""
    good = chunk(b"data: 123456789\n\n")
    outer = chunk(b"data: " + good)
    start = outer.index(good)
    assert events_of([good, good, outer[:start], good, outer[start + len(good) :], good], short=True) == (
        [b"123456789", b"123456789", b"11\n123456789", b"123456789"],
        1,
        True,
    )
    outer = chunk(b"data: a\n\n\r\n" + good)
    start = outer.index(good)
    assert events_of([good, outer[:start], good, outer[start + len(good) :], good], short=True) == (
        [b"123456789", b"a", b"123456789", b"123456789"],
        0,
        True,
    )
    cut = good[1:]
    found, passed, lived = events_of([good[:1], cut, good, cut], short=True)
    assert (found, passed, lived) == ([b"123456789"] * 2, 1, False)


def test_what_is_noted_of_reads_is_bounded() -> None:
    events_of([chunk(b"data: %b\n\n" % (b"x" * size)) for size in (1, 5000, 5000, 70_000)], short=True)
    assert max(http1._plain) <= http1.PLAIN_BYTES
