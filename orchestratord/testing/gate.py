"""The coverage gate: everything a contract declares is shown by a test, or is on a list that may only shrink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from orchestratord import contract
from orchestratord.testing.oracle import LAYER

_WITHIN_OPERATIONS = frozenset({401, 403, 413})  # every operation concerned declares these itself


class Seen(Protocol):
    """What verified exchanges have shown: a `Record` or a `VerifyingSession`."""

    @property
    def coverage(self) -> set[tuple[str, int]]: ...
    @property
    def seen_headers(self) -> set[tuple[str, str]]: ...
    @property
    def seen_events(self) -> set[tuple[str, str]]: ...


def declared() -> list[str]:
    """One line for each promise of the contracts that an exchange can show.

    Required headers have none: without them no answer passes the verifier.
    """
    lines = [line for operation in contract.operations() for line in _promises(operation)]
    lines += [f"{name} {status}" for status, name in LAYER.items() if status not in _WITHIN_OPERATIONS]
    return lines


def _promises(operation: contract.Operation) -> Iterator[str]:
    name = operation.operation_id
    yield from (f"{name} {status}" for status in operation.responses)
    headers = {
        header: None
        for response in operation.responses.values()
        for header, detail in response.get("headers", {}).items()
        if not detail.get("required")
    }
    yield from (f"{name} header {header}" for header in headers)
    yield from (f"{name} event {event}" for event in operation.sse_events or {})


def uncovered(*seen: Seen) -> list[str]:
    """The promises nothing has shown, in the order of the contracts."""
    shown = {f"{name} {status}" for each in seen for name, status in each.coverage}
    shown |= {f"{name} header {header}" for each in seen for name, header in each.seen_headers}
    shown |= {f"{name} event {event}" for each in seen for name, event in each.seen_events}
    return [line for line in declared() if line not in shown]


def problems(*seen: Seen, allowed: Path) -> list[str]:
    """Why the gate stays shut; [] when what is uncovered is exactly what the file lists.

    The file has one line per promise, with a reason behind two spaces; empty lines and those that begin with # do
    not count.
    """
    listed = [line.partition("  ")[0].strip() for line in allowed.read_text("utf-8").splitlines()]
    listed = [line for line in listed if line and not line.startswith("#")]
    missing, known = uncovered(*seen), set(declared())
    found = [f"{line}: nothing shows it" for line in missing if line not in listed]
    for line in listed:
        if line not in known:
            found.append(f"{line}: no contract declares it, remove it")
        elif line not in missing:
            found.append(f"{line}: covered now, remove it")
    return found
