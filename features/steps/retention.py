"""How long transcripts stay, and what keeps them."""

from __future__ import annotations

from typing import Any

from behave import given, step, then

from features.vocabulary import equal, name, refusal
from features.wishes import Wanted

SIZE = 2_000  # bytes of a transcript of these scenarios, and not half as many more


def _id(context: Any, ref: str) -> str:
    found: str = context.world.ids["transcript", name(context.world, ref)]
    return found


@given("tasks and sessions are kept for {short:Duration}, their transcripts for {long:Duration}")
def kept_for(context: Any, short: float, long: float) -> None:
    plan = context.world.plan
    plan.section("retention", {"tasks_ms": int(short * 1000), "transcripts_ms": int(long * 1000), "sweep_ms": 10_000})
    plan.section("sessions", {"ttl_ms": int(short * 1000)})


@given("tasks are kept for {duration:Duration}")
def tasks_kept_for(context: Any, duration: float) -> None:
    context.world.plan.section("retention", {"tasks_ms": int(duration * 1000)})


@given("transcripts may have the bytes of {count:d}")
def transcripts_may_have(context: Any, count: int) -> None:
    context.world.plan.section("retention", {"transcripts_bytes": count * SIZE + SIZE // 2})


@given("transcripts may have {count:d} bytes from the next start on")
def transcripts_will_have(context: Any, count: int) -> None:
    context.world.plan.renew("retention", {"transcripts_bytes": count})


@step("{task:Task} has left its transcript")
def task_has_left(context: Any, task: tuple[str, str]) -> None:
    world = context.world
    world.submit(*task, Wanted())
    world.ids["transcript", world.last] = world.status(world.last)["transcript_id"]
    world.settle(1)
    outbox = world.app.daemon.artifacts.outbox
    world.until(lambda: not len(outbox), "a thread has stored it")  # what is not stored keeps its task


@step("{names:Names} have left their transcripts")
def tasks_have_left(context: Any, names: list[str]) -> None:
    """One after the other."""
    for each in names:
        task_has_left(context, (each, ""))


@step("somebody reads the transcript of {ref:Ref}")
def transcript_is_read(context: Any, ref: str) -> None:
    context.world.send("GET", f"/v1/artifacts/{_id(context, ref)}")


@step("somebody stores the transcript of {ref:Ref}")
def transcript_is_stored(context: Any, ref: str) -> None:
    transcript_is_read(context, ref)
    what_was_read_is_stored(context)


@step("somebody stores what was read")
def what_was_read_is_stored(context: Any) -> None:
    read = context.world.answer.json()
    again = {field: read[field] for field in ("kind", "content", "tags", "metadata")}
    stored = context.world.send("POST", "/v1/artifacts", json=again)
    equal(stored.json()["id"], read["id"], "the id of the same content")


@step("somebody stores a plan that comes from the transcript of {ref:Ref}")
def child_is_stored(context: Any, ref: str) -> None:
    plan = {"kind": "plan", "content": "Go on from here.", "parent": _id(context, ref)}
    equal(context.world.send("POST", "/v1/artifacts", json=plan).status_code, 201, "the status")


@then("the transcript of {ref:Ref} can be read")
def transcript_can_be_read(context: Any, ref: str) -> None:
    found = context.world.look(f"/v1/artifacts/{_id(context, ref)}")
    equal((found["id"], found["kind"]), (_id(context, ref), "trace"), "the transcript")


@then("the transcript of {ref:Ref} is gone")
def transcript_is_gone(context: Any, ref: str) -> None:
    world = context.world
    world.until(lambda: world.http.get(f"/v1/artifacts/{_id(context, ref)}").status_code == 404, "it is dropped")
    transcript_is_read(context, ref)
    equal(refusal(context.world)["code"], "NOT_FOUND", "the code")
    known = [item["id"] for item in context.world.look("/v1/artifacts")["items"]]
    assert _id(context, ref) not in known, "it is listed"
