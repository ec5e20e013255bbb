"""An artifact as the bytes of its file: two lines of JSON, everything but the content and then the content.

The first line ends with its own CRC-32: the id vouches for what clients have said, not for the date, and a list reads
no more than first lines.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec

from orchestratord.ports import Artifact, Encoded

HEAD_LIMIT = 1 << 20  # a first line longer than this is not ours


class _Head(msgspec.Struct, frozen=True):
    """The first line of a file."""

    kind: str
    tags: tuple[str, ...]
    parent: str | None
    metadata: dict[str, Any]
    created_ms: int


_head = msgspec.json.Decoder(_Head)


def encode(artifact: Artifact) -> bytes:
    head = _Head(artifact.kind, artifact.tags, artifact.parent, artifact.metadata, artifact.created_ms)
    line = msgspec.json.encode(head)
    content = artifact.content
    text = content if isinstance(content, Encoded) else msgspec.json.encode(content)
    return b"%b %08x\n%b\n" % (line, crc32(line), text)


def decode(artifact_id: str, data: bytes) -> Artifact:
    """With its content `Encoded`. Raises ValueError for what cannot be read; whether it is what the id says is for the
    caller to find out."""
    head, _, content = data.partition(b"\n")
    return decode_head(artifact_id, head + b"\n", Encoded(content[:-1]))


def decode_head(artifact_id: str, line: bytes, content: Any = None) -> Artifact:
    """Raises ValueError."""
    text, _, check = line.rpartition(b" ")
    if line.endswith(b"}\n"):  # written before first lines had a check
        text = line
    elif check != b"%08x\n" % crc32(text):
        raise ValueError("its first line is damaged")
    head = _head.decode(text)
    return Artifact(artifact_id, head.kind, content, head.tags, head.parent, head.metadata, head.created_ms)
