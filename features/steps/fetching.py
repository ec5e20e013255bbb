"""Models that are fetched."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from behave import given, step, then, when

from features.fetching import Elsewhere
from features.vocabulary import equal
from tests.fetch.site import digest


def _begin(context: Any) -> Elsewhere:
    folder = TemporaryDirectory()
    context.add_cleanup(folder.cleanup)
    elsewhere = context.elsewhere = Elsewhere(Path(folder.name))
    context.add_cleanup(elsewhere.stop)
    return elsewhere


@given("a server nearby that models may be fetched from")
def server_is_allowed(context: Any) -> None:
    _begin(context)


@given("a server nearby, and nothing may be fetched")
def nothing_is_allowed(context: Any) -> None:
    _begin(context).fetch.clear()


@given("a server nearby, and models may be fetched from others only")
def others_are_allowed(context: Any) -> None:
    _begin(context).fetch.update(allow_private=[], hosts=["models.example.com"])


@given("a server nearby that is allowed like one far away")
def not_as_private(context: Any) -> None:
    elsewhere = _begin(context)
    elsewhere.fetch.update(allow_private=[], hosts=[f"127.0.0.1:{elsewhere.site.port}"])


@given("the cache holds no more than one of its models")
def cache_is_bounded(context: Any) -> None:
    elsewhere = context.elsewhere
    elsewhere.sweep_ms = 100
    elsewhere.fetch["cache_bytes"] = len(elsewhere.site.files["/first.gguf"]) + 1


@given("a pool with a model of this machine")
def pool_with_local_model(context: Any) -> None:
    context.elsewhere.start(local=True)


@given('the server sends only half of "{name:Text}" for now')
def server_holds(context: Any, name: str) -> None:
    context.elsewhere.hold(name)


@step("a pool starts whose model is on that server")
def pool_with_remote_model(context: Any) -> None:
    context.elsewhere.start(local=False)


@step('the pool is reloaded with "{name:Text}" from there')
def pool_is_reloaded(context: Any, name: str) -> None:
    context.elsewhere.reload(context.elsewhere.ref(name))


@when("the server sends the rest")
def server_goes_on(context: Any) -> None:
    context.elsewhere.gate.set()


@then('the pool comes to serve "{name:Text}" from there, under its digest')
def pool_serves(context: Any, name: str) -> None:
    elsewhere = context.elsewhere
    wanted = digest((elsewhere.folder / f"{name}.gguf").read_bytes())
    elsewhere.until(lambda: elsewhere.health().get("model_digest") == wanted, f"{name} is served")
    equal(elsewhere.health()["model_ref"], elsewhere.ref(name), "the model")
    equal(elsewhere.health()["ready"], True, "whether the pool is ready")


@step('the pool comes up with "{name:Text}" from there')
def pool_comes_up(context: Any, name: str) -> None:
    elsewhere = context.elsewhere
    elsewhere.until(lambda: elsewhere.health()["ready"], "the pool is ready")
    equal(elsewhere.health()["model_ref"], elsewhere.ref(name), "the model")


@then('of its models "{name:Text}" alone stays in the cache')
def stays_in_the_cache(context: Any, name: str) -> None:
    context.elsewhere.until(lambda: context.elsewhere.cached() == [name], f"{name} alone is cached")


@then("half of it is shown to be there")
def half_is_shown(context: Any) -> None:
    elsewhere = context.elsewhere
    elsewhere.until(lambda: "fetch_total_bytes" in elsewhere.health()["metrics"], "fetching is shown")
    size = (elsewhere.folder / "second.gguf").stat().st_size
    equal(elsewhere.health()["metrics"]["fetch_total_bytes"], size, "fetch_total_bytes")
    equal(elsewhere.health()["operation"]["state"], "fetching", "the operation")


@then('the reload is refused by rule {rule:Word}, and the message names "{setting:Text}"')
def reload_is_refused(context: Any, rule: str, setting: str) -> None:
    answer = context.elsewhere.answer
    equal((answer.status_code, answer.json()["details"]["rule"]), (400, rule), "the answer")
    assert setting in answer.json()["message"], answer.json()["message"]


@then("the server was never asked")
def never_asked(context: Any) -> None:
    equal(context.elsewhere.site.connections, 0, "connections")


@then("the reload failed as {code:Code}, because {words}")
def reload_failed(context: Any, code: str, words: str) -> None:
    operation = context.elsewhere.outcome()
    equal((operation["state"], operation["error"]["code"]), ("failed", code), "the operation")
    assert words in operation["error"]["message"], operation["error"]["message"]


@then("the pool serves its old model on")
def serves_on(context: Any) -> None:
    found = context.elsewhere.health()
    equal(found["model_ref"], f"file:{context.elsewhere.folder / 'first.gguf'}", "the model")
    equal(found["ready"], True, "whether the pool is ready")
