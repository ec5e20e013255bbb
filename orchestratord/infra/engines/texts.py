"""Texts between us and engines: prompts that survive the way there, and stop strings that engines leave in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from orchestratord.ports import EngineError


class StopFilter:
    """Cuts a text at its first stop string. Holds back no more than what may yet become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False
        self.idle = not stops  # every text may be shown as it comes

    def feed(self, text: str) -> str:
        """What may be shown of the text so far, and was not yet."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        self._held += text
        found = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.hit = True
            return self._held[:found]
        keep = max(map(self._begun, self._stops))
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What is held back, once the text is over. It is held no more."""
        held, self._held = self._held, ""
        return "" if self.hit else held

    def _begun(self, stop: str) -> int:
        """Characters at the end of what is held that a stop string begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


async def same_prompt(
    text: str, tokens: Sequence[int], first: str, tokenize: Callable[[str], Awaitable[Sequence[int]]]
) -> str:
    """A prompt that the engine reads as exactly these tokens: `text`, or `text` without `first`, the begin mark that
    the template writes and the tokenizer would add once more. Raises EngineError(refused) when there is none.
    """
    candidates = [text] if not first or not text.startswith(first) else [text, text.removeprefix(first)]
    for candidate in candidates:
        if list(await tokenize(candidate)) == list(tokens):
            return candidate
    raise EngineError(
        "refused", "the model's chat template makes a prompt that cannot be written as text; send `prompt` instead"
    )


def byte_bound(text: str) -> int:
    """Every vocabulary in use falls back to bytes, so no text needs more tokens than it has of them; 8 more for begin
    and end marks and the space some tokenizers put first."""
    return len(text.encode("utf-8", "surrogatepass")) + 8
