"""The short way of a text into its log, held to the long one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.facts import Frames
from orchestratord.domain.hooks import Limits
from orchestratord.domain.lives import FLUSH_BYTES
from orchestratord.domain.pool import Lease
from tests.domain.world import World


def running(world: World, **fields: int) -> Lease:
    """A lease whose task has shown its first text."""
    world.admit(**fields)
    (lease,) = world.dispatch()
    assert world.core.inlet(lease).text("a", 1) is False, "the first text is more than a text"
    assert world.core.output(lease, ["a"], (), 1, world.now, world.wall_ms)
    assert world.core.inlet(lease).text("a", 1) is False, "and nobody may see it before it is durable"
    world.commit()
    assert world.core.output(lease, ["b"], (), 2, world.now, world.wall_ms)
    return lease


@given(st.lists(st.text(max_size=8), max_size=14), st.lists(st.booleans(), min_size=14, max_size=14))
def test_both_ways_lead_to_the_same_log(texts: list[str], short: list[bool]) -> None:
    """ORCH-2002: ids, indices and bytes do not tell how the engine's bytes came."""
    worlds = World(), World()
    for world in worlds:
        lease = running(world)
        for place, text in enumerate(texts):
            count = place + 3
            if world is worlds[0] and short[place]:
                assert world.core.inlet(lease).text(text, count)
            else:
                assert world.core.output(lease, [text], (), count, world.now, world.wall_ms)
    mine, theirs = (task for world in worlds for task in world.core.tasks.values())
    assert mine.log.raw(mine.log.offset_after(1)) == theirs.log.raw(theirs.log.offset_after(1))
    assert (mine.token_frames, mine.tokens_out) == (theirs.token_frames, theirs.tokens_out)
    assert mine.log.visible_id == theirs.log.visible_id == mine.log.last_id


def test_nothing_passes_the_seal() -> None:
    """OC-CTRL-2025: a canceled task takes no text by the short way either."""
    world = World()
    lease = running(world)
    world.cancel(lease.task)
    size = lease.task.log.size
    assert world.core.inlet(lease).text("late", 3) is False
    assert (lease.task.log.size, lease.task.tokens_out) == (size, 2)


def test_no_more_texts_than_tokens_were_asked_for() -> None:
    world = World()
    lease = running(world, max_tokens=3)
    assert world.core.inlet(lease).text("c", 3)
    assert world.core.inlet(lease).text("d", 3) is False
    assert world.core.output(lease, ["d"], (), 3, world.now, world.wall_ms) is False
    assert lease.task.failure is not None
    assert lease.task.token_frames == 3


def test_the_journal_is_told_in_time() -> None:
    """The journal lags a stream by 64 KiB at most, however it grows."""
    world = World()
    lease = running(world, max_tokens=200)
    world.core.flush(lease.task, world.now)
    for count in range(3, 40):
        text = "x" * 10_000
        if not world.core.inlet(lease).text(text, count):
            assert world.core.output(lease, [text], (), count, world.now, world.wall_ms)
        assert lease.task.log.size - lease.task.journaled <= FLUSH_BYTES
    assert sum(isinstance(fact, Frames) for fact in world.facts) > 4


def test_a_log_that_grows_too_large_goes_the_long_way() -> None:
    world = World(limits=Limits(task_bytes=600))
    lease = running(world)
    while world.core.inlet(lease).text("x" * 20, 3):
        assert lease.task.log.size <= 600
    assert world.core.output(lease, ["x" * 20], (), 3, world.now, world.wall_ms) is False
    assert lease.task.failure is not None
    assert lease.task.failure.details == {"rule": "output_exceeds_limit", "limit": 600}


def test_a_reader_that_follows_is_handed_the_frames_and_told_of_the_end() -> None:
    world = World()
    lease = running(world)
    log, told, got = lease.task.log, [], [lease.task.log.read(0)]
    log.watch(lambda: None)

    def watcher() -> None:
        told.append(log.visible_end)

    log.watch(watcher)
    log.follow(watcher, got.append)
    world.core.inlet(lease).text("c", 3)
    world.core.output(lease, ["d", "e"], (), 5, world.now, world.wall_ms)
    assert (len(got), told) == (3, [])
    assert b"".join(got) == log.read(0)
    before = log.size
    world.cancel(lease.task)
    assert log.followed == before, "a follower knows where it stood, though the terminal event is visible by now"
    assert told == [log.size]
    assert b"".join(got) + log.read(log.followed) == log.raw()
    log.unwatch(watcher)
    assert log.watchers == 1
