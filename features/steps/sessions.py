"""Sessions: turns, lifetime, warmth and their end."""

from __future__ import annotations

from typing import Any

from behave import given, step, then, when

from features.vocabulary import envelope, equal
from features.wishes import Wanted


def _path(context: Any, session: str) -> str:
    return f"/v1/sessions/{context.world.id('session', session)}"


@given("a session has {turns:d} turns")
def sessions_have_turns(context: Any, turns: int) -> None:
    context.world.plan.section("sessions", {"turns_max": turns})


@step('session "{session:Text}" has used {turns:d} turns')
def session_has_used(context: Any, session: str, turns: int) -> None:
    for number in range(1, turns + 1):
        context.world.submit(f"turn {number}", "", Wanted(session=session))
        equal(context.world.answer.status_code, 202, f"the answer to turn {number}")


@step('session "{session:Text}" is deleted')
def session_is_deleted(context: Any, session: str) -> None:
    context.world.send("DELETE", _path(context, session))


@when('somebody looks at session "{session:Text}"')
def session_is_looked_at(context: Any, session: str) -> None:
    context.world.send("GET", _path(context, session))


@then('session "{session:Text}" shows {turns:d} of {most:d} turns')
def session_shows_turns(context: Any, session: str, turns: int, most: int) -> None:
    shown = context.world.look(_path(context, session))
    equal((shown["turns"], shown["turns_max"]), (turns, most), "turns")


@then('session "{session:Text}" shows {turns:d} {noun:Noun}')
def session_shows_turn(context: Any, session: str, turns: int, noun: str) -> None:
    equal(context.world.look(_path(context, session))["turns"], turns, "turns")


@then('session "{session:Text}" has {duration:Duration} left')
def session_has_left(context: Any, session: str, duration: float) -> None:
    equal(context.world.look(_path(context, session))["ttl_ms_remaining"], round(duration * 1000), "time left")


@then('session "{session:Text}" is {warmth:Word}')
def session_is_warm(context: Any, session: str, warmth: str) -> None:
    equal(context.world.look(_path(context, session))["kv_warmth"], warmth == "warm", "kv_warmth")


@then('session "{session:Text}" takes {size:d} bytes for each token of "{name:Text}" but the last')
def session_takes_bytes(context: Any, session: str, size: int, name: str) -> None:
    task = context.world.look(f"/v1/tasks/{context.world.id('task', name)}")
    tokens = task["tokens_in"] + task["tokens_out"] - 1
    equal(context.world.look(_path(context, session))["kv_bytes"], size * tokens, "kv_bytes")


@then('what session "{session:Text}" takes is not known')
def session_takes_what(context: Any, session: str) -> None:
    assert "kv_bytes" not in context.world.look(_path(context, session))


@then('there is no session "{session:Text}"')
def session_is_unknown(context: Any, session: str) -> None:
    answer = context.world.http.get(_path(context, session))
    equal(
        (answer.status_code, envelope(context.world, answer)["code"]),
        (404, "NOT_FOUND"),
        "what is known of the session",
    )


# -- budgets ---------------------------------------------------------------------------------------------------
HEADERS = {
    "tokens": "X-Budget-Tokens-Remaining",
    "milliseconds": "X-Budget-Time-Remaining-Ms",
    "units": "X-Budget-Cost-Remaining",
}
MEMBERS = {"tokens": "tokens_remaining", "milliseconds": "time_remaining_ms", "unit": "cost_remaining"}


@given("a session may spend {tokens:d} tokens")
def session_may_spend_tokens(context: Any, tokens: int) -> None:
    context.world.plan.section("sessions", {"budgets": {"tokens": tokens}})


@given("a session may spend {duration:Duration} of engine time")
def session_may_spend_time(context: Any, duration: float) -> None:
    context.world.plan.section("sessions", {"budgets": {"time_ms": round(duration * 1000)}})


@given("a session may spend {units:d} units at {price:d} units a task")
def session_may_spend_units(context: Any, units: int, price: int) -> None:
    context.world.plan.section("sessions", {"budgets": {"cost": units}, "tariff": {"per_task": price}})


@given(
    "a session may spend {tokens:d} tokens, {duration:Duration} of engine time "
    "and {units:d} units at {price:d} units a task"
)
def session_may_spend(context: Any, tokens: int, duration: float, units: int, price: int) -> None:
    budgets = {"tokens": tokens, "time_ms": round(duration * 1000), "cost": units}
    context.world.plan.section("sessions", {"budgets": budgets, "tariff": {"per_task": price}})


@then("{tokens:d} tokens, {milliseconds:d} milliseconds and {units:d} units are left")
def answer_tells_what_is_left_of_each(context: Any, tokens: int, milliseconds: int, units: int) -> None:
    for what, amount in (("tokens", tokens), ("milliseconds", milliseconds), ("units", units)):
        answer_tells_what_is_left(context, amount, what)


@then("{amount:d} {what:Word} are left")
def answer_tells_what_is_left(context: Any, amount: int, what: str) -> None:
    answer = context.world.answer
    assert answer.status_code < 300, f"it was refused: {answer.text}"
    equal(float(answer.headers[HEADERS[what]]), amount, HEADERS[what])


@then('session "{session:Text}" has {amount:d} {what:Word} left to spend')
def session_has_left_to_spend(context: Any, session: str, amount: int, what: str) -> None:
    equal(context.world.look(_path(context, session))["budgets"], {MEMBERS[what]: amount}, "the budgets")
