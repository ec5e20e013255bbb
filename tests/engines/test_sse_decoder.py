"""The event stream decoder: any cut of any stream gives the same payloads."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestratord.infra.engines.sse import LIMIT, SSEDecoder
from orchestratord.ports import EngineError

# (stream, payloads): the parsing rules of the WHATWG HTML standard, section 9.2.6, in the spirit of its test vectors.
VECTORS = [
    (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
    (b"data:one\n\n", [b"one"]),
    (b"data:  two spaces\n\n", [b" two spaces"]),
    (b"data:\ttab\n\n", [b"\ttab"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    (b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"]),
    (b"data: a\ndata: b\n\n", [b"a\nb"]),
    (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
    (b"data:\n\n", [b""]),
    (b"\n\n\n", []),
    (b": comment\n\n", []),
    (b":\n\ndata: x\n:\n\n", [b"x"]),
    (b"event: token\nid: 7\nretry: 3\nunknown: y\ndata: x\n\n", [b"x"]),
    (b"event: token\n\ndata: x\n\n", [b"x"]),
    (b"\xef\xbb\xbfdata: x\n\n", [b"x"]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: y\n\n", [b"y"]),
    (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", [b"x"]),
    (b"data: x", []),
    (b"data: x\n", []),
    (b"Data: x\n\n data: y\n\ndatax: z\n\n", []),
    (b"data: \xf0\x9f\x99\x82\xff\x00\n\n", [b"\xf0\x9f\x99\x82\xff\x00"]),
    ("data: a\u2028b\x85c\x0bd\n\n".encode(), ["a\u2028b\x85c\x0bd".encode()]),
    (b"data: x\n\n: ping\n\ndata: y\n\n", [b"x", b"y"]),
    (b"data: data: x\n\n", [b"data: x"]),
]


def decode(stream: bytes, cuts: list[int], limit: int = LIMIT) -> list[bytes]:
    decoder = SSEDecoder(limit)
    at = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [payload for a, b in pairwise(at) for payload in decoder.feed(stream[a:b])]


@pytest.mark.parametrize(("stream", "payloads"), VECTORS)
def test_vectors(stream: bytes, payloads: list[bytes]) -> None:
    """The standard's rules hold in one read, byte by byte, and cut once at any place."""
    assert decode(stream, []) == payloads
    assert decode(stream, list(range(len(stream)))) == payloads
    for cut in range(len(stream)):
        assert decode(stream, [cut]) == payloads


LINE = st.binary(max_size=12).filter(lambda line: b"\n" not in line and b"\r" not in line)
FRAME = st.one_of(
    st.tuples(st.just(b"data: "), LINE),
    st.tuples(st.just(b"data:"), LINE),
    st.tuples(st.sampled_from([b":", b"id: ", b"event: ", b"data", b""]), LINE),
)
STREAM = st.lists(st.tuples(FRAME, st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])), max_size=20).map(
    lambda lines: b"".join(name + value + end for (name, value), end in lines)
)


def reference(stream: bytes) -> list[bytes]:
    """The standard, word by word, over the whole stream."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    payloads, buffer = [], b""
    for line in stream.split(b"\n")[:-1]:
        name, _, value = line.partition(b":")
        if not line:
            if buffer:
                payloads.append(buffer[:-1])
            buffer = b""
        elif name == b"data":
            buffer += value.removeprefix(b" ") + b"\n"
    return payloads


@given(STREAM, st.lists(st.integers(0, 500), max_size=30))
@example(b"data: x\r\ndata: y\r\n\r\n", [8])
@example(b"data: x\n\n\n", [])
def test_any_cut_gives_the_same_payloads(stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut into reads, its payloads are those of the standard's own algorithm."""
    assert decode(stream, cuts) == reference(stream)


def test_too_long() -> None:
    """A line or an event over the limit is a protocol error, at once, in every form it may come."""
    limit = 1000
    for stream in (
        b"data: " + b"x" * limit + b"\n\n",
        b"x" * (limit + 1),
        (b"data: " + b"x" * 90 + b"\n") * 12,
        b"data\n" * (limit + 1),
    ):
        for size in (1, 7, 64, len(stream)):
            with pytest.raises(EngineError, match="more than 1000 bytes") as caught:
                decode(stream, list(range(0, len(stream), size)), limit)
            assert caught.value.kind == "protocol"


def test_long_streams_of_short_events_are_fine() -> None:
    """The limit is per event: one read, or a stream, may be far longer; comments are not collected."""
    decoder = SSEDecoder(100)
    assert len(decoder.feed(b"data: x\n\n" * 1000)) == 1000
    assert decoder.feed(b": ping\n\n" * 1000) == []
    assert decoder.feed(b"id: 1\n" * 1000) == []
    assert decoder.feed(b"data: y\n\n") == [b"y"]


def test_a_slow_drip_stays_linear() -> None:
    """A megabyte that comes byte by byte is joined once, not once per byte."""
    decoder = SSEDecoder()
    line = b"data: " + b"x" * 500_000
    for byte in line:
        assert decoder.feed(bytes([byte])) == []
    assert decoder.feed(b"\n\n") == [line[6:]]
