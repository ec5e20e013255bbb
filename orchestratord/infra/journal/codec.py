"""Facts as bytes: apart from the rest of an `Admitted` the content of its task (prompt, messages, inputs), and without
the log's frames a `Finished`, whose transcript is made of what the journal holds anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import defstruct

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.facts import Admitted, Archived, Fact, Finished, Frames, Started
from orchestratord.domain.operation import PoolChanged
from orchestratord.domain.request import Message, TaskRequest

Content = tuple[str | None, tuple[Message, ...] | None, tuple[str, ...] | None]

_encode = msgspec.json.Encoder().encode
_admitted = msgspec.json.Decoder(Admitted)
_content = msgspec.json.Decoder(Content)
_started = msgspec.json.Decoder(Started)
_finished = msgspec.json.Decoder(Finished)
_pool_changed = msgspec.json.Decoder(PoolChanged)
_entry = msgspec.json.Decoder(CatalogEntry)

decode_started = _started.decode
decode_finished = _finished.decode
decode_pool_changed = _pool_changed.decode
encode_entry = _encode
decode_entry = _entry.decode


_CONTENT = ("prompt", "messages", "inputs")
# For encoding: `without_content` would take longer than all the rest of it.
_asked = [field.name for field in fields(TaskRequest) if field.name not in _CONTENT]
_told = [field.name for field in fields(Admitted) if field.name != "request"]
_Asked: Any = defstruct("_Asked", _asked)
_Told: Any = defstruct("_Told", ["request", *_told])
_asked_of, _told_of = attrgetter(*_asked), attrgetter(*_told)
_ends = [field.name for field in fields(Finished) if field.name != "transcript"]
_Ended: Any = defstruct("_Ended", [*_ends, "transcript"])
_Source: Any = defstruct("_Source", ["frames", "tags", "metadata", "created_ms"])
_ends_of = attrgetter(*_ends)


def _encode_admitted(fact: Admitted) -> tuple[bytes, bytes]:
    asked = fact.request
    body = _encode(_Told(_Asked(*_asked_of(asked)), *_told_of(fact)))
    return body, _encode((asked.prompt, asked.messages, asked.inputs))


def _encode_finished(fact: Finished) -> tuple[bytes, bytes]:
    source = fact.transcript
    if source is None:
        return _encode(fact), b""
    rest = _Source(b"", source.tags, source.metadata, source.created_ms)
    return _encode(_Ended(*_ends_of(fact), rest)), b""


_ENCODERS: dict[type, Callable[[Any], tuple[bytes, bytes]]] = {
    Admitted: _encode_admitted,
    Finished: _encode_finished,
    Frames: lambda fact: (fact.data, b""),
    Archived: lambda fact: (b"", b""),
}


def encode(fact: Fact) -> tuple[bytes, bytes]:
    """(body, content) of a fact; only `Admitted` has content. A `Finished` leaves the frames of its transcript out.

    Raises ValueError or TypeError for what JSON cannot hold.
    """
    encoder = _ENCODERS.get(type(fact))
    return encoder(fact) if encoder is not None else (_encode(fact), b"")


encode_whole = _encode  # of a `Finished`: with the frames of its transcript


def decode_admitted(body: bytes, content: bytes | None) -> Admitted:
    """The fact as it was, or without content if that has been erased."""
    admitted = _admitted.decode(body)
    if content is None:
        return admitted
    prompt, messages, inputs = _content.decode(content)
    return replace(admitted, request=replace(admitted.request, prompt=prompt, messages=messages, inputs=inputs))


def size(body: bytes, content: bytes) -> int:
    """What a fact counts in the backlog: never zero, and without a transcript's source, which the log holds."""
    return 64 + len(body) + len(content)
