"""The transcript of a task: an artifact made of the bytes of its log, which are mostly taken over as they are.

Its content is written in the form of RFC 8785 at once: what is hashed is what the store keeps.
"""

from __future__ import annotations

import hashlib
import re

import orjson

from orchestratord.domain.facts import TranscriptSource
from orchestratord.ports import Artifact, Encoded
from orchestratord.wire.canonical import canonical

# What `sse.encode` wrote, and `sse.TOKEN` shaped: (id, text of a token, its index, else name and payload).
_EVENT = re.compile(rb'id: (\d+)\nevent: (?:token\ndata: \{"t":"(.*)","i":(\d+)\}|([a-z]+)\ndata: (.*))\n\n')
_FLOAT = re.compile(rb"\d[.eE]")
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_TOKEN = b'{"data":{"i":%b,"t":"%b"},"event":"token","id":%b}'
_OTHER = b'{"data":%b,"event":"%b","id":%b}'
_CONTENT = b'{"events":[%b],"schema":"orchestratord.transcript/1","text":"%b"}'


def transcript(source: TranscriptSource, *, full: bool = True) -> Artifact:
    """The transcript of a finished task: its text and every log event. Pure; runs off the event loop.

    Without `full` it tells what happened, not what was said.
    """
    content = _content(source.frames if full else b"")
    tags = tuple(sorted(set(source.tags)))
    fields = b'{"content":%b,"kind":"trace","metadata":%b,"parent":null,"tags":%b}'
    whole = fields % (content, canonical(source.metadata), canonical(tags))
    name = hashlib.sha256(whole).hexdigest()
    return Artifact(name, "trace", Encoded(content), tags, None, source.metadata, source.created_ms)


def _sorted(payload: bytes) -> bytes:
    """The canonical form of JSON."""
    value = orjson.loads(payload)
    plain = payload.isascii() and not _FLOAT.search(payload)  # only floats and other keys make a difference to orjson
    return orjson.dumps(value, option=_SORTED) if plain else canonical(value)


def _content(frames: bytes) -> bytes:
    found = _EVENT.findall(frames)
    events = [
        _TOKEN % (index, text, event_id) if index else _OTHER % (_sorted(payload), name, event_id)
        for event_id, text, index, name, payload in found
    ]
    return _CONTENT % (b",".join(events), b"".join([text for _, text, _, _, _ in found]))
