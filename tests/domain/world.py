"""A core with hand-worked hooks: tickets resolve when the test says so, effects are lists."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from orchestratord.domain.facts import Fact
from orchestratord.domain.hooks import Hooks, Limits, Sized
from orchestratord.domain.lodging import Lodging
from orchestratord.domain.pool import Lease, PoolSpec, Replica
from orchestratord.domain.queue import QueueSpec
from orchestratord.domain.request import Caller, PlacementHints, TaskRequest
from orchestratord.domain.task import Task
from orchestratord.wire import sse


class HandTicket:
    """A ticket a test resolves."""

    def __init__(self, fact: Fact) -> None:
        self.fact = fact
        self._callbacks: list[Callable[[Any], object]] = []
        self._error: BaseException | None = None
        self.done = False

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        self._callbacks.append(fn)

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        return None

    def resolve(self, error: BaseException | None = None) -> None:
        self._error, self.done = error, True
        for callback in self._callbacks:
            callback(self)


class World:
    def __init__(
        self,
        *,
        slots: int = 2,
        capacity: int = 4,
        auto: bool = True,
        limits: Limits | None = None,
        queue: QueueSpec | None = None,
        pools: tuple[str, ...] = ("home",),
    ) -> None:
        self.now = 1000.0
        self.auto = auto
        self.tickets: list[HandTicket] = []
        self.aborted: list[Lease] = []
        self.ended: list[tuple[Task, str, str | None]] = []
        self.wakes = 0
        hooks = Hooks(
            record=self._record,
            encode=sse.encode,
            tokens=sse.tokens,
            token_form=sse.TOKEN,
            quote=sse.quote,
            abort=self.aborted.append,
            wake=self._woken,
            admitted=lambda task: None,
            ended=lambda task, phase, reason: self.ended.append((task, phase, reason)),
            archive=lambda task_id, artifact: None,
        )
        specs = [PoolSpec(p, "llamacpp", "mock", "m", (p,), queue=queue or QueueSpec(capacity)) for p in pools]
        self.core = Lodging(specs, limits or Limits(turns_max=10_000), hooks)
        self.core.add_replica("home", Replica("r0"))
        self.ready(slots)

    def ready(self, slots: int, pool: str = "home") -> None:
        self.core.replica_ready(
            pool,
            self.core.pools[pool].replicas["r0"],
            slots=slots,
            ctx=4096,
            engine_version="mock-1",
            model_id="m",
            workloads=frozenset({"completion"}),
            features=("prefix_cache",),
            exact_alone=True,
        )

    def _record(self, fact: Fact) -> HandTicket:
        ticket = HandTicket(fact)
        self.tickets.append(ticket)
        return ticket

    def _woken(self) -> None:
        self.wakes += 1

    @property
    def wall_ms(self) -> int:
        return 1_800_000_000_000 + int(self.now * 1000)

    def commit(self) -> None:
        """Resolve what is pending, in order."""
        while pending := [t for t in self.tickets if not t.done]:
            for ticket in pending:
                ticket.resolve()

    @property
    def facts(self) -> list[Fact]:
        return [ticket.fact for ticket in self.tickets]

    @staticmethod
    def prefer(pool: str) -> PlacementHints:
        return PlacementHints(mode="prefer", prefer_pools=(pool,))

    @staticmethod
    def pin(pool: str) -> PlacementHints:
        return PlacementHints(mode="pin", pin_pool_id=pool)

    def request(self, **fields: Any) -> TaskRequest:
        defaults: dict[str, Any] = {
            "task_id": str(uuid.uuid4()),
            "session_id": str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": "m",
            "engine": "llamacpp",
            "ctx": 256,
            "priority": "interactive",
            "max_tokens": 16,
            "deadline_ms": 3_600_000,
            "prompt": "hi",
        }
        return TaskRequest(**{**defaults, **fields})

    def admit(self, *, bound: int = 3, **fields: Any) -> Task:
        request = self.request(**fields)
        sized = Sized(request, request.task_id.encode(), 7, bound, None, Caller("cid", "localhost"))
        task, _ = self.core.admit(sized, self.now, self.wall_ms)
        if self.auto:
            self.commit()
        return task

    def dispatch(self) -> list[Lease]:
        return self.core.dispatch(self.now, self.wall_ms)

    def output(self, lease: Lease, *texts: str) -> bool:
        alone = len(texts) == 1 and self.core.inlet(lease).text(texts[0], 1)
        more = alone or self.core.output(lease, texts, (), len(texts), self.now, self.wall_ms)
        if self.auto:
            self.commit()
        return more

    def finish(self, lease: Lease, **outcome: Any) -> None:
        self.core.finish(lease, self.now, self.wall_ms, **(outcome or {"finish_reason": "stop"}))
        if self.auto:
            self.commit()

    def cancel(self, task: Task) -> int:
        seal = self.core.cancel(task, "client", self.now, self.wall_ms)
        if self.auto:
            self.commit()
        return seal

    def visible(self, task: Task) -> list[tuple[int | None, str, Any]]:
        return sse.decode(task.log.read(0))
