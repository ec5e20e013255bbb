"""Who uses the daemon in a simulation: clients that submit, read, leave, come back and cancel; operators; bad luck."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random
from typing import Any

from orchestratord.app import Daemon
from orchestratord.domain.errors import Conflict, NotFound, Refusal, StorageUnavailable
from orchestratord.domain.request import Caller, PlacementHints, TaskRequest
from orchestratord.services.streams import Cursor
from orchestratord.testing.checker import CancelAck, Reader, Seen, TaskRecord
from orchestratord.wire import sse
from tests.invariants import Broken
from tests.sim.faults import engine_script
from tests.sim.world import Down, Promise, World

CALLER = Caller("sim", "localhost")
PATIENCE = 60


class Client:
    def __init__(self, world: World, number: int, draw: Random) -> None:
        self.world = world
        self.draw = draw
        self.number = number
        self.readers = 0

    async def live(self) -> None:
        for _ in range(self.draw.randint(1, 4)):
            await self.world.sleep(self.draw.expovariate(20))
            request = self.request()
            if not await self.submit(request):
                continue
            way = self.draw.choice(["read", "read", "cancel", "cancel", "crowd", "alone", "again", "delete"])
            await getattr(self, f"_{way}")(request)

    def request(self) -> TaskRequest:
        draw = self.draw
        mode = draw.choice(["auto", "auto", "auto", "prefer", "pin"])
        pool = draw.choice([pool.id for pool in self.world.settings.pools])
        return TaskRequest(
            task_id=str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            session_id=str(uuid.UUID(int=draw.randrange(4) + 1, version=4)),
            workload=draw.choice(["completion"] * 5 + ["embedding"]),  # type: ignore[arg-type]
            model_ref="m",
            engine="llamacpp",
            ctx=512,
            priority=draw.choice(["interactive", "batch"]),  # type: ignore[arg-type]
            max_tokens=draw.choice([1, 4, 12, 40]),
            deadline_ms=draw.choice([200, 30_000, 30_000, 600_000]),
            determinism="strict" if draw.random() < 0.15 else "best_effort",
            on_disconnect=draw.choice(["cancel", "continue"]),  # type: ignore[arg-type]
            placement=PlacementHints(
                mode=mode,  # type: ignore[arg-type]
                pin_pool_id=pool if mode == "pin" else None,
                prefer_pools=(pool,) if mode == "prefer" else (),
            ),
        )

    async def submit(self, request: TaskRequest) -> bool:
        """Until it is accepted or refused for good; after a crash the same again, as a client would (I21)."""
        promise = self.world.promises.setdefault(
            request.task_id,
            Promise(TaskRecord(request.task_id, session_id=request.session_id), repr(request).encode()),
        )
        whole = self._with_input(request, "hi")
        for _ in range(PATIENCE):
            daemon = self.world.up
            try:
                if daemon is None:
                    raise Down
                task, replay = await self.world.call(daemon.admission.admit(whole, promise.fingerprint, CALLER))
            except Down:
                await self.world.sleep(self.draw.random())
                continue
            except Refusal as refusal:
                self.world.loop.note(refusal.code)
                if isinstance(refusal, NotFound | Conflict):
                    raise Broken(f"i21_idempotency: {refusal.code} for a fresh task_id: {refusal}") from refusal
                if not refusal.is_retriable or self.draw.random() < 0.3:
                    return False
                await self.world.sleep(self.draw.random() * 0.5)
                continue
            if task.admitted.fingerprint != promise.fingerprint or (promise.acked and not replay):
                raise Broken(f"i21_idempotency: {request.task_id} was accepted a second time")
            promise.acked = True
            self.world.tempt_fate()
            return True
        return False

    @staticmethod
    def _with_input(request: TaskRequest, text: str) -> TaskRequest:
        if request.workload == "embedding":
            return replace(request, inputs=(text, "c"))
        return replace(request, prompt=text)

    # -- ways ------------------------------------------------------------------------------------------------
    async def _alone(self, request: TaskRequest) -> None:
        pass

    async def _again(self, request: TaskRequest) -> None:
        await self.submit(request)
        daemon = self.world.up
        other = self._with_input(request, "other")
        with contextlib.suppress(Down, Conflict):
            if daemon is not None:
                await self.world.call(daemon.admission.admit(other, b"other", CALLER))
                raise Broken(f"i21_idempotency: {request.task_id} was accepted with another body")

    async def _read(self, request: TaskRequest) -> None:
        """To the end, leaving and coming back on the way."""
        after = 0
        for _ in range(PATIENCE):
            leave = self.draw.randint(1, 20) if self.draw.random() < 0.5 else None
            reader = await self._stream(request.task_id, after, leave)
            if reader is None or reader.closed == "end":
                return
            after = max((seen.id or 0 for seen in reader.events), default=after)
            after = max(after, reader.after)
            await self.world.sleep(self.draw.random())

    async def _stream(self, task_id: str, after: int, leave: int | None) -> Reader | None:
        """One connection; leaves after so many pieces. None when there is nothing more to come."""
        self.readers += 1
        record = self.world.promises[task_id].record
        reader = Reader(f"{self.number}/{self.readers}", after, closed="cut")
        daemon = self.world.up
        if daemon is None:
            return reader
        try:
            cursor = await self.world.call(daemon.streams.follow(task_id, str(after) if after else None, None))
            if cursor is None:
                return None
            record.readers.append(reader)
            try:
                pieces = 0
                async for data in self._parts(daemon, cursor):
                    for frame in sse.split(data):
                        reader.events += [Seen(*event, frame) for event in sse.decode(frame)]
                    pieces += 1
                    if pieces == leave:
                        reader.closed = "client"
                        return reader
                    if self.draw.random() < 0.1:
                        await self.world.sleep(self.draw.random())  # a slow one
                reader.closed = "cut" if cursor._closing else "end"  # by a daemon that goes away: with a farewell
            finally:
                if self.world.up is daemon:
                    cursor.close()
        except Down:
            pass
        except StorageUnavailable:
            pass
        except Refusal as refusal:
            if task_id in self.world.doubtful:
                return None
            raise Broken(f"i12_views: {task_id} after {after}: {refusal}") from refusal
        return reader

    async def _parts(self, daemon: Daemon, cursor: Cursor) -> AsyncIterator[bytes]:
        """What the connection would be given, as long as the daemon lives."""
        wake = asyncio.Event()
        cursor.follow(wake.set, cursor.cut)
        while self.world.up is daemon:
            if data := cursor.take():
                yield data
            elif cursor.over:
                return
            else:
                wake.clear()
                await self.world.call(wake.wait())
        raise Down

    async def _crowd(self, request: TaskRequest) -> None:
        """Several readers of one task; one of them cancels it."""
        others = [self.world.spawn(self._read(request)) for _ in range(self.draw.randint(1, 3))]
        if self.draw.random() < 0.5:
            await self._cancel(request)
        for other in others:
            await other

    async def _cancel(self, request: TaskRequest) -> None:
        await self.world.sleep(self.draw.choice([0, 0.001, 0.02, 0.2]) * self.draw.random())
        reading = None
        if self.draw.random() < 0.5:
            reading = self.world.spawn(self._read(request))
        promise = self.world.promises[request.task_id]
        for _ in range(self.draw.choice([1, 1, 2])):
            daemon = self.world.up
            try:
                if daemon is not None:
                    seal = await self.world.call(daemon.services.tasks.cancel(request.task_id))
                    self.world.loop.note("sealed", seal)
                    if request.task_id not in self.world.doubtful | self.world.journal.lost:
                        promise.record.cancels.append(CancelAck(seal, self.world.loop.steps))
                        promise.seal = seal
                    self.world.tempt_fate()
            except (Down, StorageUnavailable):
                pass
        if reading is not None:
            await reading

    async def _delete(self, request: TaskRequest) -> None:
        daemon = self.world.up
        if daemon is None:
            return
        with contextlib.suppress(Down, NotFound, StorageUnavailable):
            await self.world.call(daemon.services.sessions.delete(request.session_id))


async def operator(world: World, draw: Random) -> None:
    """Drains, resumes and reloads pools as nobody sane would."""
    for _ in range(draw.randint(0, 5)):
        await world.sleep(draw.expovariate(2))
        daemon = world.up
        if daemon is None:
            continue
        pool_id = draw.choice([pool.id for pool in world.settings.pools])
        what = draw.choice(["drain", "drain", "resume", "reload"])
        world.drained.pop(pool_id, None)
        try:
            if what == "drain":
                await world.call(daemon.operations.drain(pool_id, draw.choice([50, 1000])))
                world.drained[pool_id] = True
                world.tempt_fate()
            elif what == "resume":
                await world.call(daemon.operations.resume(pool_id))
                world.drained[pool_id] = False
            else:
                ref = world.new_model(draw.random() < 0.5)
                pool_id = world.settings.pools[0].id
                world.drained.pop(pool_id, None)
                await world.call(daemon.reloads.reload(pool_id, ref))
        except (Down, Refusal) as refusal:
            world.loop.note(what, str(type(refusal)))
            world.drained.pop(pool_id, None)


async def bad_luck(world: World, draw: Random) -> None:
    """Faults, until it is told that the world is to heal."""
    while not world.healed:
        await world.sleep(draw.expovariate(3))
        daemon = world.up
        if daemon is None or world.healed:
            continue
        kind = draw.choice(["engine"] * 5 + ["down", "release", "outage", "crash", "crash", "stop"])
        world.loop.note(kind)
        if kind == "engine":
            if engines := world.engines():
                draw.choice(engines).play(engine_script(draw))
        elif kind == "down" and world.engines():
            engine = draw.choice(world.engines())
            engine.down = True
            await world.sleep(draw.random() * 5)
            engine.down = False
        elif kind == "release":
            for engine in world.engines():
                engine.release()
        elif kind == "outage":
            journal = world.journal
            journal.broken = "no space left on device"
            await world.sleep(draw.random() * 2)
            if world.journal is journal:
                journal.broken = None
        elif kind == "crash" and world.crashes:
            world.crash()
            await world.sleep(draw.random() * 2)
            await world.boot()
        elif kind == "stop" and world.crashes:
            with contextlib.suppress(Down):
                await world.shut_down()
                await world.sleep(draw.random())
                await world.boot()


def everybody(world: World, seed: Any) -> list[Any]:
    draws = [Random(f"{seed}/{number}") for number in range(12)]
    clients = [Client(world, number, draw).live() for number, draw in enumerate(draws[2:])]
    return [*clients, operator(world, draws[0])]
