"""The short ways of a body, `compile_quick` and `parse_request`, come to what the long ones come to, whatever it is."""

from __future__ import annotations

import json
import uuid
from dataclasses import fields
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from orchestratord import contract
from orchestratord.domain.request import TaskRequest
from orchestratord.wire import bodies
from orchestratord.wire.tasks import parse_request

OPERATIONS = {op.operation_id: op for op in contract.operations() if op.body_schema is not None}
FEW = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
UUIDS = st.builds(lambda value, upper: str(value).upper() if upper else str(value), st.uuids(), st.booleans())
TEXTS = st.one_of(st.text(max_size=12), UUIDS, UUIDS.map(lambda text: text + "\n"), UUIDS.map(lambda text: text[1:]))
NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 4294967294, 4294967295, 1.0, 512.0, 0.5, 2.0, 1e300]
    ),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCRAPS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)


@cache
def validators(name: str) -> tuple[Any, Any]:
    schema = OPERATIONS[name].body_schema
    assert schema is not None
    return contract.compile_schema(schema), contract.compile_quick(schema)


def _seldom(draw: DrawFn) -> bool:
    return draw(st.integers(0, 39)) == 17


@st.composite
def fitting(draw: DrawFn, schema: dict[str, Any]) -> Any:
    """Something that mostly fits the schema, and now and then does not: a scrap, a bound passed, a field too many."""
    if _seldom(draw):
        return draw(SCRAPS)
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    for kind in ("allOf", "anyOf", "oneOf"):
        if kind in schema:
            return draw(fitting(draw(st.sampled_from(schema[kind]))))
    return draw(_of_type(schema))


def _of_type(schema: dict[str, Any]) -> SearchStrategy[Any]:
    match schema.get("type"):
        case "object":
            return _objects(schema)
        case "array":
            return st.lists(fitting(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        case "string" if schema.get("format") == "uuid":
            return UUIDS
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"].replace("$", r"\Z"))
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=schema.get("minLength", 0) + 8)
        case "integer":
            low = schema.get("minimum", -5)
            most = min(schema.get("maximum", 1000), low + 5000)
            beyond = st.sampled_from([low - 1, schema.get("maximum", 0) + 1, 1.0, float(most), 2**64])
            return st.integers(0, 29).flatmap(lambda n: beyond if n == 17 else st.integers(low, most))
        case "number":
            return st.one_of(st.floats(0, 1), st.integers(-1, 3))
        case "boolean":
            return st.booleans()
    return SCRAPS


@st.composite
def _objects(draw: DrawFn, schema: dict[str, Any]) -> dict[str, Any]:
    known, required = schema.get("properties", {}), schema.get("required", [])
    given = {name: draw(fitting(part)) for name, part in known.items() if name in required or draw(st.booleans())}
    if _seldom(draw):
        given[draw(st.text(max_size=5))] = draw(SCRAPS)
    if given and _seldom(draw):
        del given[draw(st.sampled_from(sorted(given)))]
    return given


def as_sent(body: Any) -> Any:
    """What the daemon makes of the body's text: integers beyond 64 bits, for one, are floats there."""
    return bodies.parse(bytearray(json.dumps(body).encode()))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_quick_validator_says_what_the_other_says(name: str) -> None:
    """Else a body passes that the contract forbids, or one is refused for no reason that anybody could be told."""
    schema = OPERATIONS[name].body_schema
    assert schema is not None
    verdicts = set()

    @FEW
    @given(fitting(schema))
    def check(body: Any) -> None:
        sent = as_sent(body)
        slow, quick = validators(name)
        assert quick.is_valid(sent) == slow.is_valid(sent)
        verdicts.add(slow.is_valid(sent))

    check()
    assert verdicts == {False, True}, "what was tried was all of one kind"


@pytest.mark.parametrize(
    "text",
    ["{}\n", "\n{}", " {}", "{}0", "x{}", "{}\r", "{}\u2028", "{}\0"],
)
def test_a_uuid_has_nothing_around_it(text: str) -> None:
    """Where Python's `fullmatch` and an engine's `$` could differ."""
    slow, quick = (
        make({"type": "string", "format": "uuid"}) for make in (contract.compile_schema, contract.compile_quick)
    )
    good = str(uuid.uuid4())
    assert slow.is_valid(good)
    assert quick.is_valid(good)
    bad = text.format(good)
    assert (slow.is_valid(bad), quick.is_valid(bad)) == (False, False)


def whole(body: dict[str, Any]) -> TaskRequest:
    """The body with each field converted, and checked, as its type says."""
    ids = {name: body[name].lower() for name in ("task_id", "session_id")}
    return msgspec.convert({**body, **ids}, TaskRequest)


def test_a_request_is_what_a_full_conversion_makes_of_it() -> None:
    """Each value of the type it is declared with, in each body that the contract lets in."""
    given_once = set()

    @FEW
    @given(fitting(OPERATIONS["createTask"].body_schema or {}))
    def check(body: Any) -> None:
        sent = as_sent(body)
        if not validators("createTask")[1].is_valid(sent):
            return
        given_once.update(sent)
        short, long = parse_request(sent), whole(sent)
        assert short == long
        for one in fields(TaskRequest):
            assert type(getattr(short, one.name)) is type(getattr(long, one.name)), one.name

    check()
    assert given_once == {one.name for one in fields(TaskRequest)}, "nothing was tried of the others"


def test_an_integer_is_written_as_one() -> None:
    """A float in the place of one would get as far as an engine."""
    body = {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "model_ref": "file:a.gguf",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "batch",
        "max_tokens": 5,
        "deadline_ms": 1000,
        "prompt": "hello",
    }
    slow, quick = validators("createTask")
    assert (slow.is_valid(body), quick.is_valid(body)) == (True, True)
    for name in ("ctx", "max_tokens", "deadline_ms", "seed", "expected_tokens"):
        for value in (512.0, True, "512", 2**64, None):
            wrong = as_sent({**body, name: value})
            assert (slow.is_valid(wrong), quick.is_valid(wrong)) == (False, False), (name, value)
