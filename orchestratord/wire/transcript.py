"""The transcript of a task: an artifact made of the bytes of its log, which are mostly taken over as they are.

Its content is written in the form of RFC 8785 at once: what is hashed is what the store keeps.
"""

from __future__ import annotations

import re

import orjson

from orchestratord.domain.facts import TranscriptSource
from orchestratord.ports import Artifact, Encoded
from orchestratord.wire.canonical import artifact_id, canonical
from orchestratord.wire.sse import Numbered, around

# What `sse.encode` wrote, and `sse.TOKEN` shaped: (id, text of a token, its index, else name and payload).
_EVENT = re.compile(rb'id: (\d+)\nevent: (?:token\ndata: \{"t":"(.*)","i":(\d+)\}|([a-z]+)\ndata: (.*))\n\n')
_FLOAT = re.compile(rb"\d[.eE]")
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_BEFORE, _BEHIND = b'\nevent: token\ndata: {"t":"', b'","i":'  # a token's text: JSON has neither within a string
_INDEX, _ID = Numbered(b'{"data":{"i":%d,"t":"'), Numbered(b'"},"event":"token","id":%d}')
_TOKEN = b'{"data":{"i":%b,"t":"%b"},"event":"token","id":%b}'
_OTHER = b'{"data":%b,"event":"%b","id":%b}'
_CONTENT = b'{"events":[%b],"schema":"orchestratord.transcript/1","text":"%b"}'


def transcript(source: TranscriptSource, *, full: bool = True) -> Artifact:
    """The transcript of a finished task: its text and every log event. Pure; runs off the event loop.

    Without `full` it tells what happened, not what was said.
    """
    content = Encoded(_content(source.frames if full else b""))
    tags = tuple(sorted(set(source.tags)))
    name = artifact_id("trace", content, tags, None, source.metadata)
    return Artifact(name, "trace", content, tags, None, source.metadata, source.created_ms)


def _sorted(payload: bytes) -> bytes:
    """The canonical form of JSON."""
    value = orjson.loads(payload)
    plain = payload.isascii() and not _FLOAT.search(payload)  # only floats and other keys make a difference to orjson
    return orjson.dumps(value, option=_SORTED) if plain else canonical(value)


def _content(frames: bytes) -> bytes:
    first, *pieces = frames.split(_BEFORE)
    _, _, last = pieces[-1].partition(b"\n\n") if pieces else (b"", b"", b"")
    before = first.count(b"\n\n")
    if last and frames.count(b"\n\n") == before + len(pieces) + 1:
        # A completion: tokens in a row, so that counting tells their ids and indices, and one event behind them.
        texts = [piece.partition(_BEHIND)[0] for piece in pieces]
        tokens = around(_INDEX.of(0, len(texts)), texts, _ID.of(before + 1, len(texts)))
        events = [*_each(first)[0], *tokens, *_each(last)[0]]
    else:
        events, texts = _each(frames)
    return _CONTENT % (b",".join(events), b"".join(texts))


def _each(frames: bytes) -> tuple[list[bytes], list[bytes]]:
    """The events of any log, and the texts among them."""
    found = _EVENT.findall(frames)
    events = [
        _TOKEN % (index, text, event_id) if index else _OTHER % (_sorted(payload), name, event_id)
        for event_id, text, index, name, payload in found
    ]
    return events, [text for _, text, _, _, _ in found]
