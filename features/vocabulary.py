"""Words that steps share: how a scenario names tasks, durations, states and codes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import parse
import requests
from behave import register_type

from features.wishes import KINDS, Wanted, seconds, wishes
from features.world import World
from orchestratord import contract
from orchestratord.testing.oracle import LAYER, methods

IT = ""


@parse.with_pattern(r'it|"[^"]+"')
def _ref(text: str) -> str:
    """A task: `it` is the one spoken of last."""
    return IT if text == "it" else text.strip('"')


@parse.with_pattern(r'"[^"]+"(?:(?:, "[^"]+")* and "[^"]+")?')
def _names(text: str) -> list[str]:
    return text.replace(" and ", ", ").replace('"', "").split(", ")


@parse.with_pattern(rf'(?:(?:an?|another|the) )?(?:(?:{"|".join(filter(None, KINDS))}) )?task(?: "[^"]+")?')
def _task(text: str) -> tuple[str, str]:
    """(name, kind) of a task that is about to be sent."""
    words, _, name = text.partition("task")
    kind = next((word for word in words.split() if word in KINDS), "")
    return name.strip(' "') or ("another" if words.startswith("another") else "it"), kind


@parse.with_pattern(r".+")
def _wishes(text: str) -> Wanted:
    return wishes(text)


@parse.with_pattern(r"\d+(?:\.\d+)? (?:ms|seconds?|minutes?|hours?|days?)")
def _duration(text: str) -> float:
    return seconds(text)


@parse.with_pattern(r"[A-Z][A-Z_]+")
def _code(text: str) -> str:
    return text


@parse.with_pattern("|".join(contract.load("data")["components"]["schemas"]["TaskState"]["enum"]))
def _state(text: str) -> str:
    return text


@parse.with_pattern(r"\w+")
def _word(text: str) -> str:
    return text


@parse.with_pattern(r'[^"]*')
def _text(text: str) -> str:
    return text


@parse.with_pattern(r"somebody|\"[^\"]+\"")
def _reader(text: str) -> str:
    return text.strip('"')


@parse.with_pattern(r"/[^ ]*")
def _path(text: str) -> str:
    return text


@parse.with_pattern(r'[A-Z][A-Za-z-]+ ".*"')
def _headers(text: str) -> dict[str, str]:
    """`Host "a"` as a header."""
    header, _, value = text.partition(" ")
    return {header: value[1:-1]}


@parse.with_pattern("tasks?|times?|tokens?|events?|turns?")
def _noun(text: str) -> str:
    return text


@parse.with_pattern("refuses the task|is full|ignores the abort|never stops")
def _fault(text: str) -> str:
    return text


@parse.with_pattern(r"no|\d+")
def _count(text: str) -> int:
    return 0 if text == "no" else int(text)


register_type(
    Ref=_ref,
    Names=_names,
    Task=_task,
    Wishes=_wishes,
    Duration=_duration,
    Code=_code,
    State=_state,
    Word=_word,
    Text=_text,
    Count=_count,
    Reader=_reader,
    Path=_path,
    Headers=_headers,
    Noun=_noun,
    Fault=_fault,
)


def name(world: World, ref: str) -> str:
    """The name of the task a step speaks of."""
    return ref or world.last


def refusal(world: World, ref: str = IT) -> Any:
    """The envelope of the answer a step speaks of: the last one, or the one to a task's admission."""
    answer = world.task(ref).answer if ref else world.answer
    assert answer is not None, "nothing was asked yet"
    assert answer.status_code >= 400, f"it was not refused but answered with {answer.status_code}: {answer.text}"
    return envelope(world, answer)


def envelope(world: World, answer: requests.Response) -> Any:
    """What an error says. A step that reads it compares it: only such errors count as shown."""
    path, method = urlsplit(answer.request.url or "").path, answer.request.method or ""
    operation = methods(path).get(method)
    world.spoken.add((operation.operation_id if operation else "", answer.status_code))
    world.spoken.add((LAYER.get(answer.status_code, ""), answer.status_code))
    return answer.json()


def equal(actual: object, expected: object, what: str) -> None:
    assert actual == expected, f"{what}: {actual!r}, expected {expected!r}"
