"""HTTP itself: raw requests, headers, and the same question to every operation."""

from __future__ import annotations

from typing import Any

from behave import given, then, when

from features.sockets import trickle
from features.vocabulary import envelope, equal
from features.wishes import calls, malformed, unknown
from orchestratord import contract


@given('a daemon with the token "{token:Text}"')
def daemon_has_token(context: Any, token: str) -> None:
    context.world.plan.section("token", token)


@given("local peers need no token")
def token_is_optional(context: Any) -> None:
    context.world.plan.section("auth_optional", True)


@given("{names:Names} are public")
def paths_are_public(context: Any, names: list[str]) -> None:
    context.world.plan.section("auth", {"public": names})


@given('origin "{origin:Text}" is allowed')
def origin_is_allowed(context: Any, origin: str) -> None:
    context.world.plan.section("auth", {"allowed_origins": [origin]})


@given('host "{host:Text}" is allowed')
def host_is_allowed(context: Any, host: str) -> None:
    context.world.plan.section("auth", {"allowed_hosts": [host]})


@when("{method:Word} {path:Path} is requested")
def path_is_requested(context: Any, method: str, path: str) -> None:
    context.world.send(method, path)


@when("{method:Word} {path:Path} is requested with {headers:Headers}")
def path_is_requested_with(context: Any, method: str, path: str, headers: dict[str, str]) -> None:
    context.world.send(method, path, headers=headers)


@when("{method:Word} {path:Path} is requested without a token")
def path_is_requested_openly(context: Any, method: str, path: str) -> None:
    context.world.send(method, path, headers={"Authorization": None})


@when("{method:Word} {path:Path} is requested without a token, with {headers:Headers}")
def path_is_requested_openly_with(context: Any, method: str, path: str, headers: dict[str, str]) -> None:
    context.world.send(method, path, headers={"Authorization": None, **headers})


@when("GET /v1/pools is requested by a URL of {size:d} bytes")
def url_is_long(context: Any, size: int) -> None:
    context.world.send("GET", "/v1/pools?cursor=" + "x" * (size - len("/v1/pools?cursor=")))


@when("GET /healthz is requested with a header of {size:d} bytes")
def header_is_long(context: Any, size: int) -> None:
    context.world.send("GET", "/healthz", headers={"X-Long": "x" * size})


@when("half a request head arrives and no more")
def half_a_head(context: Any) -> None:
    context.world.answer = trickle(context.world.http, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")


@when("a second client connects")
def second_client(context: Any) -> None:
    world = context.world
    world.http.get("/healthz")
    world.answer = world.door(world.record).get("/healthz")


# -- every operation -------------------------------------------------------------------------------------------
@when("every operation is called")
def all_are_called(context: Any) -> None:
    context.world.send_all(calls())


@when("every operation is called without a token")
def all_are_called_openly(context: Any) -> None:
    context.world.send_all(calls(), headers={"Authorization": None})


@when('every operation is called with the token "{token:Text}"')
def all_are_called_with(context: Any, token: str) -> None:
    context.world.send_all(calls(), headers={"Authorization": f"Bearer {token}"})


@when('every operation is called as host "{host:Text}"')
def all_are_called_as(context: Any, host: str) -> None:
    context.world.send_all(calls(), headers={"Host": host})


@when("every operation on one thing is called with an id nothing has")
def unknown_ids(context: Any) -> None:
    context.world.send_all([c for c in calls(unknown) if "404" in c.operation.responses])


@when("every operation on one thing is called with what is no id")
def malformed_ids(context: Any) -> None:
    context.world.send_all([c for c in calls(malformed) if "{" in c.operation.path])


@when("every list is asked for with a cursor it did not make")
def foreign_cursors(context: Any) -> None:
    lists = [c for c in calls() if "cursor" in c.operation.rules and c.operation.until is None]
    context.world.send_all(lists, params={"cursor": "not-a-cursor"})


@when("every list is asked for pages of {size:d}")
def page_size(context: Any, size: int) -> None:
    context.world.send_all([c for c in calls() if "cursor" in c.operation.rules], params={"limit": size})


@when("every operation with a body gets {size:d} bytes")
def large_bodies(context: Any, size: int) -> None:
    body, headers = b" " * size, {"Content-Type": "application/json"}
    with_body = [c for c in calls() if c.operation.body_schema is not None]
    context.world.send_all(with_body, json=None, data=body, headers=headers)


@when("every operation with a body gets it as text/plain")
def plain_bodies(context: Any) -> None:
    with_body = [c for c in calls() if c.operation.body_schema is not None]
    context.world.send_all(with_body, json=None, data=b"{}", headers={"Content-Type": "text/plain"})


@when("every operation with a body gets an empty object")
def empty_bodies(context: Any) -> None:
    context.world.send_all([c for c in calls() if c.operation.body_schema is not None], json={})


@when("every operation on the whole catalog is called")
def announced_on_catalog(context: Any) -> None:
    context.world.send_all([c for c in calls() if c.operation.until and c.path == "/v1/catalog/models"])


@then("all {count:d} are refused as {code:Code}")
def all_so_many_are_refused(context: Any, count: int, code: str) -> None:
    every_one_is_refused(context, code)
    equal(len(context.world.answers), count, "how many there are")


@then("all operations of the contracts are refused as {code:Code}")
def all_are_refused(context: Any, code: str) -> None:
    every_one_is_refused(context, code)
    equal(len(context.world.answers), len(contract.operations()), "how many were asked")


@then("each is refused as {code:Code}")
def every_one_is_refused(context: Any, code: str) -> None:
    answers = context.world.answers
    found = {operation: envelope(context.world, answer).get("code") for operation, answer in answers.items()}
    assert found, "nothing was asked"
    equal(found, dict.fromkeys(answers, code), "the codes")


@then('nothing of "{text:Text}" is shown')
def nothing_is_shown(context: Any, text: str) -> None:
    shown = [operation for operation, answer in context.world.answers.items() if text in answer.text]
    assert not shown, f"{shown} show it"


@then("each answer has a correlation id of its own")
def ids_are_different(context: Any) -> None:
    ids = {answer.headers["X-Correlation-Id"] for answer in context.world.answers.values()}
    equal(len(ids), len(context.world.answers), "different correlation ids")


@then("the correlation id is a fresh one")
def correlation_is_fresh(context: Any) -> None:
    sent = context.world.answer.request.headers.get("X-Correlation-Id")
    given = context.world.answer.headers["X-Correlation-Id"]
    assert given != sent, f"{given!r} came back"
    equal(len(given), 36, "the length of a UUID")
