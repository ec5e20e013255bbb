"""Bills of materials in CycloneDX or SPDX, as JSON: read with the libraries of those who keep the formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from orchestratord.ports import ModelUnavailable

MAX_DEPTH = 64


def listed(data: bytes) -> frozenset[str]:
    """The SHA-256 digests (sha256:<64 hex>) the bill lists. Raises ModelUnavailable when it is no bill."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad("it is not JSON") from None
    if not isinstance(document, dict) or _depth(document) > MAX_DEPTH:
        raise _bad("it is no bill of materials")
    try:
        if document.get("bomFormat") == "CycloneDX":
            return frozenset(_cyclonedx(document))
        if "spdxVersion" in document:
            return frozenset(_spdx(document))
    except ImportError as error:
        raise _bad(f"{error.name} is not installed: pip install 'orchestratord[trust]'") from error
    except ModelUnavailable:
        raise
    except Exception as error:  # whatever a parser makes of what somebody else wrote
        raise _bad(f"it cannot be read: {type(error).__name__}: {error}"[:200]) from error
    raise _bad("it is neither CycloneDX nor SPDX")


def _bad(why: str) -> ModelUnavailable:
    return ModelUnavailable("UNTRUSTED_ARTIFACT", f"the bill of materials: {why}")


def _depth(node: Any) -> int:
    """How deeply a document is nested, without recursion."""
    level, nodes = 0, [node]
    while nodes and level <= MAX_DEPTH:
        level += 1
        nodes = [
            child
            for each in nodes
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
    return level


def _cyclonedx(document: dict[str, Any]) -> Iterator[str]:
    from cyclonedx.model import HashAlgorithm
    from cyclonedx.model.bom import Bom

    version = document.get("specVersion")
    if version not in ("1.2", "1.3", "1.4", "1.5", "1.6", "1.7"):
        raise _bad(f"CycloneDX {version!r} is not known")
    bom = Bom.from_json(document)  # type: ignore[attr-defined]
    pending = [*bom.components, *((bom.metadata.component,) if bom.metadata.component else ())]
    while pending:
        component = pending.pop()
        pending.extend(component.components)
        yield from (f"sha256:{h.content.lower()}" for h in component.hashes if h.alg is HashAlgorithm.SHA_256)


def _spdx(document: dict[str, Any]) -> Iterator[str]:
    from spdx_tools.spdx.model.checksum import ChecksumAlgorithm
    from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser

    logging.getLogger("spdx_tools").setLevel(logging.CRITICAL)  # what it has to say it raises
    parsed = JsonLikeDictParser().parse(document)  # type: ignore[no-untyped-call]
    sums = [c for file in parsed.files for c in file.checksums] + [c for p in parsed.packages for c in p.checksums]
    yield from (f"sha256:{c.value.lower()}" for c in sums if c.algorithm is ChecksumAlgorithm.SHA256)
