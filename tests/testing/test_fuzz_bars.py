"""The fuzz run fails when it was not deep enough to mean anything: each of its bars bites."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestratord import contract
from tests.fuzz.__main__ import Fuzz
from tests.fuzz.door import Books


def deep() -> Books:
    """What a run that is just good enough has seen."""
    books = Books(finished_streams=100)
    for operation in contract.operations():
        for status in operation.responses:
            if status < "300":
                books.answers[operation.operation_id, int(status)] = 1
    books.answers["createTask", 202] = 25
    books.answers["createTask", 400] = 75
    return books


def shortfalls(books: Books) -> list[str]:
    fuzz = Fuzz.__new__(Fuzz)
    fuzz.books = books
    return list(fuzz.shortfalls(1.0))


def test_a_run_that_is_deep_enough_passes() -> None:
    assert shortfalls(deep()) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda books: books.answers.update({("createTask", 429): 1}), "25 of 101 createTask cases were admitted"),
        (lambda books: setattr(books, "finished_streams", 99), "99 streams reached a terminal event"),
        (lambda books: books.answers.pop(("streamTask", 204)), "streamTask never answered 204"),
        (lambda books: books.answers.pop(("resumePool", 202)), "resumePool never answered 202"),
    ],
    ids=["admissions", "streams", "a 204", "of the control plane"],
)
def test_each_bar_bites(spoil: Callable[[Books], object], told: str) -> None:
    """A quarter of the tasks admitted, 100 streams to their end, every 2xx of both contracts."""
    books = deep()
    spoil(books)
    (found,) = shortfalls(books)
    assert found.startswith(told)
