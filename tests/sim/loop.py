"""An event loop without sockets, threads or real time: what is ready runs in a drawn order, one step at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

from orchestratord.testing.clock import ManualClock

STEPS_MAX = 100_000  # a world takes one or two thousand
HASTE = 0.02  # how often time moves although something is ready


class Stuck(AssertionError):
    """Nothing is ready and no timer is set: somebody waits for ever."""


class Time:
    """Two clocks that stand at the same moment: the daemon's dies with it, the clients' does not."""

    def __init__(self) -> None:
        self.clients = ManualClock()
        self.daemon = ManualClock()

    def fresh(self) -> ManualClock:
        """The clock of a new process."""
        self.daemon = ManualClock(self.clients.now())
        return self.daemon

    def pass_on(self) -> bool:
        """To the next timer; False when there is none."""
        dues = [(due, clock) for clock in (self.clients, self.daemon) if (due := clock.next_due()) is not None]
        if not dues:
            return False
        due, clock = min(dues, key=lambda pair: pair[0])
        for other in (self.clients, self.daemon):
            other.reach(due)
        clock.fire()
        return True


class SimLoop(asyncio.BaseEventLoop):
    """Tasks keep their own order and plain callbacks theirs, as asyncio promises; how they interleave is drawn.

    `after` is called after every step. `trace` covers every choice: equal seeds, equal traces.
    """

    def __init__(self, draw: Random, time: Time) -> None:
        super().__init__()
        self.steps = 0
        self.after: Callable[[], None] = lambda: None
        self._draw = draw
        self._virtual = time
        self._trace = hashlib.sha256()
        self._numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._kept: list[asyncio.Task[Any]] = []
        self._count = 0
        self._limit = STEPS_MAX
        self.set_task_factory(self._task)
        self.set_exception_handler(self._unhandled)
        self.unhandled: list[str] = []

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
        self._count += 1
        self._numbers[task] = self._count
        self._kept.append(task)  # when one is collected must not matter
        return task

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context.get('message')} {context.get('exception')!r} {context.get('task')!r}")

    def note(self, *what: object) -> None:
        """Part of the trace."""
        self._trace.update(repr(what).encode())

    def trace_over(self) -> None:
        """What happens from now on is not part of the run."""
        self.note = lambda *what: None  # type: ignore[method-assign]
        self._limit = self.steps + STEPS_MAX
        self.after = lambda: None

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()[:16]

    def _run_once(self) -> None:
        if self.steps >= self._limit:
            raise Stuck(f"no rest after {STEPS_MAX} steps: somebody waits for what never comes")
        handle = self._next()
        if handle is not None and not handle._cancelled:
            handle._run()
            self.steps += 1
            self.after()

    def _next(self) -> Any:
        ready = self._ready  # type: ignore[attr-defined]
        if not ready or self._draw.random() < HASTE:
            if not self._virtual.pass_on() and not ready:
                raise Stuck("nothing is ready, and no timer is set")
            if not ready:
                return None
        first: dict[int, int] = {}
        for place, handle in enumerate(ready):
            owner = getattr(handle._callback, "__self__", None)
            first.setdefault(self._numbers[owner] if isinstance(owner, asyncio.Task) else 0, place)
        chains = sorted(first)
        chosen = chains[self._draw.randrange(len(chains))]
        self.note(chosen, len(chains), self._virtual.clients.now())
        handle = ready[first[chosen]]
        del ready[first[chosen]]
        return handle

    # -- what there is none of -------------------------------------------------------------------------------
    def _process_events(self, event_list: Any) -> None:
        raise AssertionError("there are no sockets here")

    def _write_to_self(self) -> None:
        pass

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        raise AssertionError("real time is not to be used")

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done
