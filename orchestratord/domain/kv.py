"""What a prefix takes in the KV cache of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from orchestratord.domain.outcome import Usage


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Bytes of tokens in an engine's KV cache.

    full: what a token takes in all the layers that keep every token. windows: (tokens, bytes) of layers that keep so
    many of the last tokens, and what one takes there. block: tokens are kept in whole blocks of so many only.
    """

    full: int
    windows: tuple[tuple[int, int], ...] = ()
    block: int = 1

    def bytes_of(self, tokens: int) -> int:
        kept = tokens - tokens % self.block
        return kept * self.full + sum(min(kept, most) * size for most, size in self.windows)


def tokens_left(usage: Usage) -> int | None:
    """Tokens a finished completion left in the cache: the last one it wrote was never read. None: not known."""
    return None if usage.tokens_in is None else usage.tokens_in + max(0, usage.tokens_out - 1)
