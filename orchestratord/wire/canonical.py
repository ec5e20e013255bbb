"""RFC 8785: one byte sequence per JSON document, whatever the order of its keys. Ids and fingerprints hash it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

import orjson
import rfc8785

from orchestratord.ports import Artifact, Encoded

LARGE = 16 * 1024
FEW = 24  # values of a level that are quicker looked at one by one
_KINDS = frozenset({str, int, bool, type(None), dict, list, tuple})
_FLAT = _KINDS - {dict, list, tuple}
_OPTIONS = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)

_ARTIFACT = b'{"content":%b,"kind":%b,"metadata":%b,"parent":%b,"tags":%b}'


def canonical(value: Any) -> bytes:
    """The canonical form. Raises ValueError for what RFC 8785 cannot express: NaN, infinities, integers beyond
    2**53 - 1, lone surrogates, keys that are not strings, and documents nested too deeply."""
    fast = canonical_fast(value)
    if fast is not None:
        return fast
    try:
        return bytes(rfc8785.dumps(value))
    except RecursionError:
        raise ValueError("no canonical form (RFC 8785): nested too deeply") from None
    except rfc8785.IntegerDomainError:
        hint = "JSON readers disagree about integers beyond 2**53 - 1 (RFC 8785): send them as strings"
        raise ValueError(hint) from None
    except ValueError as error:
        raise ValueError(f"no canonical form (RFC 8785): {error}") from error


def canonical_fast(value: Any) -> bytes | None:
    """The same bytes, an order of magnitude sooner, for documents of a plain kind; None for all others.

    orjson differs from RFC 8785 in how it writes floats (and it writes NaN as null) and in how it sorts keys
    beyond ASCII.
    """
    try:
        encoded = orjson.dumps(value, option=_OPTIONS)  # first, since it also refuses cycles
    except TypeError:
        return None
    return encoded if _plain(value) else None


def _plain(value: Any) -> bool:
    """Whether it holds nothing but what `_KINDS` names, under ASCII keys. Level by level: going through a whole one
    costs a few calls, which is little for each of many values, and much for each of few."""
    if type(value) is dict and _FLAT.issuperset(map(type, value.values())):
        return "".join(value).isascii()
    level = [value]
    while level:
        if len(level) < FEW:
            inner: list[Any] = []
            for item in level:
                kind = type(item)
                if kind is dict:
                    if not "".join(item).isascii():
                        return False
                    inner += item.values()
                elif kind is list or kind is tuple:
                    inner += item
                elif kind not in _KINDS:
                    return False
            level = inner
            continue
        kinds = set(map(type, level))
        if not kinds <= _KINDS:
            return False
        dicts = [item for item in level if type(item) is dict] if dict in kinds else []
        lists = [item for item in level if type(item) in (list, tuple)] if kinds & {list, tuple} else []
        if not "".join(chain.from_iterable(dicts)).isascii():
            return False
        level = [*chain.from_iterable(map(dict.values, dicts)), *chain.from_iterable(lists)]
    return True


def fingerprint(body: Any) -> bytes:
    """Equal for bodies that say the same: what idempotency compares."""
    return hashlib.sha256(canonical(body)).digest()


async def fingerprint_of(body: Any) -> bytes:
    """The same. What takes long, floats and names beyond ASCII by the thousand, is done in a thread."""
    fast = canonical_fast(body)
    if fast is not None:
        return hashlib.sha256(fast).digest()
    try:
        large = len(orjson.dumps(body)) > LARGE
    except TypeError:
        large = False
    return await asyncio.to_thread(fingerprint, body) if large else fingerprint(body)


def artifact_id(kind: str, content: Any, tags: Iterable[str], parent: str | None, metadata: dict[str, Any]) -> str:
    """The content address of an artifact: tags count as a set. `Encoded` content is taken for canonical."""
    text = content if isinstance(content, Encoded) else canonical(content)
    fields = text, canonical(kind), canonical(metadata), canonical(parent), canonical(sorted(set(tags)))
    return hashlib.sha256(_ARTIFACT % fields).hexdigest()


def id_of(artifact: Artifact) -> str:
    """The id the artifact ought to have: stores compare it with the one they found it under."""
    return artifact_id(artifact.kind, artifact.content, artifact.tags, artifact.parent, artifact.metadata)
