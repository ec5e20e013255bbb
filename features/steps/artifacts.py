"""Artifacts: storing, finding and reading them, and the transcripts tasks leave."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import uuid4

from behave import given, step, then, when

from features.vocabulary import equal, name
from features.wishes import PROMPT

PLAN = {"kind": "plan", "content": "First measure, then cut.", "tags": ["b", "a"]}


def _store(context: Any, label: str, **fields: Any) -> None:
    answer = context.world.send("POST", "/v1/artifacts", json={**PLAN, **fields})
    if answer.status_code == 201:
        context.world.ids["artifact", label] = answer.json()["id"]


def _id(context: Any, label: str) -> str:
    found: str = context.world.ids["artifact", label]
    return found


@step("somebody stores a plan")
def plan_is_stored(context: Any) -> None:
    _store(context, "it")


@step("somebody stores the same plan with its tags in another order")
def plan_is_stored_again(context: Any) -> None:
    _store(context, "again", tags=["a", "b", "a"])


@step('somebody stores "{content:Text}" tagged "{tag:Text}"')
def text_is_stored(context: Any, content: str, tag: str) -> None:
    _store(context, content, content=content, tags=[tag])


@step('somebody stores "{content:Text}" tagged with a word of its own')
def text_is_stored_under_own_tag(context: Any, content: str) -> None:
    context.world.ids["tag", "own"] = f"tag-{uuid4()}"
    _store(context, content, content=content, tags=[context.world.ids["tag", "own"]])


@when('somebody stores a "{kind:Text}"')
def other_kind_is_stored(context: Any, kind: str) -> None:
    _store(context, "it", kind=kind)


@when("somebody reads the artifact")
def artifact_is_read(context: Any) -> None:
    context.world.send("GET", f"/v1/artifacts/{_id(context, 'it')}")


@when("somebody reads the artifact, holding {what} of it")
def artifact_is_read_again(context: Any, what: str) -> None:
    mine, old = f'"{_id(context, "it")}"', f'"{"0" * 64}"'
    held = {"a copy": mine, "an old copy": old, "any copy": "*", "many copies": f"{old}, {old}, {old}, W/{mine}"}[what]
    context.world.send("GET", f"/v1/artifacts/{_id(context, 'it')}", headers={"If-None-Match": held})


@when("somebody lists artifacts")
def artifacts_are_listed(context: Any) -> None:
    context.world.send("GET", "/v1/artifacts")


@when('somebody lists artifacts tagged "{tag:Text}"')
def tagged_artifacts_are_listed(context: Any, tag: str) -> None:
    context.world.send("GET", "/v1/artifacts", params={"tag": tag})


@when("somebody lists artifacts with that tag")
def own_tag_is_listed(context: Any) -> None:
    context.world.send("GET", "/v1/artifacts", params={"tag": context.world.ids["tag", "own"]})


@given("the store of artifacts is full")
def store_is_full(context: Any) -> None:
    context.world.plan.break_store(OSError(28, "No space left on device"))


@given("the store of artifacts works")
def store_works(context: Any) -> None:
    context.world.plan.break_store(None)


@step("the store of artifacts breaks")
def store_breaks(context: Any) -> None:
    context.world.plan.break_store(OSError(5, "Input/output error"))


@step("the store of artifacts works again")
def store_works_again(context: Any) -> None:
    context.world.plan.break_store(None)
    context.world.settle(6)


@step("the stored bytes rot")
def bytes_rot(context: Any) -> None:
    context.world.plan.store.rotten.add(_id(context, "it"))


@given("transcripts are kept as {how:Word}")
def transcripts_are(context: Any, how: str) -> None:
    context.world.plan.section("artifacts", {"transcripts": how})


@then("it is stored under the hash of its canonical form")
def stored_under_hash(context: Any) -> None:
    stored = context.world.answer.json()
    form = '{"content":"First measure, then cut.","kind":"plan","metadata":{},"parent":null,"tags":["a","b"]}'
    digest = hashlib.sha256(form.encode()).hexdigest()
    equal((stored["id"], stored["digest"]), (digest, f"sha256:{digest}"), "id and digest")


@then("both have the same id and there is one artifact")
def stored_once(context: Any) -> None:
    equal(_id(context, "again"), _id(context, "it"), "the ids")
    equal(len(context.world.look("/v1/artifacts")["items"]), 1, "how many there are")


@then("both have the same id")
def same_id(context: Any) -> None:
    equal(_id(context, "again"), _id(context, "it"), "the ids")


@then("it is the plan, with its tags in order")
def is_the_plan(context: Any) -> None:
    found = context.world.answer.json()
    equal((found["kind"], found["content"], found["tags"]), ("plan", PLAN["content"], ["a", "b"]), "the artifact")


@then("nothing is sent again")
def nothing_is_sent(context: Any) -> None:
    equal((context.world.answer.status_code, context.world.answer.content), (304, b""), "status and body")
    equal(context.world.answer.headers["ETag"], f'"{_id(context, "it")}"', "ETag")


@then("the artifacts are {names:Names}")
def artifacts_are(context: Any, names: list[str]) -> None:
    known = {digest: label for (kind, label), digest in context.world.ids.items() if kind == "artifact"}
    equal([known.get(item["id"]) for item in context.world.answer.json()["items"]], names, "the list")


@then("pages of {size:d} show the artifacts {names:Names}, page by page")
def artifact_pages_show(context: Any, size: int, names: list[str]) -> None:
    known = {digest: label for (kind, label), digest in context.world.ids.items() if kind == "artifact"}
    cursor, pages = None, []
    while cursor is not None or not pages:
        page = context.world.http.get("/v1/artifacts", params={"limit": size, "cursor": cursor}).json()
        pages.append([known[item["id"]] for item in page["items"]])
        cursor = page["next_cursor"]
    equal(pages, [names[at : at + size] for at in range(0, len(names), size)], "the pages")


# -- transcripts -----------------------------------------------------------------------------------------------
@then("the transcript of {ref:Ref} tells every event of its stream")
def transcript_tells_all(context: Any, ref: str) -> None:
    task = name(context.world, ref)
    told = [
        (event["id"], event["event"], event["data"]) for event in context.world.transcript(task)["content"]["events"]
    ]
    seen = [(event.id, event.name, event.data) for event in context.world.story(task).seen if event.id is not None]
    equal(told, seen[: len(told)], "the events of the transcript")
    assert len(told) >= len(seen) - 1, f"{len(seen) - len(told)} events are missing"


@then("the transcript of {ref:Ref} has {count:d} tokens")
def transcript_has_tokens(context: Any, ref: str, count: int) -> None:
    content = context.world.transcript(name(context.world, ref))["content"]
    equal(sum(event["event"] == "token" for event in content["events"]), count, "tokens of the transcript")


@then("the transcript of {ref:Ref} can be found by task and by session")
def transcript_is_tagged(context: Any, ref: str) -> None:
    task = context.world.task(name(context.world, ref))
    tags = [f"session:{task.body['session_id']}", "sse", "stream", f"task:{task.id}"]
    equal(context.world.transcript(name(context.world, ref))["tags"], tags, "its tags")


@then("the transcript of {ref:Ref} says")
def transcript_says(context: Any, ref: str) -> None:
    metadata = context.world.transcript(name(context.world, ref))["metadata"]
    equal(
        {row["fact"]: str(metadata[row["fact"]]) for row in context.table},
        {row["fact"]: row["value"] for row in context.table},
        "the metadata",
    )


@then("the transcript of {ref:Ref} has the hash of the prompt and not the prompt")
def transcript_hides_prompt(context: Any, ref: str) -> None:
    found = context.world.transcript(name(context.world, ref))
    equal(found["metadata"]["prompt_sha256"], hashlib.sha256(PROMPT.encode()).hexdigest(), "the hash")
    said = found.pop("content")  # a model may well repeat the prompt
    equal(set(said), {"schema", "text", "events"}, "what the content is made of")
    assert PROMPT not in str(found), "the transcript has the prompt"


@then("the transcript of {ref:Ref} tells no text")
def transcript_tells_no_text(context: Any, ref: str) -> None:
    content = context.world.transcript(name(context.world, ref))["content"]
    equal((content["text"], content["events"]), ("", []), "text and events")


@then("{ref:Ref} left no transcript")
def no_transcript(context: Any, ref: str) -> None:
    equal(context.world.status(name(context.world, ref)).get("transcript_id"), None, "transcript_id")


@then("the transcript of {ref:Ref} is in the store")
def transcript_is_stored(context: Any, ref: str) -> None:
    wanted = context.world.status(name(context.world, ref))["transcript_id"]
    world = context.world
    world.until(
        lambda: wanted in world.app.call(lambda: set(world.plan.store._whole)), "the transcript is in the store"
    )
