"""Task requests as scenarios word them, and a well-formed call of every operation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from orchestratord import contract

PROMPT = "Say something kind."
SEED = 7


@dataclass(slots=True)
class Wanted:
    """What a scenario says about a task: fields to set, fields to leave out, names to be turned into ids."""

    fields: dict[str, Any] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    session: str | None = None

    def put(self, **fields: Any) -> None:
        for name, value in fields.items():
            known = self.fields.get(name)
            self.fields[name] = {**known, **value} if isinstance(known, dict) else value


KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "interactive": {"priority": "interactive"},
    "batch": {"priority": "batch"},
    "embedding": {"workload": "embedding", "inputs": ["one", "two words"], "max_tokens": 1},
    "rerank": {"workload": "rerank", "prompt": "a query", "inputs": ["one", "two", "three"], "max_tokens": 1},
}

_PHRASES: list[tuple[re.Pattern[str], Callable[..., None]]] = []


def _phrase(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(fill: Callable[..., None]) -> Callable[..., None]:
        _PHRASES.append((re.compile(pattern), fill))
        return fill

    return register


def wishes(text: str) -> Wanted:
    """`of 20 tokens, due in 5 seconds` as the fields it stands for. Raises ValueError for a phrase nobody knows."""
    wanted = Wanted()
    for phrase in text.split(", "):
        for pattern, fill in _PHRASES:
            if match := pattern.fullmatch(phrase):
                fill(wanted, *match.groups())
                break
        else:
            raise ValueError(f"nobody knows how to ask for {phrase!r}")
    return wanted


def seconds(text: str) -> float:
    """`5 seconds`, `1.5 seconds`, `250 ms`, `2 minutes`, `1 hour`, `1 day`."""
    number, unit = text.split(" ")
    scale = {"ms": 0.001, "second": 1, "minute": 60, "hour": 3600, "day": 86_400}
    return float(number) * scale[unit.removesuffix("s") if unit != "ms" else unit]


@_phrase(r"of (\d+) tokens?")
def _tokens(wanted: Wanted, count: str) -> None:
    wanted.put(max_tokens=int(count))


@_phrase(r"of (\d+) words")
def _words(wanted: Wanted, count: str) -> None:
    wanted.put(prompt=" ".join(["word"] * int(count)))


@_phrase(r"that expects (\d+) tokens")
def _expects(wanted: Wanted, count: str) -> None:
    wanted.put(expected_tokens=int(count))


@_phrase(r"due in (.+)")
def _due(wanted: Wanted, duration: str) -> None:
    wanted.put(deadline_ms=round(seconds(duration) * 1000))


@_phrase(r"with a context of (\d+)")
def _context(wanted: Wanted, tokens: str) -> None:
    wanted.put(ctx=int(tokens))


@_phrase(r'in session "(.+)"')
def _session(wanted: Wanted, name: str) -> None:
    wanted.session = name


@_phrase(r'of model "(.+)"')
def _model(wanted: Wanted, ref: str) -> None:
    wanted.put(model_ref=ref)


@_phrase(r"on engine (\w+)")
def _engine(wanted: Wanted, engine: str) -> None:
    wanted.put(engine=engine)


@_phrase(r'pinned to "(.+)"')
def _pinned(wanted: Wanted, pool: str) -> None:
    wanted.put(placement={"mode": "pin", "pin_pool_id": pool})


@_phrase(r"pinned to no pool")
def _pinned_to_none(wanted: Wanted) -> None:
    wanted.put(placement={"mode": "pin"})


@_phrase(r'preferring "(.+)"')
def _preferring(wanted: Wanted, pool: str) -> None:
    wanted.put(placement={"mode": "prefer", "prefer_pools": [pool]})


@_phrase(r'on nothing but "(.+)"')
def _only(wanted: Wanted, pool: str) -> None:
    wanted.put(placement={"mode": "prefer", "prefer_pools": [pool], "allow_fallback": False})


@_phrase(r'avoiding "(.+)"')
def _avoiding(wanted: Wanted, pool: str) -> None:
    wanted.put(placement={"avoid_pools": [pool]})


@_phrase(r'on device "(.+)"')
def _device(wanted: Wanted, mask: str) -> None:
    wanted.put(placement={"require_device_mask": mask})


@_phrase(r"with seed (\d+)")
def _seed(wanted: Wanted, seed: str) -> None:
    wanted.put(seed=int(seed))


@_phrase(r"without a (\w+)")
def _without(wanted: Wanted, name: str) -> None:
    wanted.without.append(name)


@_phrase(r'with profile "(.+)"')
def _profile(wanted: Wanted, name: str) -> None:
    wanted.put(sampler_profile_version=name)


@_phrase(r"as a conversation")
def _conversation(wanted: Wanted) -> None:
    wanted.without.append("prompt")
    wanted.put(messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}])


@_phrase(r'that stops at "(.+)"')
def _stops(wanted: Wanted, text: str) -> None:
    wanted.put(sampling={"stop": [text]})


@_phrase(r"bound to a grammar")
def _grammar(wanted: Wanted) -> None:
    wanted.put(sampling={"grammar": "root ::= [a-z]+"})


@_phrase(r"bound to a schema")
def _schema(wanted: Wanted) -> None:
    wanted.put(sampling={"json_schema": {"type": "object"}})


@_phrase(r"with inputs")
def _inputs(wanted: Wanted) -> None:
    wanted.put(inputs=["one"])


@_phrase(r"strictly deterministic")
def _strict(wanted: Wanted) -> None:
    wanted.put(determinism="strict")


@_phrase(r"that goes on unread")
def _goes_on(wanted: Wanted) -> None:
    wanted.put(on_disconnect="continue")


@_phrase(r'with (\w+) "(.*)"')
def _text(wanted: Wanted, name: str, value: str) -> None:
    wanted.put(**{name: value})


@_phrase(r"with (\w+) (-?\d+)")
def _number(wanted: Wanted, name: str, value: str) -> None:
    wanted.put(**{name: int(value)})


# -- one call of every operation -------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Call:
    """One request of one operation."""

    operation: contract.Operation
    method: str
    path: str
    json: Any = None


def calls(identity: Callable[[dict[str, Any]], str] | None = None) -> list[Call]:
    """A well-formed call of every operation; `identity` gives the value of a path parameter."""
    return [call(operation, identity or unknown) for operation in contract.operations()]


def call(operation: contract.Operation, identity: Callable[[dict[str, Any]], str]) -> Call:
    """A well-formed call of one operation, with the first example of the contract as its body."""
    path = operation.path
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", quote(identity(parameter), safe=""))
    return Call(operation, operation.method, path, _example(operation))


def _example(operation: contract.Operation) -> Any:
    if operation.body_schema is None:
        return None
    raw = contract.load(operation.contract)["paths"][operation.path][operation.method.lower()]
    examples = raw["requestBody"]["content"]["application/json"]["examples"]
    return next(iter(examples.values()))["value"]


def unknown(parameter: dict[str, Any]) -> str:
    """A well-formed id that nothing has."""
    schema = parameter["schema"]
    if "enum" in schema:
        return str(schema["enum"][0])
    if schema.get("format") == "uuid":
        return str(uuid4())
    return uuid4().hex * 2 if schema.get("minLength") == 64 else f"nothing-{uuid4().hex}"


def malformed(_: dict[str, Any]) -> str:
    """What no kind of id may be."""
    return "not an id"
