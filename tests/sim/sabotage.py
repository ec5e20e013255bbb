"""Daemons broken on purpose: each of these must be noticed by an invariant, or the simulation proves nothing.

python -m tests.sim.sabotage [--seeds N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import Any

from orchestratord.app import Daemon
from orchestratord.domain import core
from orchestratord.domain.queue import TaskQueue
from tests.sim.__main__ import simulate

SABOTAGES: dict[str, Callable[[Daemon], None]] = {}


def sabotage(function: Callable[[Daemon], None]) -> Callable[[Daemon], None]:
    SABOTAGES[function.__name__] = function
    return function


def _queues(daemon: Daemon, kind: type[TaskQueue]) -> None:
    for pool in daemon.core.pools.values():
        pool.queue.__class__ = kind


def _resolved() -> asyncio.Future[Any]:
    ticket = asyncio.get_running_loop().create_future()
    ticket.set_result(None)
    return ticket


class _Newest(TaskQueue):
    __slots__ = ()

    def head(self, now: float, able: Any = bool) -> Any:
        ready = [task for task in self if task.committed and able(task)]
        return max(ready, key=lambda task: task.admitted.order, default=None)


class _BatchFirst(TaskQueue):
    __slots__ = ()

    def head(self, now: float, able: Any = bool) -> Any:
        batch = next((task for task in self._lanes["batch"].values() if task.committed and able(task)), None)
        return batch or super().head(now, able)


class _OneMore(TaskQueue):
    __slots__ = ()

    def has_room(self, priority: Any) -> bool:
        return super().has_room(priority) or self.seats_taken == self.spec.capacity


class _NeverAgain(TaskQueue):
    __slots__ = ()

    def again(self, task: Any) -> None:
        pass


@sabotage
def newest_first(daemon: Daemon) -> None:
    _queues(daemon, _Newest)


@sabotage
def batch_first(daemon: Daemon) -> None:
    _queues(daemon, _BatchFirst)


@sabotage
def one_seat_too_many(daemon: Daemon) -> None:
    _queues(daemon, _OneMore)


@sabotage
def forget_retries(daemon: Daemon) -> None:
    _queues(daemon, _NeverAgain)


@sabotage
def accept_before_the_commit(daemon: Daemon) -> None:
    admit = daemon.core.admit
    daemon.core.admit = lambda *args: (admit(*args)[0], _resolved())  # type: ignore[method-assign]


@sabotage
def cancel_before_the_commit(daemon: Daemon) -> None:
    async def cancel(task_id: str) -> int:
        task = daemon.services.tasks.get(task_id)
        return daemon.core.cancel(task, "client", daemon.clock.now(), daemon.clock.wall_ms())

    daemon.services.tasks.cancel = cancel  # type: ignore[method-assign]


@sabotage
def keep_every_third_slot(daemon: Daemon) -> None:
    release, calls = daemon.core.release, iter(range(10**9))
    daemon.core.release = lambda lease: None if next(calls) % 3 == 2 else release(lease)  # type: ignore[method-assign]


@sabotage
def free_slots_unproven(daemon: Daemon) -> None:
    async def freed(engine: Any, lease: Any) -> bool:
        return True

    daemon.runs._freed = freed  # type: ignore[method-assign]


@sabotage
def never_abort(daemon: Daemon) -> None:
    object.__setattr__(daemon.core._hooks, "abort", lambda lease: None)


@sabotage
def settle_nothing(daemon: Daemon) -> None:
    daemon.core.sessions.task_ended = lambda *args: None  # type: ignore[method-assign]


@sabotage
def know_no_task_id(daemon: Daemon) -> None:
    daemon.core.known = lambda *args: None  # type: ignore[method-assign]


@sabotage
def count_starts_twice(daemon: Daemon) -> None:
    started = daemon.narrator.started
    daemon.narrator.started = lambda lease: (started(lease), started(lease))  # type: ignore[method-assign,return-value]


@sabotage
def forget_drains(daemon: Daemon) -> None:
    daemon.journal.changed_pools = list  # type: ignore[method-assign]


@sabotage
def dispatch_while_draining(daemon: Daemon) -> None:
    begin = daemon.core.begin
    daemon.core.begin = lambda operation, draining: begin(operation, draining=False)  # type: ignore[method-assign]


@sabotage
def lose_the_last_token(daemon: Daemon) -> None:
    archive = daemon._archive

    def short(source: Any) -> Any:
        artifact = archive(source).opened()
        artifact.content["text"] = artifact.content["text"][:-1]
        return artifact

    daemon._archive = short  # type: ignore[method-assign]


@sabotage
def restore_too_little(daemon: Daemon) -> None:
    restore = daemon.core.restore
    daemon.core.restore = lambda journaled, *args: restore(journaled[1:], *args)  # type: ignore[method-assign]


@sabotage
def run_again_what_was_seen(daemon: Daemon) -> None:
    restore = daemon.core.restore

    def forgetful(journaled: Any, *args: Any) -> None:
        from dataclasses import replace

        restore([replace(j, started=None, frames=b"") if j.finished is None else j for j in journaled], *args)

    daemon.core.restore = forgetful  # type: ignore[method-assign]


class _Patient(TaskQueue):
    __slots__ = ()

    def head(self, now: float) -> Any:
        return super().head(now - self.spec.batch_age_s)


@sabotage
def age_twice_as_long(daemon: Daemon) -> None:
    _queues(daemon, _Patient)


@sabotage
def lease_what_is_kept_while_draining(daemon: Daemon) -> None:
    dispatch = daemon.core.dispatch

    def careless(now: float, wall_ms: int) -> Any:
        draining = [pool for pool in daemon.core.pools.values() if pool.draining]
        kept = [(pool, r, task) for pool in draining for r, task in core._kept(pool)]
        return dispatch(now, wall_ms) + [daemon.core._lease(p, r, 0, task, now, wall_ms) for p, r, task in kept]

    daemon.core.dispatch = careless  # type: ignore[method-assign]


@sabotage
def forget_the_quarantine(daemon: Daemon) -> None:
    finish = daemon.core.finish

    def forgetful(lease: Any, *args: Any, **outcome: Any) -> None:
        finish(lease, *args, **outcome)
        lease.quarantined = False

    daemon.core.finish = forgetful  # type: ignore[method-assign]


@sabotage
def read_ahead_of_the_seal(daemon: Daemon) -> None:
    cancel = daemon.core.cancel
    daemon.core.cancel = lambda *args: cancel(*args) - 1  # type: ignore[method-assign]


@sabotage
def drop_what_is_shown(daemon: Daemon) -> None:
    daemon.retention._referred = lambda artifact: False  # type: ignore[method-assign]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.sabotage")
    parser.add_argument("--seeds", type=int, default=60, help="seeds to try each on (default 60)")
    parser.add_argument("--only", help="those with this in their name")
    arguments = parser.parse_args(argv)
    missed = 0
    for name, breaks in SABOTAGES.items():
        if arguments.only and arguments.only not in name:
            continue
        found = next((o for seed in range(1, arguments.seeds + 1) if (o := simulate(seed, breaks)).broken), None)
        missed += found is None
        told = "NOT NOTICED" if found is None else f"seed {found.seed}: {(found.broken or '')[:110]}"
        sys.stdout.write(f"{name:26} {told}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
