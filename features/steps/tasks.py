"""Tasks: sending them, what admission says, where they stand and how they end."""

from __future__ import annotations

from typing import Any

from behave import step, then, when

from features.vocabulary import envelope, equal, name
from features.wishes import Wanted

# The ways a request may be wrong below its fields.
BODIES = {
    "that is not JSON": (b"{", "application/json"),
    "that is a form": (b"task_id=1", "application/x-www-form-urlencoded"),
    "nested 100 levels deep": (b"[" * 100 + b"]" * 100, "application/json"),
    "in Latin-1": (b"{}", "application/json; charset=latin-1"),
}


@step("{task:Task} arrives")
def task_arrives(context: Any, task: tuple[str, str]) -> None:
    context.world.submit(*task, Wanted())


@step("{task:Task} arrives, {wanted:Wishes}")
def task_arrives_with_wishes(context: Any, task: tuple[str, str], wanted: Wanted) -> None:
    context.world.submit(*task, wanted)


@step("{kind:Word} tasks {names:Names} arrive")
def tasks_arrive(context: Any, kind: str, names: list[str]) -> None:
    for each in names:
        context.world.submit(each, kind, Wanted())
        equal(context.world.answer.status_code, 202, f"the answer to {each!r}")


@step("{ref:Ref} is sent again")
def task_is_sent_again(context: Any, ref: str) -> None:
    context.world.resend(name(context.world, ref), Wanted())


@step("{ref:Ref} is sent again, {wanted:Wishes}")
def task_is_sent_again_changed(context: Any, ref: str, wanted: Wanted) -> None:
    context.world.resend(name(context.world, ref), wanted)


@when("{ref:Ref} is sent again with its fields in another order")
def task_is_sent_again_reordered(context: Any, ref: str) -> None:
    sent = context.world.task(name(context.world, ref))
    sent.answer = context.world.send("POST", "/v1/tasks", json=dict(reversed(sent.body.items())))


@when("a task arrives with a body {kind}")
def task_arrives_malformed(context: Any, kind: str) -> None:
    body, media_type = BODIES[kind]
    context.world.send("POST", "/v1/tasks", data=body, headers={"Content-Type": media_type})


@step("somebody cancels {ref:Ref}")
def task_is_canceled(context: Any, ref: str) -> None:
    context.world.cancel(name(context.world, ref))


@when("somebody looks at the list of tasks")
def tasks_are_listed(context: Any) -> None:
    context.world.send("GET", "/v1/tasks")


@when("somebody lists {state:State} tasks")
def tasks_in_state_are_listed(context: Any, state: str) -> None:
    context.world.send("GET", "/v1/tasks", params={"state": state})


@when('somebody lists the tasks of session "{session:Text}"')
def tasks_of_session_are_listed(context: Any, session: str) -> None:
    context.world.send("GET", "/v1/tasks", params={"session_id": context.world.id("session", session)})


@when('somebody looks for the task "{task:Text}"')
def task_is_looked_for(context: Any, task: str) -> None:
    known = context.world.tasks.get(task)
    context.world.send("GET", f"/v1/tasks/{known.id if known else context.world.id('task', task)}")


# -- admission -------------------------------------------------------------------------------------------------
def admission(context: Any, ref: str) -> Any:
    answer = context.world.task(name(context.world, ref)).answer
    assert answer.status_code == 202, f"it was not admitted: {answer.status_code} {answer.text}"
    return answer.json()


@then("{ref:Ref} is admitted")
def task_is_admitted(context: Any, ref: str) -> None:
    equal(admission(context, ref)["task_id"], context.world.task(name(context.world, ref)).id, "the id of the answer")


@then("{ref:Ref} is admitted at position {position:d}, to start in {milliseconds:d} ms")
def task_is_admitted_at(context: Any, ref: str, position: int, milliseconds: int) -> None:
    given = admission(context, ref)
    equal((given["queue_position"], given["predicted_start_ms"]), (position, milliseconds), "place and start")


@then("the next one should wait {milliseconds:d} ms")
def next_one_should_wait(context: Any, milliseconds: int) -> None:
    equal(admission(context, "")["backoff_ms"], milliseconds, "backoff_ms")


@then("it is the first answer again")
def answer_is_repeated(context: Any) -> None:
    equal(context.world.answer.headers.get("X-Idempotent-Replay"), "true", "X-Idempotent-Replay")
    equal(context.world.answer.json()["task_id"], context.world.task(context.world.last).id, "the task of the answer")


@then("it is a first answer")
def answer_is_new(context: Any) -> None:
    equal(context.world.answer.status_code, 202, "the status")
    equal(context.world.answer.headers.get("X-Idempotent-Replay"), None, "X-Idempotent-Replay")


@then("the answer leads to the task")
def answer_leads_to_the_task(context: Any) -> None:
    location = context.world.answer.headers["Location"]
    equal(context.world.look(location)["task_id"], context.world.task(context.world.last).id, "what is at Location")


# -- where a task stands ---------------------------------------------------------------------------------------
@then("{ref:Ref} is {state:State}")
def task_is(context: Any, ref: str, state: str) -> None:
    equal(context.world.status(name(context.world, ref))["state"], state, "the state")


@then("{names:Names} are {state:State}")
def tasks_are(context: Any, names: list[str], state: str) -> None:
    found = {each: context.world.status(each)["state"] for each in names}
    equal(found, dict.fromkeys(names, state), "the states")


@then("{ref:Ref} is at position {position:d}")
def task_is_at(context: Any, ref: str, position: int) -> None:
    equal(context.world.status(name(context.world, ref)).get("queue_position"), position, "the queue position")


@then("nobody can say when {ref:Ref} starts")
def no_predicted_start(context: Any, ref: str) -> None:
    equal(context.world.status(name(context.world, ref)).get("predicted_start_ms"), None, "the predicted start")


@then("{ref:Ref} waits for a {what:Word}")
def task_waits_for(context: Any, ref: str, what: str) -> None:
    equal(context.world.status(name(context.world, ref)).get("waiting_for"), what, "what it waits for")


@then("{ref:Ref} has {field:Word} {value:Word}")
def task_has(context: Any, ref: str, field: str, value: str) -> None:
    equal(str(context.world.status(name(context.world, ref)).get(field)), value, field)


@then("its status tells")
def status_tells(context: Any) -> None:
    told = context.world.status(context.world.last)
    equal({key: str(told.get(key)) for key in context.table.headings}, dict(context.table[0].items()), "its status")


@then("{ref:Ref} started {milliseconds:d} ms after it arrived")
def task_started_after(context: Any, ref: str, milliseconds: int) -> None:
    status = context.world.status(name(context.world, ref))
    equal(status["started_at_ms"] - status["created_at_ms"], milliseconds, "the wait")


@then("{names:Names} started in this order")
def tasks_started_in_order(context: Any, names: list[str]) -> None:
    started = {each: context.world.status(each)["started_at_ms"] for each in names}
    equal(sorted(started, key=started.__getitem__), names, "the order of their starts")
    equal(len(set(started.values())), len(names), "starts at different moments")


@then('{ref:Ref} is in pool "{pool:Text}"')
def task_is_in_pool(context: Any, ref: str, pool: str) -> None:
    equal(context.world.status(name(context.world, ref))["pool_id"], pool, "its pool")


@then('{ref:Ref} ran on replica "{replica:Text}"')
def task_ran_on(context: Any, ref: str, replica: str) -> None:
    equal(context.world.status(name(context.world, ref))["replica_id"], replica, "its replica")


@then("its placement shows")
def placement_shows(context: Any) -> None:
    placement = context.world.status(context.world.last)["placement"]
    shown = {key: "; ".join(v) if isinstance(v, list) else str(v).lower() for key, v in placement.items()}
    equal({row["fact"]: shown[row["fact"]] for row in context.table}, dict(_rows(context)), "the placement")


def _rows(context: Any) -> list[tuple[str, str]]:
    return [(row["fact"], row["value"]) for row in context.table]


@then("{ref:Ref} drew a seed of its own")
def task_drew_a_seed(context: Any, ref: str) -> None:
    seed = context.world.status(name(context.world, ref))["seed"]
    assert 0 <= seed <= 4_294_967_294, f"{seed} is not a seed every engine takes"
    equal(context.world.transcript(name(context.world, ref))["metadata"]["seed"], seed, "the seed of the transcript")


@then("there is no trace of {ref:Ref}")
def task_is_unknown(context: Any, ref: str) -> None:
    door = context.world.door(context.world.record)
    answer = door.get(f"/v1/tasks/{context.world.task(name(context.world, ref)).id}")
    equal(
        (answer.status_code, envelope(context.world, answer)["code"]), (404, "NOT_FOUND"), "what is known of the task"
    )


# -- how it ends -----------------------------------------------------------------------------------------------
@then("{ref:Ref} ends with {reason:Word} after {count:Count} tokens")
def task_ends(context: Any, ref: str, reason: str, count: int) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "its stream has no terminal event"
    found = (story.last.name, story.last.data.get("finish_reason"), story.last.data.get("tokens_out"))
    equal(found, ("end", reason, count), "the terminal event")


@then("{ref:Ref} ends well")
def task_ends_well(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "its stream has no terminal event"
    equal((story.last.name, story.last.data.get("code")), ("end", None), "the terminal event")


@then("{ref:Ref} fails as {code:Code}")
def task_fails(context: Any, ref: str, code: str) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "its stream has no terminal event"
    equal((story.last.name, story.last.data.get("code")), ("error", code), "the terminal event")
    equal(context.world.status(name(context.world, ref))["error"]["code"], code, "the error of the status")


@then("{ref:Ref} fails as {code:Code} after {count:Count} tokens, {worth:Word} retrying")
def task_fails_after(context: Any, ref: str, code: str, count: int, worth: str) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "its stream has no terminal event"
    found = (story.last.data.get("code"), len(story.named("token")), story.last.data.get("retriable"))
    equal(found, (code, count, worth == "worth"), "the terminal event")


@then("the message of {ref:Ref} says {text}")
def message_says(context: Any, ref: str, text: str) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "its stream has no terminal event"
    assert text.strip('"') in story.last.data["message"], f"the message is {story.last.data['message']!r}"


@then("{first:Ref} and {second:Ref} wrote the same text")
def same_text(context: Any, first: str, second: str) -> None:
    texts = [context.world.story(name(context.world, each)).text for each in (first, second)]
    assert texts[0], "they wrote nothing"
    equal(texts[0], texts[1], "the texts")


@then("{ref:Ref} gives {count:d} {kind:Word} results")
def task_gives_results(context: Any, ref: str, count: int, kind: str) -> None:
    story = context.world.story(name(context.world, ref))
    field = {"embedding": "embedding", "ranking": "relevance_score"}[kind]
    equal(sorted(event.data["index"] for event in story.named("result")), list(range(count)), "the indexes")
    assert all(field in event.data for event in story.named("result")), f"a result without {field}"


@then("the results come best first")
def results_come_best_first(context: Any) -> None:
    scores = [event.data["relevance_score"] for event in context.world.story(context.world.last).named("result")]
    equal(scores, sorted(scores, reverse=True), "the scores")


@then("the cancel names the last event of {ref:Ref}")
def cancel_names_the_end(context: Any, ref: str) -> None:
    sent, story = context.world.task(name(context.world, ref)), context.world.story(name(context.world, ref))
    equal(sent.seals[-1], story.ids[-1], "the id the cancel named")


@then("both cancels of {ref:Ref} name the same event")
def cancels_agree(context: Any, ref: str) -> None:
    seals = context.world.task(name(context.world, ref)).seals
    equal((len(seals), len(set(seals))), (2, 1), "cancels and the ids they named")


# -- lists -----------------------------------------------------------------------------------------------------
@then("the list of tasks reads {names:Names}")
def list_reads(context: Any, names: list[str]) -> None:
    equal(context.world.answer.status_code, 200, "the status")
    known = {sent.id: each for each, sent in context.world.tasks.items()}
    equal([known.get(item["task_id"]) for item in context.world.answer.json()["items"]], names, "the list")


@then("the list begins with {ref:Ref}")
def list_begins_with(context: Any, ref: str) -> None:
    first = context.world.answer.json()["items"][0]["task_id"]
    equal(first, context.world.task(name(context.world, ref)).id, "the first task of the list")


@then("pages of {size:d} show {names:Names}, page by page")
def pages_show(context: Any, size: int, names: list[str]) -> None:
    known, cursor, pages = {sent.id: each for each, sent in context.world.tasks.items()}, None, []
    while cursor is not None or not pages:
        page = context.world.http.get("/v1/tasks", params={"limit": size, "cursor": cursor}).json()
        pages.append([known[item["task_id"]] for item in page["items"]])
        cursor = page["next_cursor"]
    equal(pages, [names[at : at + size] for at in range(0, len(names), size)], "the pages")
