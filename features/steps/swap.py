"""A change of the real model under load."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from behave import given, then, when

from features.swap import Swap
from features.vocabulary import equal


def _begin(context: Any, *, beside: bool) -> None:
    folder = TemporaryDirectory()
    context.add_cleanup(folder.cleanup)
    context.swap = Swap(Path(folder.name), beside=beside)
    context.add_cleanup(context.swap.stop)


@given("4 clients stream from a real model, and there is memory for another")
def clients_stream(context: Any) -> None:
    _begin(context, beside=True)


@given("4 clients stream from a real model, and there is no memory for another")
def clients_stream_tight(context: Any) -> None:
    _begin(context, beside=False)


@when('the model is changed for the "{name:Text}" one')
def model_is_changed(context: Any, name: str) -> None:
    context.operation = context.swap.reload(name)
    context.swap.stop()
    took = context.operation["ended_at_ms"] - context.operation["started_at_ms"]
    sys.__stdout__.write(
        f"\nswap: {context.operation['state']} in {took} ms, {len(context.swap.heard)} tasks, "
        f"longest pause of all clients {context.swap.pause_s * 1000:.0f} ms\n"
    )


@then("the reload {state:Word}")
def reload_ended(context: Any, state: str) -> None:
    equal(context.operation["state"], state, "the operation")


@then("no task was lost, and none failed")
def none_lost(context: Any) -> None:
    outcomes = Counter(h.end or h.code for h in context.swap.heard if h.submitted == 202)
    equal(set(outcomes), {"end"}, "how admitted tasks ended")


@then("nobody was turned away")
def nobody_turned_away(context: Any) -> None:
    equal(Counter(h.submitted for h in context.swap.heard).keys(), {202}, "the answers")


@then("who came meanwhile was asked to come back, and for nothing else")
def asked_to_come_back(context: Any) -> None:
    refused = Counter(h.code for h in context.swap.heard if h.submitted != 202)
    equal(set(refused) - {"POOL_UNREADY"}, set(), "other refusals")


@then("it took less than {seconds:d} seconds")
def took_less(context: Any, seconds: int) -> None:
    took = context.operation["ended_at_ms"] - context.operation["started_at_ms"]
    assert took < seconds * 1000, f"it took {took} ms"


@then("the operation says why, with the engine's last words")
def says_why(context: Any) -> None:
    error = context.operation["error"]
    assert "exited" in error["message"], error
    assert error["log_tail"], error


@then("the answers are those of another model")
def answers_changed(context: Any) -> None:
    texts = [heard.text for heard in context.swap.heard if heard.text]
    assert not set(texts[:8]) & set(texts[-4:]), "the first and the last answers are the same"
