"""Models that come into memory when somebody wants them, and go when another one needs their room."""

from __future__ import annotations

from typing import Any

from behave import given, step, then

from features.vocabulary import equal, name
from features.wishes import Wanted

SIZE, ROOM = 1000, 1500  # of one model, and of the memory: two do not fit


@given("models {names:Names} are loaded on demand, and two do not fit")
def models_on_demand(context: Any, names: list[str]) -> None:
    for pool in names:
        context.world.plan.pool(pool, load="on_demand", min_resident_ms=0)
        _size(context, pool)
        context.world.plan.mock(pool, slots=1, load_ms=4000)
    context.world.plan.section("models", {"memory_bytes": ROOM, "roots": ["/srv/models"]})


def _size(context: Any, pool: str) -> None:
    for replica in context.world.plan.pool(pool)["replicas"]:
        replica["memory_bytes"] = SIZE


@given("models {names:Names} are always loaded, and two do not fit")
def models_always(context: Any, names: list[str]) -> None:
    for pool in names:
        context.world.plan.pool(pool)
        _size(context, pool)
    context.world.plan.section("models", {"memory_bytes": ROOM})


@given('model "{pool:Text}" is loaded on demand')
def model_on_demand(context: Any, pool: str) -> None:
    context.world.plan.pool(pool, load="on_demand")
    context.world.plan.mock(pool, load_ms=4000)


@given('"{pool:Text}" stays for {duration:Duration} at least')
def stays_at_least(context: Any, pool: str, duration: float) -> None:
    context.world.plan.pool(pool, min_resident_ms=round(duration * 1000))


@given('"{pool:Text}" goes by itself after {duration:Duration} without work')
def goes_by_itself(context: Any, pool: str, duration: float) -> None:
    context.world.plan.pool(pool, idle_unload_ms=round(duration * 1000))


@given('"{pool:Text}" has been loaded')
def has_been_loaded(context: Any, pool: str) -> None:
    _submit(context, f"that loaded {pool}", pool)
    context.world.settle(5)
    equal(_resident(context, pool), True, f"whether {pool} is in memory")


@given('"{hot:Text}" has work, and "next" has waited for "{cold:Text}" for {duration:Duration}')
def has_waited(context: Any, hot: str, cold: str, duration: float) -> None:
    """One task of the hot model runs and is held back, another waits for its turn."""
    has_been_loaded(context, hot)
    context.world.drive(hot, lambda engine: engine.hold())
    for task, pool in (("running", hot), ("queued", hot), ("next", cold)):
        _submit(context, task, pool)
    context.world.settle(duration)


def _submit(context: Any, task: str, pool: str) -> None:
    context.world.submit(task, "", Wanted({"model_ref": pool, "on_disconnect": "continue"}))


@step('"{pool:Text}" is in memory')
def is_in_memory(context: Any, pool: str) -> None:
    equal(_resident(context, pool), True, f"whether {pool} is in memory")


@step('"{pool:Text}" is not in memory')
def is_not_in_memory(context: Any, pool: str) -> None:
    equal(_resident(context, pool), False, f"whether {pool} is in memory")


def _resident(context: Any, pool: str) -> bool:
    found: bool = context.world.look(f"/v1/pools/{pool}/health")["resident"]
    return found


@then('{ref:Ref} waits for "{what:Text}"')
def waits_for_words(context: Any, ref: str, what: str) -> None:
    equal(context.world.status(name(context.world, ref)).get("waiting_for"), what, "what it waits for")


@then("{ref:Ref} is to start in {milliseconds:d} ms")
def starts_in(context: Any, ref: str, milliseconds: int) -> None:
    equal(context.world.status(name(context.world, ref)).get("predicted_start_ms"), milliseconds, "the predicted start")


@then("the list of pools shows")
def pools_show(context: Any) -> None:
    pools = {pool["id"]: pool for pool in context.world.look("/v1/pools")["items"]}
    same = {pool["id"]: pool for pool in context.world.look("/v1/capabilities")["pools"]}
    equal(same, pools, "the pools of the capabilities")
    found = {row["pool"]: {k: str(pools[row["pool"]].get(k)) for k in row.headings[1:]} for row in context.table}
    equal(found, {row["pool"]: {k: row[k] for k in row.headings[1:]} for row in context.table}, "the pools")
