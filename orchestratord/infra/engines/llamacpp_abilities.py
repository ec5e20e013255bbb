"""What a llama-server can do. None of its answers about itself says so: it is tried, and costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestratord.domain.request import Workload
from orchestratord.infra.engines.llamacpp_pooled import REPLY_BYTES, TOO_LONG
from orchestratord.infra.engines.plumbing import refusal
from orchestratord.infra.engines.transport import Transport

PROBE_S = 5.0


@dataclass(frozen=True, slots=True)
class Abilities:
    """ctx: tokens one prompt or input may have."""

    workloads: frozenset[Workload]
    ctx: int
    features: tuple[str, ...]


async def abilities(http: Transport, ctx: int, knobs: Iterable[str]) -> Abilities:
    """Of the server behind `http`, whose slots have `ctx` tokens. Raises EngineError."""
    other, limit = await _pooled(http, ctx)
    schemas = await _follows_schemas(http, other is not None)
    if other is not None and schemas is None:
        return Abilities(frozenset({other}), limit, ())
    # An embedding takes a slot of the server's choice, and with it some session's prefix.
    features = {*knobs, *(() if other else ("prefix_cache",))} - (set() if schemas else {"json_schema"})
    done: set[Workload] = {"completion"}
    if other is not None:
        done.add(other)
    return Abilities(frozenset(done), ctx, tuple(sorted(features)))


async def _pooled(http: Transport, ctx: int) -> tuple[Workload | None, int]:
    """Whether it embeds or ranks (None: neither), and how many tokens one input may have.

    A server started with `--reranking` answers `/v1/embeddings` too, with numbers that mean nothing; so one that ranks
    embeds nothing. The first question has one token more than fits: it is refused without any work, and the refusal
    says how much fits, which is the physical batch where that is smaller than the context.
    """
    status, limit = await _ask(http, "/v1/embeddings", {"input": [0] * (ctx + 1)})
    if status == 501:
        return None, ctx
    if limit is None:  # it does not speak of lengths: whether it embeds at all must be tried
        status, _ = await _ask(http, "/v1/embeddings", {"input": ["a"]})
        if status != 200:
            return None, ctx
    status, _ = await _ask(http, "/rerank", {})
    return "embedding" if status == 501 else "rerank", min(ctx, limit or ctx)


async def _ask(http: Transport, path: str, fields: dict[str, Any]) -> tuple[int, int | None]:
    """The status, and the most tokens an input may have, if it says so (0: the context decides)."""
    status, parsed, text = await http.request_json(
        "POST", path, msgspec.json.encode(fields), limit_s=PROBE_S, max_bytes=REPLY_BYTES
    )
    if status in (401, 503):
        raise refusal("llama-server", path, status, parsed)
    found = TOO_LONG.search(text)
    return status, int(found[1] or 0) if found else None


async def _follows_schemas(http: Transport, does_other_work: bool) -> bool | None:
    """None: it completes nothing. Builds with another grammar library take a schema on /completion and ignore it; the
    others read it, and so refuse this one."""
    body = msgspec.json.encode({"prompt": "", "n_predict": 1, "json_schema": {"type": "no such type"}})
    status, parsed, _ = await http.request_json("POST", "/completion", body, limit_s=PROBE_S)
    if status == 500 and does_other_work:  # "does not support logits computation"
        return None
    if status not in (200, 400):
        raise refusal("llama-server", "/completion", status, parsed)
    return status == 400
