"""Checksums of what the journal's rows hold: SQLite notices a damaged page only where its structure breaks."""

from __future__ import annotations

from zlib import crc32

SIZE = 4


class Damaged(Exception):
    """The journal does not hold what was written; the message says where, as far as that can be known."""


def seal(data: bytes, place: str | int | bytes = "") -> bytes:
    """`data` with its checksum in front. `place` says where it belongs: elsewhere the seal is broken."""
    where = place if isinstance(place, bytes) else str(place).encode()
    return crc32(data, crc32(where)).to_bytes(SIZE, "big") + data


def unseal(sealed: object, place: str | int | bytes = "") -> bytes:
    """What was sealed. Raises Damaged."""
    # What a damaged row brings need not even be bytes.
    if not isinstance(sealed, bytes) or seal(data := sealed[SIZE:], place) != sealed:
        raise Damaged("it is damaged (what a row holds is not what was written)")
    return data
