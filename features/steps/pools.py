"""Pools and their engines: how they are set up, how they fail, what operators see of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from behave import given, step, then, when

from features import engines
from features.vocabulary import equal
from features.wishes import Wanted
from orchestratord.domain.kv import KvLayout
from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import mock_pool


@given('pool "{pool:Text}" runs {slots:d} {noun:Noun} at a time')
def pool_runs(context: Any, pool: str, slots: int, noun: str) -> None:
    context.world.plan.mock(pool, slots=slots)


@given('pool "{pool:Text}" gives up on nothing')
def pool_has_no_watchdogs(context: Any, pool: str) -> None:
    context.world.plan.pool(pool, watchdogs={"first_token_ms": 0, "idle_ms": 0})


@given('pool "{pool:Text}" runs 1 task at a time and queues {capacity:d}')
def pool_runs_and_queues(context: Any, pool: str, capacity: int) -> None:
    context.world.plan.queue(pool, capacity=capacity)
    context.world.plan.mock(pool, slots=1)


@given('"{pool:Text}" follows policy {policy}')
def pool_follows_policy(context: Any, pool: str, policy: str) -> None:
    context.world.plan.queue(pool, full_policy=policy)


@given('"{pool:Text}" lets {count:d} batch {noun:Noun} wait')
def pool_bounds_batch(context: Any, pool: str, count: int, noun: str) -> None:
    context.world.plan.queue(pool, batch_capacity=count)


@given('batch tasks of "{pool:Text}" grow old after {duration:Duration}')
def batch_grows_old(context: Any, pool: str, duration: float) -> None:
    context.world.plan.queue(pool, batch_age_ms=round(duration * 1000))


@given('pool "{pool:Text}" has {count:d} replicas with one slot each')
def pool_has_replicas(context: Any, pool: str, count: int) -> None:
    context.world.plan.pool(pool, replicas=mock_pool(pool, slots=1, replicas=count)["replicas"])


@given('pools "{first:Text}" and "{second:Text}" serve model "{model:Text}"')
def pools_serve(context: Any, first: str, second: str, model: str) -> None:
    for pool in (first, second):
        context.world.plan.pool(pool, model="file:shared.gguf", aliases=[model])


@given('pool "{pool:Text}" serves model "{model:Text}"')
def pool_serves(context: Any, pool: str, model: str) -> None:
    context.world.plan.pool(pool, aliases=[model])


@given('pool "{pool:Text}" is on engine {engine:Word}')
def pool_is_on_engine(context: Any, pool: str, engine: str) -> None:
    context.world.plan.pool(pool, engine=engine)


@given('pool "{pool:Text}" is on device "{mask:Text}"')
def pool_is_on_device(context: Any, pool: str, mask: str) -> None:
    for replica in context.world.plan.pool(pool)["replicas"]:
        replica["device_mask"] = mask


@given('a slot of "{pool:Text}" holds {tokens:d} tokens')
def slot_holds(context: Any, pool: str, tokens: int) -> None:
    context.world.plan.mock(pool, ctx=tokens)


@given('the engine of "{pool:Text}" takes {milliseconds:d} ms for a token')
def engine_takes_time(context: Any, pool: str, milliseconds: int) -> None:
    context.world.plan.mock(pool, token_ms=milliseconds)


@given('"{pool:Text}" gives up on an engine that is silent for {duration:Duration}')
def pool_watches_silence(context: Any, pool: str, duration: float) -> None:
    limit = round(duration * 1000)
    context.world.plan.pool(pool, watchdogs={"first_token_ms": limit, "idle_ms": limit})


@given('"{pool:Text}" lets no task run longer than {duration:Duration}')
def pool_watches_length(context: Any, pool: str, duration: float) -> None:
    context.world.plan.pool(pool, watchdogs={"wall_ms": round(duration * 1000)})


@given('the engine of "{pool:Text}" keeps {size:d} bytes for a token')
def engine_keeps_bytes(context: Any, pool: str, size: int) -> None:
    context.world.plan.preset(pool, lambda e: e.change(kv=KvLayout(size)))


@given('the engine of "{pool:Text}" keeps no prefixes')
def engine_keeps_no_prefixes(context: Any, pool: str) -> None:
    context.world.plan.preset(pool, lambda e: e.change(features=_without_prefixes(e)))


def _without_prefixes(engine: Any) -> tuple[str, ...]:
    return tuple(feature for feature in _props(engine).features if feature != "prefix_cache")


@given('the engine of "{pool:Text}" has no chat template')
def engine_has_no_template(context: Any, pool: str) -> None:
    context.world.plan.preset(pool, lambda e: e.change(chat_template=False))


@given('the engine of "{pool:Text}" never repeats itself')
def engine_never_repeats(context: Any, pool: str) -> None:
    context.world.plan.preset(pool, lambda e: e.change(exact_alone=False))


@given('the engine of "{pool:Text}" serves completions only')
def engine_serves_completions(context: Any, pool: str) -> None:
    context.world.plan.preset(pool, lambda e: e.change(workloads=frozenset({"completion"})))


def _props(engine: Any) -> Any:
    return replace(engine._props)


@given('the engine of "{pool:Text}" packs {count:d} tokens into one event')
def engine_bursts(context: Any, pool: str, count: int) -> None:
    context.world.plan.preset(pool, lambda e: setattr(e, "says", ("word " * count,)))


@given('the engine of "{pool:Text}" says')
def engine_says(context: Any, pool: str) -> None:
    says = tuple(row["token"].encode("latin-1", "backslashreplace").decode("unicode_escape") for row in context.table)
    context.world.plan.preset(pool, lambda e: setattr(e, "says", says))


@given('the engine of "{pool:Text}" writes {count:d} tokens of {size:d} KB')
def engine_writes_much(context: Any, pool: str, count: int, size: int) -> None:
    context.world.plan.preset(pool, lambda e: setattr(e, "says", ("x" * size * 1024,) * count))


# -- what engines do -------------------------------------------------------------------------------------------
@given('"{pool:Text}" is busy')
def pool_is_busy(context: Any, pool: str) -> None:
    context.world.occupy(pool)


@given('the engine of "{pool:Text}" holds its tokens back')
def engine_holds_back(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: e.hold())


@given('tasks {names:Names} of model "{model:Text}" run')
def tasks_run(context: Any, names: list[str], model: str) -> None:
    for name in names:
        context.world.submit(name, "", Wanted({"model_ref": model, "on_disconnect": "continue"}))


@step('the engine of "{pool:Text}" gives {count:d} {noun:Noun}')
def engine_gives(context: Any, pool: str, count: int, noun: str) -> None:
    context.world.drive(pool, lambda e: e.step(count))


@step('the engine of "{pool:Text}" is let go')
def engine_is_let_go(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: e.release_hold())


@given('the engine of "{pool:Text}" {fault} after {count:d} tokens')
def engine_fails_after(context: Any, pool: str, fault: str, count: int) -> None:
    context.world.drive(pool, lambda e: e.play(engines.fault(fault, count)))


@given('the engine of "{pool:Text}" {fault:Fault}')
def engine_fails(context: Any, pool: str, fault: str) -> None:
    context.world.drive(pool, lambda e: e.play(engines.fault(fault, 0)))


@step('the engine of "{pool:Text}" goes down')
def engine_goes_down(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: setattr(e, "down", True))
    context.world.settle(3)


@step('the engine of "{pool:Text}" comes back')
def engine_comes_back(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: setattr(e, "down", False))
    context.world.settle(60)


@given('the engine of "{pool:Text}" is still loading')
def engine_is_loading(context: Any, pool: str) -> None:
    context.world.plan.preset(pool, lambda e: setattr(e, "loading", "loading model"))


@step('the engine of "{pool:Text}" has loaded')
def engine_has_loaded(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: setattr(e, "loading", None))
    context.world.settle(2)


@step('the engine of "{pool:Text}" lets go of it')
def engine_lets_go(context: Any, pool: str) -> None:
    context.world.drive(pool, lambda e: e.release())
    context.world.settle(1)


@then('{count:Count} {noun:Noun} reached the engine of "{pool:Text}"')
def engine_was_asked(context: Any, count: int, noun: str, pool: str) -> None:
    equal(context.world.calls(pool), count, f"tasks that reached {pool}")


@then('the engine of "{pool:Text}" was told to stop {count:d} {noun:Noun}')
def engine_was_aborted(context: Any, pool: str, count: int, noun: str) -> None:
    aborted = sum(engine.aborted for engine in context.world.engines(pool))
    equal(aborted, count, "aborts")


# -- what operators see ----------------------------------------------------------------------------------------
@when("an operator looks at the pools")
def operator_lists_pools(context: Any) -> None:
    context.world.send("GET", "/v1/pools")


@when('an operator looks at pool "{pool:Text}"')
def operator_looks(context: Any, pool: str) -> None:
    context.world.send("GET", f"/v1/pools/{pool}/health")


@when("an operator looks at a pool of the list")
def operator_looks_at_some(context: Any) -> None:
    first = context.world.look("/v1/pools")["items"][0]
    context.world.send("GET", f"/v1/pools/{first['id']}/health")


@step('an operator drains pool "{pool:Text}"')
@step('an operator drains pool "{pool:Text}" again')
def operator_drains(context: Any, pool: str) -> None:
    operate(context, pool, "drain", {"deadline_ms": 60_000})


@step('an operator drains pool "{pool:Text}" within {duration:Duration}')
def operator_drains_within(context: Any, pool: str, duration: float) -> None:
    operate(context, pool, "drain", {"deadline_ms": round(duration * 1000)})


def operate(context: Any, pool: str, verb: str, body: dict[str, Any] | None = None) -> None:
    """Start an operation, and remember which one it was."""
    answer = context.world.send("POST", f"/v1/pools/{pool}/{verb}", json=body)
    context.operations = [*getattr(context, "operations", ()), answer.json().get("operation_id")]


@given("models may be loaded")
def models_may_be_loaded(context: Any) -> None:
    context.world.plan.section("models", {"roots": ["/srv/models"]})


@given('there is no memory for two models of "{pool:Text}"')
def no_memory_for_two(context: Any, pool: str) -> None:
    for replica in context.world.plan.pool(pool)["replicas"]:
        replica["memory_bytes"] = 1000
    context.world.plan.section("models", {"memory_bytes": 1500})


NEXT = "file:next.gguf"


@given('the next model of "{pool:Text}" is as good as the old one')
def next_is_good(context: Any, pool: str) -> None:
    context.world.plan.coming(pool, NEXT, lambda e: None)


@given('the next model of "{pool:Text}" cannot decode')
def next_cannot_decode(context: Any, pool: str) -> None:
    broken = MockScript(jobs=math.inf, die_after=1)
    context.world.plan.coming(pool, NEXT, lambda e: e.probed(lambda twin: twin.play(broken)))


@given('the next model of "{pool:Text}" never loads')
def next_never_loads(context: Any, pool: str) -> None:
    context.world.plan.coming(pool, NEXT, lambda e: setattr(e, "loading", "loading model"))


@given('the next model of "{pool:Text}" ponders over its probe')
def next_ponders(context: Any, pool: str) -> None:
    context.world.plan.coming(pool, NEXT, lambda e: e.probed(lambda twin: twin.hold()))


@given('the next model of "{pool:Text}" holds {tokens:d} tokens')
def next_holds(context: Any, pool: str, tokens: int) -> None:
    context.world.plan.coming(pool, NEXT, lambda e: e.change(ctx=tokens))


@step('an operator reloads pool "{pool:Text}"')
@step('an operator reloads pool "{pool:Text}" again')
def operator_reloads(context: Any, pool: str) -> None:
    operate(context, pool, "reload", {"new_model_ref": NEXT})


@step('an operator reloads pool "{pool:Text}" with "{ref:Text}"')
def operator_reloads_with(context: Any, pool: str, ref: str) -> None:
    operate(context, pool, "reload", {"new_model_ref": ref})


@step('an operator resumes pool "{pool:Text}"')
@step('an operator resumes pool "{pool:Text}" again')
def operator_resumes(context: Any, pool: str) -> None:
    operate(context, pool, "resume")


@then("both were the same operation")
def same_operation(context: Any) -> None:
    first, second = context.operations[-2:]
    equal(second, first, "the operation")


@then('it names the running operation of "{pool:Text}"')
def names_running(context: Any, pool: str) -> None:
    running = context.world.look(f"/v1/pools/{pool}/health")["operation"]["operation_id"]
    equal(context.world.answer.json()["details"]["operation_id"], running, "the operation")


@then("the pools are {names:Names}")
def pools_are(context: Any, names: list[str]) -> None:
    equal([pool["id"] for pool in context.world.answer.json()["items"]], names, "the pools")


@then("pages of {size:d} show the pools {names:Names}, page by page")
def pages_show_pools(context: Any, size: int, names: list[str]) -> None:
    cursor, pages = None, []
    while cursor is not None or not pages:
        page = context.world.http.get("/v1/pools", params={"limit": size, "cursor": cursor}).json()
        pages.append([pool["id"] for pool in page["items"]])
        cursor = page["next_cursor"]
    equal(pages, [names[at : at + size] for at in range(0, len(names), size)], "the pages")


@then("the list has the pool of the model")
def list_has_pool_of_model(context: Any) -> None:
    items = context.world.answer.json()["items"]
    ref = context.world.deployment.model_ref if context.world.deployment else "home"
    assert any(ref in (pool["model_ref"], pool["id"]) for pool in items), f"nothing serves {ref}: {items}"


@then("the pool shows")
def pool_shows(context: Any) -> None:
    shown = _flat(context.world.answer.json())
    equal({row["fact"]: str(shown.get(row["fact"])) for row in context.table}, _facts(context), "the pool")


@then('pool "{pool:Text}" shows')
def named_pool_shows(context: Any, pool: str) -> None:
    shown = _flat(context.world.look(f"/v1/pools/{pool}/health"))
    equal({row["fact"]: str(shown.get(row["fact"])) for row in context.table}, _facts(context), f"pool {pool}")


def _facts(context: Any) -> dict[str, str]:
    return {row["fact"]: row["value"] for row in context.table}


def _flat(health: dict[str, Any]) -> dict[str, Any]:
    """`queue.batch` and `replica.ready` beside the plain facts; yes and no for true and false."""
    flat = {
        **health,
        **{f"queue.{key}": value for key, value in health.get("queue", {}).items()},
        **{f"metrics.{key}": value for key, value in health.get("metrics", {}).items()},
        **{f"replica.{key}": value for key, value in (health.get("replicas") or [{}])[0].items()},
        **{f"operation.{key}": value for key, value in health.get("operation", {}).items()},
        **{f"operation.error.{key}": value for key, value in health.get("operation", {}).get("error", {}).items()},
        **{f"last_error.{key}": value for key, value in health.get("last_error", {}).items()},
    }
    return {
        key: {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        for key, value in flat.items()
    }


@given('"{pool:Text}" is pinned to {what:Word} "{value:Text}"')
def pool_is_pinned(context: Any, pool: str, what: str, value: str) -> None:
    context.world.plan.pool(pool, pins={what: value})


@given('there is a sampler profile "{profile:Text}"')
def profile_exists(context: Any, profile: str) -> None:
    context.world.plan.section("profiles", {profile: {"temperature": 0.1}})
