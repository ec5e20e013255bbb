"""What llama-server says of its slots."""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchestratord.infra.engines.plumbing import refusal
from orchestratord.infra.engines.transport import Transport
from orchestratord.ports import EngineError

LIMIT_S = 5.0

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class _NextToken(msgspec.Struct):
    n_decoded: Count = 0


class Slot(msgspec.Struct):
    """One entry of /slots."""

    id: Count
    is_processing: bool = False
    n_ctx: Count = 0
    n_prompt_tokens_processed: Count = 0
    n_prompt_tokens_cache: Count = 0
    next_token: list[_NextToken] = []

    @property
    def tokens(self) -> int:
        """Of the job it works on, in its KV cache. `n_prompt_tokens` is no help: builds differ in what it counts."""
        decoded = self.next_token[0].n_decoded if self.next_token else 0
        return self.n_prompt_tokens_processed + self.n_prompt_tokens_cache + decoded


async def slots_of(http: Transport) -> list[Slot] | None:
    """None: it was started with --no-slots. Raises EngineError."""
    status, parsed, _ = await http.request_json("GET", "/slots", limit_s=LIMIT_S)
    if status == 501:
        return None
    if status != 200:
        raise refusal("llama-server", "/slots", status, parsed)
    try:
        return msgspec.convert(parsed, list[Slot])
    except msgspec.ValidationError as error:
        raise EngineError("protocol", f"llama-server's /slots cannot be read: {error}") from None
