"""What every section is made of: plain values within bounds, and no key it does not know."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from orchestratord.domain.url import BadReference, parse_url

MOST = 2**53 - 1  # the largest integer every reader of JSON knows
WEEK_MS = 7 * 86_400_000

# What answers show has the form the contract gives it; `$` would let a newline at the end pass.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?![\s\S])")]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}(?![\s\S])")]
ModelName = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[^\s\x00-\x20\x7f-\xa0\ufeff]+(?![\s\S])")]
Devices = Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9:._-]+(,[A-Za-z0-9:._-]+)*(?![\s\S])")]
Positive = Annotated[int, Meta(ge=1, le=MOST)]
Size = Annotated[int, Meta(ge=0, le=MOST)]  # bytes
Small = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Amount = Annotated[float, Meta(ge=0, le=9e9)]
Millis = Annotated[int, Meta(ge=1, le=WEEK_MS)]
MaybeMillis = Annotated[int, Meta(ge=0, le=WEEK_MS)]  # 0: never
Time = Annotated[float, Meta(ge=0, le=WEEK_MS)]  # milliseconds and parts of them
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
