"""Which drivers there are: entry points of the group `orchestratord.engines`, ours and those of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any

from orchestratord.ports import Startable

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


def startable(name: str) -> Startable:
    """The driver of that name, which knows how its engine is started. Raises DriverError."""
    made: Any = driver(name)
    if isinstance(made, Startable):
        return made
    others = ", ".join(_startable()) or "none"
    raise DriverError(
        f"an engine of driver {name!r} cannot be started from here (only {others}). Start it yourself and give the "
        "replica its `url`."
    )


def _startable() -> list[str]:
    """The installed drivers whose engines can be started."""
    found = []
    for point in entry_points(group=GROUP):
        with suppress(ImportError, AttributeError):  # a package that is broken is no help here
            if isinstance(point.load(), Startable):
                found.append(point.name)
    return sorted(found)


def check(name: str, make: Make, given: Mapping[str, Option], *, starts: bool) -> None:
    """Whether a replica can have these options, and be started as a process if `starts`. Raises DriverError."""
    if starts:
        startable(name)
    takes = _takes(make)
    for option in sorted(given.keys() - takes):
        there = f"It takes {', '.join(sorted(takes))}." if takes else "It takes none."
        raise DriverError(f"driver {name!r} has no option {option!r}. {there}")


def options(make: Make, known: Mapping[str, Any], given: Mapping[str, Option]) -> dict[str, Any]:
    """What to make a driver with: of what is `known` of its process that which it asks for, and what is `given`."""
    takes = inspect.signature(make).parameters
    return {**{name: value for name, value in known.items() if name in takes}, **given}


def _takes(make: Make) -> set[str]:
    """The options of a driver beyond the port's own."""
    return set(inspect.signature(make).parameters) - {"url", "clock", "api_key", "process"}
