"""What the daemon knows and nobody may see: its token, keys of engines, credentials for fetching models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

HIDDEN = "[redacted]"
SHORTEST = 6  # shorter values would turn every text into holes; `doctor` asks for longer ones

_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)

_OPTION = re.compile(r"api[-_]?key$|password|secret|hf[-_]?token$|^-hft$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds something nobody should see."""
    return _NAME.search(name) is not None


def secret_options(arguments: Sequence[str]) -> list[str]:
    """The values of options like --api-key, which everybody on the machine can see in a process's arguments."""
    return [value for _, value in _marked(arguments) if value]


def hide_options(arguments: Sequence[str]) -> list[str]:
    """The arguments without those values."""
    return [shown.removesuffix(value) + HIDDEN if value else shown for shown, value in _marked(arguments)]


def _marked(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument with the part of it that is secret, or with an empty one."""
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
        else:
            value = argument
        yield argument, value if _OPTION.search(option) else ""


class Secrets:
    """`names`: of environment variables that hold some. `values`: the secrets themselves."""

    def __init__(self, names: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        self._names = frozenset(names)
        self._values = sorted({value for value in values if len(value) >= SHORTEST}, key=len, reverse=True)
        self._escaped = [json.dumps(v, ensure_ascii=False).encode(errors="replace")[1:-1] for v in self._values]

    @property
    def known(self) -> bool:
        return bool(self._values)

    def within(self, text: str) -> bool:
        """Whether one of them is part of the text."""
        return any(value in text for value in self._values)

    def in_json(self, line: bytes) -> bool:
        """Whether one of them may stand in this line of JSON."""
        return any(escaped in line for escaped in self._escaped)

    def hide(self, text: str) -> str:
        """The text without any of them."""
        for value in self._values:
            if value in text:
                text = text.replace(value, HIDDEN)
        return text

    def withhold(self, environ: Mapping[str, str], own: Iterable[str]) -> dict[str, str]:
        """An environment for a child: without the daemon's secrets and settings, but for those that are its `own`."""
        kept = frozenset(own)
        return {
            name: value
            for name, value in environ.items()
            if name in kept or not (name in self._names or name.startswith(("ORCHD_", "AUTH_TOKEN")))
        }
