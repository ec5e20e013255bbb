"""What any answer says: refusals, their advice, their headers."""

from __future__ import annotations

from typing import Any

from behave import then

from features.vocabulary import equal, refusal


@then("{ref:Ref} is refused as {code:Code}")
def is_refused(context: Any, ref: str, code: str) -> None:
    equal(refusal(context.world, ref)["code"], code, "the code")


@then("it is refused as {code:Code} by rule {rule:Word}")
def is_refused_by_rule(context: Any, code: str, rule: str) -> None:
    found = refusal(context.world)
    equal((found["code"], found.get("details", {}).get("rule")), (code, rule), "code and rule")


@then('the message says "{text}"')
def refusal_says(context: Any, text: str) -> None:
    message = refusal(context.world)["message"]
    assert text in message, f"the message is {message!r}"


@then("it may be retried after {duration:Duration}")
def may_be_retried(context: Any, duration: float) -> None:
    equal(refusal(context.world).get("retriable"), True, "retriable")
    equal(context.world.answer.headers.get("Retry-After"), f"{duration:g}", "Retry-After")


@then("room is expected in {milliseconds:d} ms")
def room_is_expected(context: Any, milliseconds: int) -> None:
    equal(refusal(context.world)["retry_after_ms"], milliseconds, "retry_after_ms")
    equal(context.world.answer.headers["X-Backoff-Ms"], str(milliseconds), "X-Backoff-Ms")


@then("it is worth retrying")
def is_worth_retrying(context: Any) -> None:
    equal(refusal(context.world).get("retriable"), True, "retriable")


@then("it is not worth retrying")
def is_not_worth_retrying(context: Any) -> None:
    equal(refusal(context.world).get("retriable", False), False, "retriable")


@then('the policy is "{label:Text}"')
def policy_is(context: Any, label: str) -> None:
    equal(refusal(context.world).get("policy_label"), label, "policy_label")


@then("the refusal names {key:Word} as {value}")
def refusal_names(context: Any, key: str, value: str) -> None:
    equal(str(refusal(context.world).get("details", {}).get(key)), value, key)


@then("it succeeds without content")
def succeeds_without_content(context: Any) -> None:
    equal(context.world.answer.status_code, 204, "the status")


@then("the answer is {status:d}")
def answer_is(context: Any, status: int) -> None:
    equal(context.world.answer.status_code, status, "the status")


@then('header {header} is "{value}"')
def header_is(context: Any, header: str, value: str) -> None:
    equal(context.world.answer.headers.get(header), value, header)
