"""The model catalog: entries, checks, retirement, and what tasks may use."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from behave import given, step, then, when

from features.models import Models
from features.vocabulary import equal, refusal
from features.wishes import Wanted

PATH = "/v1/catalog/models"


@given("a folder of models")
def folder_of_models(context: Any) -> None:
    plan = context.world.plan
    context.models = Models(Path(plan.undo.enter_context(tempfile.TemporaryDirectory())))
    plan.section("models", {"roots": [str(context.models.folder)]})
    context.models.write("qwen.gguf", "GGUF and some weights")


@given('"{name:Text}" may sign models')
def may_sign(context: Any, name: str) -> None:
    context.world.plan.section("trust", {"roots": {name: context.models.root(name)}})


@given("the trust policy is strict")
def policy_is_strict(context: Any) -> None:
    context.world.plan.section("trust", {"mode": "strict"})


@given('only "{registry:Text}" may serve models')
def only_registry(context: Any, registry: str) -> None:
    context.world.plan.section("trust", {"allowed_registries": [registry]})


@given('pool "{pool:Text}" serves file "{file:Text}"')
def pool_serves_file(context: Any, pool: str, file: str) -> None:
    context.world.plan.pool(pool, model=f"file:{file}")


@given('the model of pool "{pool:Text}" has the digest of "{file:Text}"')
def pool_has_digest(context: Any, pool: str, file: str) -> None:
    digest = context.models.digest(file)
    context.world.plan.preset(pool, lambda engine: engine.change(model_digest=digest))


@step('the bytes of "{file:Text}" change')
def bytes_change(context: Any, file: str) -> None:
    context.models.write(file, "something else altogether")


# -- entries ---------------------------------------------------------------------------------------------------
def enter(context: Any, name: str, source: str, **fields: Any) -> None:
    world = context.world
    body = {"id": world.id("model", name), "source_url": source, **fields}
    answer = world.send("POST", PATH, json=body)
    if answer.status_code == 201 and world.deployment is not None:
        world.plan.undo.callback(lambda: world.http.delete(f"{PATH}/{body['id']}"))


def elsewhere(context: Any, name: str) -> str:
    """A source of its own."""
    return f"https://models.example/{context.world.id('model', name)}.gguf"


@step('an operator enters model "{name:Text}"')
@step('an operator enters model "{name:Text}" again')
def operator_enters(context: Any, name: str) -> None:
    enter(context, name, elsewhere(context, name), tags=["b", "a", "b"])


@step('an operator enters model "{name:Text}" from the source of "{other:Text}", spelt otherwise')
def operator_enters_same_source(context: Any, name: str, other: str) -> None:
    enter(context, name, elsewhere(context, other).replace("models.example/", "MODELS.example:443/"))


@step('an operator enters model "{name:Text}" from "{source:Text}"')
def operator_enters_from(context: Any, name: str, source: str) -> None:
    enter(context, name, source)


@step('an operator enters model "{name:Text}" trusting the root "{root:Text}"')
def operator_enters_with_root(context: Any, name: str, root: str) -> None:
    enter(context, name, elsewhere(context, name), trust_policy={"ca_roots": [root]})


@step('an operator enters model "{name:Text}" of file "{file:Text}"')
def operator_enters_file(context: Any, name: str, file: str) -> None:
    enter(context, name, f"file:{file}")


@step('an operator enters model "{name:Text}" of file "{file:Text}", {claims}')
def operator_enters_file_with(context: Any, name: str, file: str, claims: str) -> None:
    fields: dict[str, Any] = {}
    for words in claims.split(", "):
        fields.update(context.models.claim(file, words))
    enter(context, name, f"file:{file}", **fields)


def path(context: Any, name: str) -> str:
    return f"{PATH}/{context.world.id('model', name)}"


@step('an operator reads model "{name:Text}"')
def operator_reads(context: Any, name: str) -> None:
    context.world.send("GET", path(context, name))


@step('an operator deletes model "{name:Text}"')
def operator_deletes(context: Any, name: str) -> None:
    context.world.send("DELETE", path(context, name))


@when("an operator lists models")
def operator_lists(context: Any) -> None:
    context.world.send("GET", PATH)


@when("an operator lists {state:Word} models")
def operator_lists_state(context: Any, state: str) -> None:
    context.world.send("GET", PATH, params={"state": state})


@then("the answer leads to the entry")
def leads_to_entry(context: Any) -> None:
    answer = context.world.answer
    equal(answer.status_code, 201, "the status")
    equal(context.world.look(answer.headers["Location"]), answer.json(), "what is at Location")


@then("the entry shows")
def entry_shows(context: Any) -> None:
    compare(context, context.world.answer.json())


@then('model "{name:Text}" shows')
def model_shows(context: Any, name: str) -> None:
    compare(context, settled(context, name))


def compare(context: Any, entry: dict[str, Any]) -> None:
    shown = {**entry, **{f"verification.{key}": value for key, value in entry["verification"].items()}}
    shown["tags"] = " ".join(entry["tags"])
    shown["signatures"] = " ".join(f"{s['signer']}:{'yes' if s['verified'] else 'no'}" for s in entry["signatures"])
    wanted = {row["fact"]: row["value"] for row in context.table}
    equal({fact: str(shown.get(fact)) for fact in wanted}, wanted, "the entry")


def settled(context: Any, name: str) -> dict[str, Any]:
    """The entry, once no check runs."""
    seen: list[dict[str, Any]] = []

    def over() -> bool:
        seen.append(context.world.look(path(context, name)))
        return bool(seen[-1]["verification"]["status"] != "running")

    context.world.until(over, f"the check of {name} is over")
    return seen[-1]


@then('there is no model "{name:Text}"')
def no_such_model(context: Any, name: str) -> None:
    answer = context.world.door(context.world.record).get(path(context, name))
    equal((answer.status_code, answer.json()["code"]), (404, "NOT_FOUND"), "what is known of the model")


@then('it names model "{name:Text}"')
def names_model(context: Any, name: str) -> None:
    equal(refusal(context.world)["details"]["model_id"], context.world.id("model", name), "the model")


@then("the list of models begins with {names:Names}")
def models_begin_with(context: Any, names: list[str]) -> None:
    equal(context.world.answer.status_code, 200, "the status")
    found = [item["id"] for item in context.world.answer.json()["items"][: len(names)]]
    equal(found, [context.world.id("model", name) for name in names], "the list")


@then('the list of models is without "{name:Text}"')
def models_are_without(context: Any, name: str) -> None:
    found = [item["id"] for item in context.world.answer.json()["items"]]
    assert context.world.id("model", name) not in found, f"{name} is in the list"


@then("pages of {size:d} show the models {names:Names}, page by page")
def pages_show_models(context: Any, size: int, names: list[str]) -> None:
    cursor, pages = None, []
    while cursor is not None or not pages:
        page = context.world.http.get(PATH, params={"limit": size, "cursor": cursor}).json()
        pages.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
    ids = [context.world.id("model", name) for name in names]
    equal(pages, [ids[at : at + size] for at in range(0, len(ids), size)], "the pages")


# -- checks ----------------------------------------------------------------------------------------------------
@step('an operator has model "{name:Text}" checked')
@step('an operator has model "{name:Text}" checked again')
def operator_verifies(context: Any, name: str) -> None:
    context.world.send("POST", f"{path(context, name)}/verify")


@step('model "{name:Text}" has been checked')
def has_been_checked(context: Any, name: str) -> None:
    operator_verifies(context, name)
    settled(context, name)


@then("a check has begun")
def check_has_begun(context: Any) -> None:
    equal((context.world.answer.status_code, context.world.answer.json()), (202, {"status": "started"}), "the answer")


@given("reading a model takes long")
def reading_takes_long(context: Any) -> None:
    daemon = context.world.app.daemon
    whole, gate = daemon.proofs.measure, asyncio.Event()
    context.readings = 0

    async def measure(*arguments: Any, **options: Any) -> Any:
        context.readings += 1
        await gate.wait()
        return await whole(*arguments, **options)

    daemon.proofs.measure = measure


@then("the model was read {count:d} time in all")
def model_was_read(context: Any, count: int) -> None:
    context.world.until(lambda: context.readings >= count, "a thread has found the model")
    equal(context.readings, count, "how often it was read")


@then('model "{name:Text}" is being checked')
def is_being_checked(context: Any, name: str) -> None:
    equal(context.world.look(path(context, name))["verification"], {"status": "running"}, "the verification")


# -- retirement ------------------------------------------------------------------------------------------------
@step('an operator retires model "{name:Text}"')
@step('an operator retires model "{name:Text}" again')
def operator_retires(context: Any, name: str) -> None:
    context.world.send("POST", f"{path(context, name)}/state", json={"state": "Retired"})


@step('an operator retires model "{name:Text}" within {duration:Duration}')
def operator_retires_within(context: Any, name: str, duration: float) -> None:
    body = {"state": "Retired", "deadline_ms": round(duration * 1000)}
    context.world.send("POST", f"{path(context, name)}/state", json=body)


@step('an operator brings model "{name:Text}" back')
def operator_brings_back(context: Any, name: str) -> None:
    context.world.send("POST", f"{path(context, name)}/state", json={"state": "Active"})


@given('pool "{pool:Text}" serves a model that has proven itself')
def pool_serves_proven(context: Any, pool: str) -> None:
    folder_of_models(context)
    may_sign(context, "acme")
    pool_serves_file(context, pool, "qwen.gguf")
    operator_enters_file_with(context, "qwen", "qwen.gguf", 'signed by "acme", with its bill')
    has_been_checked(context, "qwen")


# -- tasks -----------------------------------------------------------------------------------------------------
@step("{task:Task} arrives under {mode:Word} trust")
def task_arrives_under(context: Any, task: tuple[str, str], mode: str) -> None:
    context.world.submit(*task, Wanted(), headers={"X-Trust-Policy": mode})
