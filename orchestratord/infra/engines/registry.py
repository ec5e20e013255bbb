"""Which drivers there are: entry points of the group `orchestratord.engines`, ours and those of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from orchestratord.infra.process import DRIVERS as STARTED

GROUP = "orchestratord.engines"
Option = int | str
Make = Callable[..., Any]  # (url, *, clock, api_key, **options) -> Engine


class DriverError(Exception):
    """A driver that is not there, or cannot do what the configuration asks; the message says what can be done."""


def driver(name: str) -> Make:
    """The driver of that name. Raises DriverError."""
    known = entry_points(group=GROUP)
    if name not in known.names:
        there = ", ".join(sorted(known.names)) or "none: is the package installed?"
        raise DriverError(f"there is no engine driver {name!r}. Installed: {there}.")
    try:
        made: Make = known[name].load()
    except (ImportError, AttributeError) as error:
        raise DriverError(f"engine driver {name!r} ({known[name].value}) cannot be loaded: {error}") from None
    return made


def check(name: str, make: Make, given: Mapping[str, Option], *, starts: bool) -> None:
    """Whether a replica can have these options, and be started as a process if `starts`. Raises DriverError."""
    if starts and name not in STARTED:
        raise DriverError(
            f"an engine of driver {name!r} cannot be started from here (only {', '.join(sorted(STARTED))}). Start it "
            "yourself and give the replica its `url`."
        )
    takes = _takes(make)
    for option in sorted(given.keys() - takes):
        there = f"It takes {', '.join(sorted(takes))}." if takes else "It takes none."
        raise DriverError(f"driver {name!r} has no option {option!r}. {there}")


def options(make: Make, known: Mapping[str, Option], given: Mapping[str, Option]) -> dict[str, Option]:
    """What to make a driver with: of what is `known` of its process that which it asks for, and what is `given`."""
    takes = _takes(make)
    return {**{name: value for name, value in known.items() if name in takes}, **given}


def _takes(make: Make) -> set[str]:
    """The options of a driver beyond the port's own."""
    return set(inspect.signature(make).parameters) - {"url", "clock", "api_key"}
