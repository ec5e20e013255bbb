"""Streams: readers, what they saw and in what order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from behave import step, then, when

from features.readers import Reader, line
from features.vocabulary import equal, name


@step('"{reader:Text}" reads {ref:Ref}')
def reader_reads(context: Any, reader: str, ref: str) -> None:
    context.world.follow(reader, name(context.world, ref))


@step("somebody reads {ref:Ref}")
def somebody_reads(context: Any, ref: str) -> None:
    context.world.follow("somebody", name(context.world, ref))


@step("{ref:Ref} has been read to the end")
def story_is_read(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    assert story.last is not None, "the stream has no terminal event"


@when("somebody reads {ref:Ref} with Last-Event-ID {value}")
def somebody_resumes(context: Any, ref: str, value: str) -> None:
    context.world.follow("somebody", name(context.world, ref), last_event_id=value)


@step("somebody reads {ref:Ref} after event {value:d}")
def somebody_reads_after(context: Any, ref: str, value: int) -> None:
    context.world.follow("somebody", name(context.world, ref), after=value)


@when("somebody reads {ref:Ref} after event {after:d} with Last-Event-ID {value}")
def somebody_reads_both_ways(context: Any, ref: str, after: int, value: str) -> None:
    context.world.follow("somebody", name(context.world, ref), after=after, last_event_id=value)


@when("somebody reads {ref:Ref} after its last event")
def somebody_knows_it_all(context: Any, ref: str) -> None:
    last = context.world.status(name(context.world, ref))["last_event_id"]
    context.world.follow("somebody", name(context.world, ref), last_event_id=last)


@when("somebody reads a task nobody sent")
def somebody_reads_nothing(context: Any) -> None:
    context.world.send("GET", f"/v1/tasks/{context.world.id('task', 'unsent')}/stream")


@step('"{reader:Text}" leaves')
def reader_leaves(context: Any, reader: str) -> None:
    world = context.world
    left = world.app.call(lambda: world.app.daemon.streams.open_cursors) - 1
    world.reader(reader).leave()
    world.until(lambda: world.app.call(lambda: world.app.daemon.streams.open_cursors) == left, f"{reader} left")


@then("{reader:Reader} has seen {count:d} {event:Word} {noun:Noun}")
def reader_has_seen(context: Any, reader: str, count: int, event: str, noun: str) -> None:
    found = context.world.reader(reader)
    found.until(lambda r: len(r.named(event)) >= count)
    equal(len(found.named(event)), count, f"{event} events seen")


@then("{reader:Reader} sees events {first:d} to {last:d} and no others")
def reader_sees_events(context: Any, reader: str, first: int, last: int) -> None:
    found = context.world.reader(reader)
    found.rest()
    equal(found.ids, list(range(first, last + 1)), "the ids")


@then("{reader:Reader} sees to the end {names}")
def reader_sees_names(context: Any, reader: str, names: str) -> None:
    found = context.world.reader(reader)
    found.rest()
    equal(" ".join(event.name for event in found.seen), names, "the events")


@then("{reader:Reader} sees {count:Count} {event:Word} events to the end")
def reader_counts_to_the_end(context: Any, reader: str, count: int, event: str) -> None:
    found = context.world.reader(reader)
    found.rest()
    equal(len(found.named(event)), count, f"{event} events")


@then("the stream of {ref:Ref} reads")
def stream_reads(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    equal("\n".join(map(line, story.seen)), context.text, "the stream")


@then("{reader:Reader} has read")
def reader_has_read(context: Any, reader: str) -> None:
    found = context.world.reader(reader)
    wanted = context.text.split("\n")
    found.until(lambda r: len(r.seen) >= len(wanted))
    equal([line(event) for event in found.seen], wanted, "what was read")


@then("the bytes of {ref:Ref} are")
def bytes_are(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    equal(story.stream.raw.decode(), context.text + "\n\n", "the bytes")


@then("the body begins with {text}")
def body_begins(context: Any, text: str) -> None:
    raw = context.world.story(context.world.last).stream.raw
    assert raw.startswith(text.encode() + b"\n\n"), f"the body begins with {raw[:40]!r}"
    equal(raw.count(b"retry:"), 1, "how often the reconnect delay is told")


@then("{first:Reader} and {second:Reader} got the same log, byte for byte")
def same_bytes(context: Any, first: str, second: str) -> None:
    logs = []
    for each in (first, second):
        reader = context.world.reader(each)
        reader.rest()
        logs.append(b"".join(event.raw for event in reader.seen if event.id is not None))
    assert logs[0], "they got nothing"
    equal(logs[0], logs[1], "the logs")


@then("a comment breaks the silence of {reader:Reader}")
def comment_breaks_silence(context: Any, reader: str) -> None:
    found = context.world.reader(reader)
    context.world.cancel(found.task)
    found.rest()
    equal(found.stream.raw.count(b": keep-alive\n\n"), 1, "comments")


@then("the text of {ref:Ref} is")
def text_is(context: Any, ref: str) -> None:
    equal(context.world.story(name(context.world, ref)).text, context.text, "the text")


@then("no event of {ref:Ref} is forged")
def nothing_is_forged(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    said = len(context.world.engines("home")[0].says)
    equal([event.name for event in story.seen if event.id], ["started", *["token"] * said, "end"], "the events")


@then("the text of {ref:Ref} is all its tokens in a row")
def text_is_all_tokens(context: Any, ref: str) -> None:
    story = context.world.story(name(context.world, ref))
    equal([event.data["i"] for event in story.named("token")], list(range(len(story.named("token")))), "the counts")
    equal(story.text, context.world.transcript(name(context.world, ref))["content"]["text"], "the text")


@then("the engine's tokens are {count:d}, in {frames:d} token {noun:Noun}")
def tokens_and_frames(context: Any, count: int, frames: int, noun: str) -> None:
    story = context.world.story(context.world.last)
    assert story.last is not None, "the stream has no terminal event"
    equal((story.last.data["tokens_out"], len(story.named("token"))), (count, frames), "tokens and events")


@then("the started event of {ref:Ref} repeats its admission")
def started_repeats_admission(context: Any, ref: str) -> None:
    sent = context.world.task(name(context.world, ref))
    promised = sent.answer.json()
    seen = context.world.story(name(context.world, ref)).seen[0]
    equal(seen.data, {key: promised[key] for key in ("queue_position", "predicted_start_ms")}, "the started event")


@then("{reader:Reader} was told that {count:d} {noun:Noun} {verb:Word}")
def reader_was_told_of_queue(context: Any, reader: str, count: int, noun: str, verb: str) -> None:
    equal(_latest(context, reader)["queue_depth"], count, "queue_depth")


@then("{reader:Reader} was told of a start in {milliseconds:d} ms")
def reader_was_told_of_start(context: Any, reader: str, milliseconds: int) -> None:
    equal(_latest(context, reader)["predicted_start_ms"], milliseconds, "predicted_start_ms")


@then("its chances of being on time went from {first} to {last}")
def chances_went(context: Any, first: str, last: str) -> None:
    found = context.world.reader("somebody")
    found.until(lambda r: len(r.named("metrics")) >= 4)
    told = [event.data["on_time_probability"] for event in found.named("metrics")]
    equal((str(told[0]), str(told[-1])), (first, last), "first and last chance")
    assert all(later <= earlier for earlier, later in pairwise(told)), f"the chances rose in between: {told}"


def _latest(context: Any, reader: str) -> Any:
    found = context.world.reader(reader)
    found.until(lambda r: bool(r.named("metrics")))
    return found.named("metrics")[-1].data


@then("{reader:Reader} is cut off before the end")
def reader_is_cut(context: Any, reader: str) -> None:
    found: Reader = context.world.reader(reader)
    found.rest()
    assert found.last is None, "it saw the terminal event"
    assert found.seen, "it saw nothing at all"


@step('"{reader:Text}" reads {ref:Ref} and takes nothing more')
def reader_stalls(context: Any, reader: str, ref: str) -> None:
    context.world.follow_slowly(reader, name(context.world, ref))
