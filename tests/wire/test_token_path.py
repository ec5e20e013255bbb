"""From the engine's texts to the bytes of every reader: log, cursors and pipes, over connections that fill at once.

No socket and no loop: a connection here takes what is written, says that it is full in that very call, and drains when
the machine says so. Whatever happens, each reader gets the log's bytes in order and one end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestratord.domain import lives
from orchestratord.domain.facts import Frames
from orchestratord.ports import Clock, Journal, Telemetry
from orchestratord.services import streams
from orchestratord.services.streams import Cursor, LiveFrames, Streams, StreamSettings
from orchestratord.wire import sse
from orchestratord.wire.responses import Body, Wire, _Pipe
from tests.domain.world import World

MOST = 40
LONG = 10  # texts before it may end
READERS = 4
HIGH = st.sampled_from([0, 50, 400, 100_000])  # bytes a connection may hold
TEXTS = st.sampled_from(["a", "\u00e9\n\n", "x" * 60, "y" * 300])


class Connection:
    """Is full beyond `high` bytes that were not taken, until no more than a quarter of them is left."""

    def __init__(self, high: int, *, full: bool) -> None:
        self._high = high
        self._left = high + 1 if full else 0
        self._full = full
        self.got = b""
        self.ends = 0
        self.open = True
        self.within: Callable[[], None] | None = None  # what happens within the next write
        self.body: Body

    @property
    def full(self) -> bool:
        return self._full

    def bind(self, body: Body) -> Callable[[bytes], object]:
        self.body = body
        return self.write

    def write(self, data: bytes) -> None:
        assert data, "nothing to write"
        assert self.ends == 0, "written behind the end"
        assert not self._full, "written to a connection that is full"
        self.got += data
        self._left += len(data)
        if self._left > self._high and not self._full:
            self._full = True
            self.body.filled()
        within, self.within = self.within, None
        if within is not None:
            within()

    def drain(self, size: int) -> None:
        self._left = max(0, self._left - size)
        if self._full and self._left <= self._high // 4:
            self._full = False
            if self.open and not self.ends:
                self.body.drained()

    def end(self) -> None:
        self.ends += 1

    def abort(self, fault: Exception | None = None) -> None:
        assert fault is None, fault
        self.lose()

    def lose(self) -> None:
        if self.open:
            self.open = False
            if not self.ends:
                self.body.lost()


class Hand:
    """A clock whose one timer goes off when it is told to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._timers: list[Callable[[], None]] = []

    def now(self) -> float:
        return self._world.now

    def wall_ms(self) -> int:
        return self._world.wall_ms

    def call_at(self, when: float, fn: Callable[[], None]) -> Any:
        timers = self._timers
        timers.append(fn)

        class Timer:
            def cancel(self) -> None:
                if fn in timers:
                    timers.remove(fn)

        return Timer()

    def fire(self) -> None:
        due, self._timers[:] = list(self._timers), []
        for fn in due:
            fn()


class Reader:
    def __init__(self, cursor: Cursor, start: int, wire: Connection) -> None:
        self.start = start
        self.wire = wire
        self.overs = 0
        _Pipe(cast(Wire, wire), cursor, self._over).begin()

    def _over(self) -> None:
        self.overs += 1

    @property
    def seen(self) -> bytes:
        """What came of the log: live frames have no id."""
        return b"".join(frame for frame in sse.split(self.wire.got) if frame.startswith(b"id: "))


class TokenPath(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(lives, "FLUSH_BYTES", 500)
        self.patched.setattr(streams, "WRITE_BYTES", 700)
        self.world = World(auto=False, slots=1)
        self.clock = Hand(self.world)
        frames = LiveFrames(sse.encode_live, lambda account: {}, sse.KEEP_ALIVE, sse.RETRY)
        often = StreamSettings(metrics_s=1.0, metrics_queued_s=2.0, keep_alive_s=3.0, stall_s=20.0)
        clock, telemetry = cast(Clock, self.clock), cast(Telemetry, Silent())
        self.streams = Streams(self.world.core, clock, cast(Journal, None), telemetry, often, frames)
        self.task = self.world.admit(max_tokens=MOST, on_disconnect="continue")
        self.world.commit()
        (self.lease,) = self.world.dispatch()
        self.text = self.world.core.inlet(self.lease).text
        self.readers: list[Reader] = []
        self.asked = 0
        self.stopped = False

    def teardown(self) -> None:
        try:
            self._to_the_end()
        finally:
            self.patched.undo()

    def _to_the_end(self) -> None:
        """Everybody who stays has it all, and the journal too."""
        if not self.task.terminal:
            self._finish()
        self.world.commit()
        for reader in self.readers:
            while reader.wire.full:
                reader.wire.drain(100_000)
        log = self.task.log
        for reader in self.readers:
            if reader.wire.open and not self.stopped:
                assert reader.seen == log.raw(reader.start)
                assert reader.wire.ends == 1
            assert reader.overs == 1
        assert log.watchers == 0
        told = b"".join(fact.data for fact in self.world.facts if isinstance(fact, Frames))
        assert told == log.raw(log.offset_after(1))[: len(told)]
        assert len(told) == log.offset_after(log.sealed or 0) - log.offset_after(1)

    # -- the engine ----------------------------------------------------------------------------------------
    @initialize(text=TEXTS, durable=st.booleans(), high=HIGH)
    def begins(self, text: str, durable: bool, high: int) -> None:
        self.joins(0, high, full=False)
        self.alone(text)
        if durable:
            self.world.commit()

    @rule(text=TEXTS)
    def alone(self, text: str) -> None:
        """As the read of an engine's event brings it: the short way, or else the long one."""
        if self.asked < MOST:
            self.asked += 1
            if not self.text(text, self.asked):
                self._output(text)

    @rule(texts=st.lists(TEXTS, max_size=5))
    def together(self, texts: list[str]) -> None:
        texts = texts[: MOST - self.asked]
        self.asked += len(texts)
        self._output(*texts)

    def _output(self, *texts: str) -> None:
        going = self.world.core.output(self.lease, texts, (), self.asked, self.world.now, self.world.wall_ms)
        assert going is not self.task.terminal

    @rule()
    def is_durable(self) -> None:
        self.world.commit()

    @rule()
    def sweep(self) -> None:
        self.world.core.flush(self.task, self.world.now)

    @precondition(lambda self: self.asked > LONG)
    @rule(canceled=st.booleans())
    def ends(self, canceled: bool) -> None:
        if canceled:
            self.world.cancel(self.task)
        elif not self.task.terminal:
            self._finish()

    def _finish(self) -> None:
        if self.task.first_token is None:
            self.world.cancel(self.task)
        else:
            self.world.finish(self.lease)

    # -- the readers ---------------------------------------------------------------------------------------
    @precondition(lambda self: len(self.readers) < READERS and not self.stopped)
    @rule(seen=st.integers(0, 6), high=HIGH, full=st.booleans())
    def joins(self, seen: int, high: int, full: bool) -> None:
        seen = min(seen, self.task.log.visible_id)
        following = self.streams.follow(self.task.task_id, str(seen), None)
        try:
            following.send(None)
        except StopIteration as found:
            if (cursor := found.value) is not None:
                self.readers.append(Reader(cursor, self.task.log.offset_after(seen), Connection(high, full=full)))

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, READERS - 1), size=st.sampled_from([10, 300, 100_000]))
    def takes(self, which: int, size: int) -> None:
        self.readers[which % len(self.readers)].wire.drain(size)

    @precondition(lambda self: len(self.readers) == READERS)
    @rule(which=st.integers(0, READERS - 1))
    def leaves(self, which: int) -> None:
        self.readers[which % len(self.readers)].wire.lose()

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, READERS - 1), other=st.integers(0, READERS - 1), leaves=st.booleans())
    def meanwhile(self, which: int, other: int, leaves: bool) -> None:
        """Within the next write to one, another drains or leaves."""
        wire = self.readers[other % len(self.readers)].wire
        act = wire.lose if leaves else (lambda: wire.drain(100_000))
        self.readers[which % len(self.readers)].wire.within = act

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def passes(self, seconds: float) -> None:
        """Metrics and keep-alives come due; a reader that takes nothing for long is cut."""
        self.world.now += seconds
        self.clock.fire()

    @precondition(lambda self: self.asked > LONG and not self.task.terminal and not self.stopped)
    @rule()
    def stops(self) -> None:
        self.stopped = True
        self.streams.stop()

    # -- what holds ----------------------------------------------------------------------------------------
    @invariant()
    def every_reader_has_what_it_could_take(self) -> None:
        log = self.task.log
        for reader in self.readers:
            seen, wire = reader.seen, reader.wire
            assert log.raw(reader.start).startswith(seen)
            assert wire.ends <= 1
            assert reader.overs == int(wire.ends or not wire.open)
            if wire.open and not wire.full and not wire.ends:
                assert seen == log.read(reader.start)
                assert not log.finished, "an end that nobody is told of"
            if wire.ends and not self.stopped:
                assert seen == log.raw(reader.start)


class Silent:
    def event(self, *args: Any, **fields: Any) -> None:
        pass


TokenPath.TestCase.settings = settings(stateful_step_count=40, deadline=None)
test_the_token_path = TokenPath.TestCase
