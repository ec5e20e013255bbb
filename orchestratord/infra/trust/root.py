"""A root of trust. Known without the library that checks with it, which is large and seldom needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["ecdsa-sha256", "rsa-sha256", "minisign"]


class BadKey(ValueError):
    """What is in the file is no key that can be used."""


@dataclass(frozen=True, slots=True)
class Root:
    """A key that may have signed."""

    name: str
    kind: Kind
    key: Any
    key_id: bytes = b""  # of minisign
