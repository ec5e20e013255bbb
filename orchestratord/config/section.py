"""What every section is made of: plain values within bounds, and no key it does not know."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from orchestratord.domain.url import BadReference, parse_url

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1)]
Millis = Annotated[int, Meta(ge=1, le=7 * 86_400_000)]
MAX_AGE_MS = 10 * 366 * 86_400_000


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to write instead."""


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are errors."""


def root_url(setting: str, text: str) -> None:
    """Raises ValueError unless it is an https URL without a path."""
    try:
        if parse_url(text).target != "/":
            raise BadReference("a path is not wanted")
    except BadReference as error:
        raise ValueError(f"{setting}: {text!r} must be https://host or https://host:port ({error})") from None


def unique(what: str, ids: list[str]) -> None:
    """Raises ValueError where an id comes twice."""
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"{what} id used twice: {', '.join(twice)}")
