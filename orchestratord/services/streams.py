"""Streams: cursors over event logs, the live `metrics` frames between them, and what a vanished reader means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from orchestratord.domain import forecast
from orchestratord.domain.budget import Account
from orchestratord.domain.core import Core
from orchestratord.domain.errors import InvalidParams, NotFound, StorageUnavailable
from orchestratord.domain.outcome import TaskState
from orchestratord.domain.task import Task
from orchestratord.domain.views import waiting_for
from orchestratord.ports import Clock, Journal, JournalUnavailable, Telemetry, Timer
from orchestratord.services.durability import durable

WRITE_BYTES = 64 * 1024  # at most this much is handed to the socket at once


@dataclass(frozen=True, slots=True)
class StreamSettings:
    metrics_s: float = 1.0  # cadence of `metrics` while running
    metrics_queued_s: float = 5.0
    keep_alive_s: float = 15.0
    stall_s: float = 30.0  # a reader that takes nothing for so long is cut
    disconnect_grace_s: float = 30.0


@dataclass(frozen=True, slots=True)
class LiveFrames:
    """How frames that are not in the log are written."""

    live: Callable[[str, dict[str, Any]], bytes]
    budgets: Callable[[Account], dict[str, Any]]
    keep_alive: bytes
    retry: bytes


class Cursor:
    """One reader's place in one log.

    `take` gives whatever can be written now, b"" when that is nothing; once it is nothing and `over`, the stream ends.
    Whoever writes begins with `follow`.
    """

    __slots__ = (  # there is one for each open stream
        "_abort",
        "_asides",
        "_blocked_since",
        "_closing",
        "_first_token_seen",
        "_following",
        "_greeting",
        "_keep_alive_due",
        "_live",
        "_log",
        "_metrics_due",
        "_offset",
        "_parted",
        "_plain",
        "_streams",
        "_watcher",
        "_write",
        "flowing",
        "metrics_at",
        "task",
        "written_at",
    )

    def __init__(self, streams: Streams, task: Task, after: int) -> None:
        self.task = task
        self._streams = streams
        self._log = task.log
        self._offset = task.log.offset_after(after)
        self._live = not task.terminal  # a replay of a finished log brings no metrics frames
        self._first_token_seen = False
        self._plain = not self._live  # what the log brings next can be handed on as it is
        self.flowing = False  # what `take` gave was nothing but tokens, and all of them
        self._write: Callable[[bytes], object] | None = None
        self._following = False  # the log hands its frames to `_write`, past `take`
        self._asides = True  # something besides the log is to be written
        self._greeting = True
        self._metrics_due = self._keep_alive_due = False
        self._closing = self._parted = False
        self._blocked_since: float | None = None
        self._watcher: Callable[[], object] | None = self._kept
        self._log.watch(self._kept)  # from now on: the frames of a log that is watched stay in memory
        self._abort: Callable[[], object] | None = None
        self.written_at = streams.clock.now()
        self.metrics_at = self.written_at

    def follow(
        self,
        notify: Callable[[], object],
        abort: Callable[[], object],
        write: Callable[[bytes], object] | None = None,
    ) -> None:
        """Begin: `notify` is called whenever there may be something to take, `abort` to break the connection off.

        write: what to hand tokens to as they come, for as long as there is nothing else to say and what was taken goes
        out. Nobody is notified of those.
        """
        self._abort = abort
        self._write = write
        self._log.unwatch(self._kept)
        self._watcher = notify
        self._log.watch(notify)

    def _kept(self) -> None:
        """Nobody writes yet."""

    def take(self) -> bytes:
        """Everything that can be written now, at most about WRITE_BYTES of it."""
        log = self._log
        if self._following:
            self._leave()
        start = self._offset
        size = log.visible_end - start
        self.flowing = self._plain and 0 < size <= WRITE_BYTES and not self._asides and log.terminal_id is None
        if self.flowing:
            self._offset = log.visible_end
            if self._write is not None and self._watcher is not None and log.flowing:
                self._following = True
                log.follow(self._watcher, self._write)
            return log.read(start)
        data = self._read() if size else b""
        if self._asides:
            data = self._with_asides(data)
        if data:
            self.written_at = self._streams.clock.now()
        return data

    def _leave(self) -> None:
        """Read the log again, from where it was followed to."""
        self._following = False
        self._offset = self._log.followed
        if self._watcher is not None:
            self._log.watch(self._watcher)

    @property
    def over(self) -> bool:
        """Nothing more will come once `take` has given everything."""
        return self._closing or (self._log.finished and self._log.visible_end == self._offset)

    def _read(self) -> bytes:
        """Log bytes not read yet, with `metrics` directly after the first token and directly before `end`."""
        log, start = self._log, self._offset
        data = log.read(start, WRITE_BYTES)
        self._offset = end = start + len(data)
        if not self._live or (self._first_token_seen and not log.finished):
            return data
        cuts = []
        if self.task.token_frames and not self._first_token_seen:
            first = log.offset_after(2)
            self._first_token_seen = self._plain = first <= end
            if start < first <= end:
                cuts.append(first - start)
        if log.finished and self.task.failure is None and start <= (last := log.offset_after(log.sealed or 0)) < end:
            cuts.append(last - start)
        for cut in reversed(cuts):
            data = data[:cut] + self._streams.metrics_frame(self.task) + data[cut:]
        return data

    def _with_asides(self, data: bytes) -> bytes:
        """The log's bytes with what a sweep, a stop or the beginning of the stream asked for around them."""
        self._asides = False
        frames, open_log = self._streams.frames, not self._log.finished
        if self._metrics_due and open_log:
            self.metrics_at = self._streams.clock.now()
            data += self._streams.metrics_frame(self.task)
        elif self._keep_alive_due and not data:
            data = frames.keep_alive
        self._metrics_due = self._keep_alive_due = False
        if self._closing and not self._parted and open_log:
            self._parted = True
            data += self._streams.farewell(self.task)
        if self._greeting:
            self._greeting = False
            data = frames.retry + data
        return data

    def blocked(self) -> None:
        """What was taken does not go out: the reader is slow, or gone without a word."""
        if self._following:
            self._leave()
        if self._blocked_since is None:
            self._blocked_since = self._streams.clock.now()

    def unblocked(self) -> None:
        self._blocked_since = None

    def tick(self, now: float) -> None:
        """The sweep's turn: ask for a metrics frame or a keep-alive when one is due; cut a reader that stalls."""
        settings = self._streams.settings
        if self._blocked_since is not None:
            if now - self._blocked_since >= settings.stall_s and self._abort is not None:
                self._blocked_since = inf  # once
                self._streams.say_cut(self.task)
                self._abort()
            return
        every = settings.metrics_queued_s if self.task.state is TaskState.QUEUED else settings.metrics_s
        self._metrics_due = self._live and now - self.metrics_at >= every - 1e-6
        written_at = max(self.written_at, self.task.last_output or 0.0)
        self._keep_alive_due = now - written_at >= settings.keep_alive_s
        if self._metrics_due or self._keep_alive_due:
            self._asides = True
            self._notify()

    def cut(self) -> None:
        """End the stream without a terminal event: the daemon is going away and the task will be back."""
        self._closing = self._asides = True
        self._notify()

    def _notify(self) -> None:
        if self._watcher is not None:
            self._watcher()

    def close(self) -> None:
        """The reader is gone. Idempotent."""
        if self._watcher is not None:
            self._log.unwatch(self._watcher)
            self._watcher = None
        self._abort = self._write = None  # whose they are knows this: a circle would wait for the collector
        self._streams.left(self)


class Streams:
    """Every open cursor."""

    def __init__(
        self,
        core: Core,
        clock: Clock,
        journal: Journal,
        telemetry: Telemetry,
        settings: StreamSettings,
        frames: LiveFrames,
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.frames = frames
        self._core = core
        self._journal = journal
        self._telemetry = telemetry
        self._cursors: dict[str, tuple[Cursor, ...]] = {}  # by task
        self._graces: dict[str, Timer] = {}
        self._sweep: Timer | None = None
        self._stopping = False

    @property
    def open_cursors(self) -> int:
        return sum(len(cursors) for cursors in self._cursors.values())

    async def follow(self, task_id: str, last_event_id: str | None, after: int | None) -> Cursor | None:
        """A cursor behind the given event; None when the reader has seen the terminal event already.

        Raises NotFound, InvalidParams for an id that is no decimal number or that no event has yet, and
        StorageUnavailable when an old log cannot be read from the journal.
        """
        task = self._core.tasks.get(task_id)
        if task is None:
            raise NotFound(f"There is no task {task_id}; finished tasks are kept for a limited time.")
        if not task.committed and (ticket := self._core.closing.get(task_id)) is not None:
            await durable(ticket)  # a task that is withdrawn has nothing to tell, and its log would never end
        seen = self._parse(last_event_id) if last_event_id is not None else (after or 0)
        if seen > task.log.last_id:
            raise InvalidParams(
                f"Event {seen} has not happened; the last one is {task.log.last_id}. Resume from an id you received.",
                rule="last_event_id",
            )
        if task.log.finished and seen == task.log.terminal_id:
            return None
        if task.log.evicted:
            await self._bring_back(task)
        cursor = Cursor(self, task, seen)
        self._cursors[task_id] = (*self._cursors.get(task_id, ()), cursor)
        grace = self._graces.pop(task_id, None)
        if grace is not None:
            grace.cancel()
        self._arm()
        if self._stopping:
            cursor.cut()
        return cursor

    async def _bring_back(self, task: Task) -> None:
        try:
            stored = await self._journal.log(task.task_id)
        except JournalUnavailable as error:
            raise StorageUnavailable("This old log cannot be read now.", retry_after_ms=1000) from error
        if task.log.evicted:  # another reader may have been faster
            if stored is None:
                raise NotFound(f"There is no task {task.task_id}; finished tasks are kept for a limited time.")
            task.log.restore(stored)
            self._core.tasks.keep_log(task)

    @staticmethod
    def _parse(value: str) -> int:
        if value.isascii() and value.isdecimal() and len(value) <= 20:
            return int(value)
        raise InvalidParams("Last-Event-ID must be the decimal id of an event of this stream.", rule="last_event_id")

    def left(self, cursor: Cursor) -> None:
        task = cursor.task
        cursors = self._cursors.get(task.task_id)
        if cursors is None or cursor not in cursors:
            return
        if len(cursors) > 1:
            self._cursors[task.task_id] = tuple(other for other in cursors if other is not cursor)
            return
        del self._cursors[task.task_id]
        if not task.terminal and not self._stopping and task.request.on_disconnect == "cancel":
            due = self.clock.now() + self.settings.disconnect_grace_s
            self._graces[task.task_id] = self.clock.call_at(due, lambda: self._abandoned(task))

    def _abandoned(self, task: Task) -> None:
        self._graces.pop(task.task_id, None)
        self._core.cancel(task, "disconnect", self.clock.now(), self.clock.wall_ms())

    def metrics_frame(self, task: Task) -> bytes:
        """Made from the current state, for this moment only."""
        return self.frames.live("metrics", self._metrics(task))

    def _metrics(self, task: Task) -> dict[str, Any]:
        pool = self._core.pools.get(task.pool_id)
        if pool is None:
            return {"queue_depth": 0, "on_time_probability": 0.0}
        payload: dict[str, Any] = {
            "queue_depth": len(pool.queue),
            "on_time_probability": forecast.on_time_probability(pool, task, self.clock.now()),
        }
        session = self._core.sessions.get(task.session_id, self.clock.now())
        if session is not None:
            payload["kv_warmth"] = session.kv_warm or task.kv_warm
            if session.kv_lost and not task.kv_warm:
                payload["kv_migrated"] = False
            if budgets := self.frames.budgets(session.account):
                payload["budgets"] = budgets
        if task.state is TaskState.QUEUED:
            if (start := forecast.expected_ms(pool, task, self.clock.now())) is not None:
                payload["predicted_start_ms"] = int(start)
            if why := waiting_for(pool):
                payload["waiting_for"] = why
        return payload

    def farewell(self, task: Task) -> bytes:
        """Last words to a reader whose task outlives this process: why, and when to come back."""
        payload = {**self._metrics(task), "waiting_for": "restart"}
        return self.frames.live("metrics", payload) + self.frames.retry

    def say_cut(self, task: Task) -> None:
        self._telemetry.event(
            "reader_cut",
            f"a reader of this stream took nothing for {self.settings.stall_s:g} s and may come back",
            job_id=task.task_id,
            session_id=task.session_id,
            pool_id=task.pool_id,
        )

    # -- one sweep for every stream ------------------------------------------------------------------------
    def _arm(self) -> None:
        if self._sweep is None and self._cursors:
            interval = min(self.settings.metrics_s, self.settings.metrics_queued_s, self.settings.keep_alive_s)
            self._sweep = self.clock.call_at(self.clock.now() + interval, self._tick)

    def _tick(self) -> None:
        self._sweep = None
        now = self.clock.now()
        for cursors in tuple(self._cursors.values()):
            for cursor in cursors:
                cursor.tick(now)
        self._arm()

    def stop(self) -> None:
        """The daemon is going away: cut every stream whose task has no terminal event to wait for."""
        self._stopping = True
        for timer in self._graces.values():
            timer.cancel()
        self._graces.clear()
        for cursors in tuple(self._cursors.values()):
            for cursor in cursors:
                if not cursor.task.terminal:
                    cursor.cut()
