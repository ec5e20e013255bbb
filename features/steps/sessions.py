"""Sessions: turns, lifetime, warmth and their end."""

from __future__ import annotations

from typing import Any

from behave import given, step, then, when

from features.vocabulary import equal
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


@then('there is no session "{session:Text}"')
def session_is_unknown(context: Any, session: str) -> None:
    answer = context.world.http.get(_path(context, session))
    equal((answer.status_code, answer.json()["code"]), (404, "NOT_FOUND"), "what is known of the session")
