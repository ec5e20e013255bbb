"""What changed between two versions of a contract, how much of it breaks clients, and which version that takes.

`python -m tests.breaking` compares each contract with its last released copy in `contracts/released/` and fails when
`info.version` is lower than SemVer asks for. `--release` writes the copies: part of a release, after the check passed.

A schema is read in the direction its values travel: a request may be asked for less, an answer may tell more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orchestratord import contract

RELEASED = Path(__file__).resolve().parents[1] / "contracts" / "released"
METHODS = ("get", "put", "post", "delete", "patch")
LEVELS = ("patch", "minor", "major")
UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
LOWER = ("minimum", "minLength", "minItems", "minProperties")


class Change(NamedTuple):
    """One difference: how much of a version it takes, where it is and what it is."""

    level: str
    where: str
    what: str


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every difference between two self-contained documents that a client can notice."""
    before, after = _operations(old), _operations(new)
    found: list[Change] = []
    for key, operation in before.items():
        if key not in after:
            found.append(Change("major", key, "the operation is gone"))
        else:
            found += _operation(key, operation, after[key])
    found += [Change("minor", key, "a new operation") for key in after.keys() - before.keys()]
    return sorted(found, key=lambda change: (-LEVELS.index(change.level), change.where))


def _operations(document: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for path, raw in document["paths"].items():
        item = contract.dereference(document, raw)
        for method in METHODS:
            if method in item:
                parameters = [*item.get("parameters", ()), *item[method].get("parameters", ())]
                found[f"{method.upper()} {path}"] = {**item[method], "parameters": parameters}
    return found


def _operation(key: str, old: Any, new: Any) -> Iterator[Change]:
    if old["operationId"] != new["operationId"]:
        yield Change("major", key, f"operationId {old['operationId']} is now {new['operationId']}")
    if new.get("security") and new.get("security") != old.get("security"):
        yield Change("major", key, "it asks for other credentials")
    yield from _parameters(key, _by_name(old["parameters"]), _by_name(new["parameters"]))
    yield from _body(f"{key} request body", old.get("requestBody"), new.get("requestBody"))
    yield from _responses(key, old["responses"], new["responses"])
    yield from _events(key, old, new)


def _by_name(parameters: list[Any]) -> dict[str, Any]:
    return {f"{parameter['in']} {parameter['name']}": parameter for parameter in parameters}


def _parameters(key: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name in old.keys() - new.keys():
        yield Change("major", f"{key} {name}", "the parameter is gone")
    for name in new.keys() - old.keys():
        required = new[name].get("required", False)
        yield Change("major" if required else "minor", f"{key} {name}", f"a new {'required ' * required}parameter")
    for name in old.keys() & new.keys():
        if new[name].get("required") and not old[name].get("required"):
            yield Change("major", f"{key} {name}", "the parameter is required now")
        yield from _schema(f"{key} {name}", old[name]["schema"], new[name]["schema"], asked=True)


def _body(where: str, old: Any, new: Any) -> Iterator[Change]:
    if old is None or new is None:
        if old is not new:
            demanded = new is not None and new.get("required", False)
            yield Change("major" if demanded or new is None else "minor", where, "it came" if new else "it is gone")
        return
    if new.get("required") and not old.get("required"):
        yield Change("major", where, "it is required now")
    yield from _content(where, old["content"], new["content"], asked=True)


def _content(where: str, old: Any, new: Any, *, asked: bool) -> Iterator[Change]:
    for media in old.keys() - new.keys():
        yield Change("major", where, f"{media} is gone")
    for media in new.keys() - old.keys():
        yield Change("minor", where, f"{media} is new")
    for media in old.keys() & new.keys():
        yield from _schema(where, old[media].get("schema", {}), new[media].get("schema", {}), asked=asked)


def _responses(key: str, old: Any, new: Any) -> Iterator[Change]:
    for status in old.keys() - new.keys():
        yield Change("major" if status < "400" else "minor", f"{key} {status}", "the answer is gone")
    for status in new.keys() - old.keys():
        yield Change("major" if status < "400" else "minor", f"{key} {status}", "a new answer")
    for status in old.keys() & new.keys():
        where = f"{key} {status}"
        before, after = old[status].get("headers", {}), new[status].get("headers", {})
        for name in before.keys() - after.keys():
            yield Change("major", f"{where} {name}", "the header is gone")
        for name in after.keys() - before.keys():
            yield Change("minor", f"{where} {name}", "a new header")
        for name in before.keys() & after.keys():
            if before[name].get("required") and not after[name].get("required"):
                yield Change("major", f"{where} {name}", "the header may be missing now")
            yield from _schema(f"{where} {name}", before[name]["schema"], after[name]["schema"], asked=False)
        yield from _content(where, old[status].get("content", {}), new[status].get("content", {}), asked=False)


def _events(key: str, old: Any, new: Any) -> Iterator[Change]:
    before, after = old.get("x-sse-events", {}), new.get("x-sse-events", {})
    for name in before.keys() - after.keys():
        yield Change("major", f"{key} event {name}", "the event is gone")
    for name in after.keys() - before.keys():
        yield Change("minor", f"{key} event {name}", "a new event")
    for name in before.keys() & after.keys():
        yield from _schema(f"{key} event {name}", before[name], after[name], asked=False)
    if old.get("x-sse-order") != new.get("x-sse-order"):
        yield Change("minor" if after.keys() - before.keys() else "major", key, "the order of events")


# -- schemas ------------------------------------------------------------------------------------------------
def _schema(where: str, old: Any, new: Any, *, asked: bool) -> Iterator[Change]:
    """asked: clients write these values; else they read them."""
    if old == new:
        return
    kind = old.get("type"), new.get("type")
    if kind[0] != kind[1] or old.get("format") != new.get("format"):
        yield Change("major", where, f"type {_kind(old)} is now {_kind(new)}")
        return
    yield from _values(where, old, new, asked=asked)
    yield from _bounds(where, old, new, asked=asked)
    if "properties" in old or "properties" in new or "additionalProperties" in {*old, *new}:
        yield from _object(where, old, new, asked=asked)
    if "items" in old or "items" in new:
        yield from _schema(f"{where}[]", old.get("items", {}), new.get("items", {}), asked=asked)
    for word in ("oneOf", "anyOf", "allOf"):
        before, after = old.get(word, []), new.get(word, [])
        if len(before) != len(after):
            yield Change("major", where, f"another number of {word}")
        for number, pair in enumerate(zip(before, after, strict=False)):
            yield from _schema(f"{where} {word} {number}", *pair, asked=asked)


def _kind(schema: Any) -> str:
    return "/".join(str(schema[word]) for word in ("type", "format") if word in schema) or "anything"


def _values(where: str, old: Any, new: Any, *, asked: bool) -> Iterator[Change]:
    before, after = old.get("enum"), new.get("enum")
    if (before is None) != (after is None):
        narrower = after is not None
        yield Change("major" if narrower == asked else "minor", where, "closed list" if narrower else "open now")
    elif before is not None and after is not None:
        for value in [value for value in before if value not in after]:
            yield Change("major" if asked else "minor", where, f"{value!r} is no longer one of the values")
        for value in [value for value in after if value not in before]:
            yield Change("minor", where, f"{value!r} is a new value")
    if old.get("pattern") != new.get("pattern"):
        yield Change("major" if asked else "minor", where, "another pattern")
    if old.get("nullable", False) != new.get("nullable", False):
        yield Change("major" if new.get("nullable", False) != asked else "minor", where, "null")
    if old.get("default") != new.get("default"):
        yield Change("major", where, f"the default {old.get('default')!r} is now {new.get('default')!r}")


def _bounds(where: str, old: Any, new: Any, *, asked: bool) -> Iterator[Change]:
    for words, narrower in ((UPPER, lambda a, b: b < a), (LOWER, lambda a, b: b > a)):
        for word in words:
            before, after = old.get(word), new.get(word)
            if before == after:
                continue
            tight = before is None or (after is not None and narrower(before, after))
            yield Change("major" if tight and asked else "minor", where, f"{word} {before} is now {after}")
    for word in ("exclusiveMinimum", "exclusiveMaximum", "uniqueItems"):
        if old.get(word, False) != new.get(word, False):
            yield Change("major" if new.get(word, False) and asked else "minor", where, word)


def _object(where: str, old: Any, new: Any, *, asked: bool) -> Iterator[Change]:
    before, after = old.get("properties", {}), new.get("properties", {})
    must, now = set(old.get("required", [])), set(new.get("required", []))
    for name in before.keys() - after.keys():
        yield Change("major", f"{where}/{name}", "the field is gone")
    for name in after.keys() - before.keys():
        required = asked and name in now
        yield Change("major" if required else "minor", f"{where}/{name}", f"a new {'required ' * required}field")
    for name in (now - must) & before.keys():
        yield Change("major" if asked else "minor", f"{where}/{name}", "the field is required now")
    for name in (must - now) & after.keys():
        yield Change("minor" if asked else "major", f"{where}/{name}", "the field may be missing now")
    for name in before.keys() & after.keys():
        yield from _schema(f"{where}/{name}", before[name], after[name], asked=asked)
    extra, more = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if isinstance(extra, dict) and isinstance(more, dict):
        yield from _schema(f"{where}/*", extra, more, asked=asked)
    elif extra != more:
        yield Change("major" if more is False and asked else "minor", where, "unknown fields")


# -- versions -----------------------------------------------------------------------------------------------
def needed(released: str, changes: list[Change]) -> str:
    """The lowest version that may carry these changes."""
    major, minor, _ = map(int, released.split("."))
    levels = {change.level for change in changes}
    if "major" in levels:
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if "minor" in levels else released


def judge(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why the version of `new` is too low; [] when it is not."""
    changes = compare(old, new)
    before, now = old["info"]["version"], new["info"]["version"]
    lowest = needed(before, changes)
    if _number(now) >= _number(lowest):
        return []
    worst = [change for change in changes if change.level == changes[0].level]
    lines = [f"  {change.where}: {change.what}" for change in worst]
    return [f"{name}: since {before} this needs version {lowest}, and info.version is {now}", *lines]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def released(name: str) -> dict[str, Any]:
    """The contract as clients know it."""
    document: dict[str, Any] = json.loads((RELEASED / f"{name}.json").read_text("utf-8"))
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="make the contracts of now the released ones")
    arguments = parser.parse_args()
    problems = []
    for name in contract.CONTRACTS:
        changes = compare(released(name), contract.load(name))
        sys.stdout.writelines(f"{change.level:<6} {name} {change.where}: {change.what}\n" for change in changes)
        problems += judge(name, released(name), contract.load(name))
    sys.stdout.write("\n".join([*problems, ""]) or "")
    if arguments.release and not problems:
        for name in contract.CONTRACTS:
            text = json.dumps(contract.load(name), indent=1, ensure_ascii=False) + "\n"
            (RELEASED / f"{name}.json").write_text(text, "utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
