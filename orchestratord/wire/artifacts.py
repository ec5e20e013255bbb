"""ArtifactRef and Artifact."""

from __future__ import annotations

from typing import Any

import orjson

from orchestratord.ports import Artifact, Encoded


def artifact_ref(artifact: Artifact) -> dict[str, Any]:
    return {
        "id": artifact.id,
        "kind": artifact.kind,
        "digest": f"sha256:{artifact.id}",
        "created_ms": artifact.created_ms,
        "tags": list(artifact.tags),
    }


def artifact_body(artifact: Artifact) -> dict[str, Any]:
    content = artifact.content
    text = orjson.Fragment(bytes(content)) if isinstance(content, Encoded) else content
    body = {**artifact_ref(artifact), "content": text, "metadata": artifact.metadata}
    if artifact.parent is not None:
        body["parent"] = artifact.parent
    return body
