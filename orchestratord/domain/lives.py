"""The life of tasks after their admission: output, ends, and the slots they give back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from orchestratord.domain.budget import Amounts
from orchestratord.domain.catalog import Catalog
from orchestratord.domain.facts import Fact, Finished, Frames, Started
from orchestratord.domain.hooks import Hooks, Limits, Ticket
from orchestratord.domain.kv import tokens_left
from orchestratord.domain.log import Inlet
from orchestratord.domain.operation import Fault
from orchestratord.domain.outcome import CancelReason, Failure, FinishReason, TaskState, Usage
from orchestratord.domain.pool import Lease, Pool, PoolSpec
from orchestratord.domain.roster import Roster
from orchestratord.domain.session import Sessions
from orchestratord.domain.task import Task
from orchestratord.domain.trust import TrustPolicy
from orchestratord.domain.views import terminal_payload, transcript_source

FLUSH_BYTES = 64 * 1024  # the journal lags a stream by no more than this


class Lives:
    """The state of the core, and every step that moves an admitted task on."""

    def __init__(self, pools: list[PoolSpec], limits: Limits, hooks: Hooks, trust: TrustPolicy | None = None) -> None:
        self.catalog = Catalog(hooks.record, trust or TrustPolicy(), self._catalog_changed)
        self.pools = {spec.id: Pool(spec) for spec in pools}
        self.limits = limits
        self.sessions = Sessions(limits.session_ttl_s, limits.turns_max, limits.budget)
        self.tasks = Roster()
        self.closing: dict[str, Ticket] = {}  # the undecided `Admitted` or `Finished` of a task
        self._hooks = hooks
        self._untold: dict[str, tuple[str, CancelReason | None]] = {}  # ends of tasks whose admission is undecided

    def _catalog_changed(self) -> None:
        """What may be used has changed."""
        self._hooks.wake()

    def _gate(self, task: Task, fact: Fact, then: Callable[[Task, Ticket], None]) -> Ticket:
        """Record a fact that somebody waits for; `closing` knows its ticket until it is decided."""
        ticket = self._hooks.record(fact)
        self.closing[task.task_id] = ticket
        ticket.add_done_callback(partial(self._decided, task, then))
        return ticket

    def _decided(self, task: Task, then: Callable[[Task, Ticket], None], ticket: Ticket) -> None:
        if self.closing.get(task.task_id) is ticket:
            del self.closing[task.task_id]
        then(task, ticket)

    # -- output ------------------------------------------------------------------------------------------
    def inlet(self, lease: Lease) -> Inlet:
        """What takes the texts of a completion that come one by one, between calls of `output`."""
        return Inlet(lease.task, self._hooks.token_form, self._hooks.quote)

    def output(self, lease: Lease, texts: Any, results: Any, tokens_out: int, now: float, wall_ms: int) -> bool:
        """Append what one read from the engine brought. False when the task is over: stop reading."""
        task = lease.task
        log = task.log
        if log.sealed is not None:
            return False
        if tokens_out:
            task.tokens_out = tokens_out
        if not texts and not results:
            return True
        if task.first_token is None:
            self._first_output(task, lease, now, wall_ms)
        task.last_output = now
        index = task.token_frames
        # A frame holds at least one token, so more frames are more tokens.
        room = task.admitted.request.max_tokens - index
        excess = len(texts) > room
        frames = self._hooks.tokens(log.next_id, texts[:room] if excess else texts, index)
        task.token_frames = index + len(frames)
        event_id = log.next_id + len(frames)
        for payload in results:
            frame = self._hooks.encode(event_id, "result", payload)
            frames.append(frame)
            lease.replica.saw_result(task.request.workload, len(frame))
            event_id += 1
        log.append(*frames)
        size = log.size
        if size - task.journaled > FLUSH_BYTES:
            self._record_tail(task)
        if log.flowing:
            log.brim = min(task.journaled + FLUSH_BYTES, self.limits.task_bytes)
        if excess:
            asked = f"The engine went on after the {task.request.max_tokens} tokens it was asked for."
            self._fail(task, "WORKER_RESET", asked, now, wall_ms, retriable=True)
            return False
        if size > self.limits.task_bytes:
            self._outgrew(task, now, wall_ms)
            return False
        return True

    def _outgrew(self, task: Task, now: float, wall_ms: int) -> None:
        """Its output is more than a log may have. Nobody could know before: of an embedding that is a first time."""
        less = "fewer tokens" if task.request.workload == "completion" else "fewer inputs"
        limit = self.limits.task_bytes
        failure = Failure(
            "INVALID_PARAMS",
            f"The output passed {limit} bytes, the limit of one task. Ask for {less}, in several tasks.",
            task.request.engine,
            details={"rule": "output_exceeds_limit", "limit": limit},
        )
        self.fail(task, failure, now, wall_ms)

    def _first_output(self, task: Task, lease: Lease, now: float, wall_ms: int) -> None:
        task.move(TaskState.RUNNING)
        task.first_token, task.first_token_ms = now, wall_ms
        assert task.started_ms is not None
        ticket = self._hooks.record(
            Started(
                task.task_id,
                lease.pool.id,
                lease.replica.id,
                lease.replica.engine_version,
                lease.replica.model_digest,
                task.started_ms,
                wall_ms,
            )
        )
        ticket.add_done_callback(partial(self._opened, task))

    def _opened(self, task: Task, ticket: Ticket) -> None:
        if ticket.exception() is None:
            task.log.open()
        elif not task.terminal and task.last_output is not None:
            self._fail(
                task,
                "STORAGE_UNAVAILABLE",
                "The journal failed while the task was starting.",
                task.last_output,
                task.first_token_ms or task.admitted.created_ms,
                retriable=True,
            )

    def flush(self, task: Task, now: float) -> None:
        """Hand the journal the frames it has not seen yet; that there are some shows that the engine is alive."""
        if task.log.size > task.journaled and task.state in (TaskState.RUNNING, TaskState.STARTING):
            task.last_output = now
            self._record_tail(task)

    def _record_tail(self, task: Task) -> None:
        start = max(task.journaled, task.log.offset_after(1))  # `started` rides in `Admitted`
        if task.log.size > start:
            self._hooks.record(Frames(task.task_id, task.log.raw(start)))
        task.journaled = task.log.size

    # -- ends --------------------------------------------------------------------------------------------
    def finish(
        self,
        lease: Lease,
        now: float,
        wall_ms: int,
        *,
        finish_reason: FinishReason | None = None,
        usage: Usage | None = None,
        failure: Failure | None = None,
        slot_free: bool = True,
    ) -> None:
        """The run of `lease` is over. The outcome counts only if the task is still open.

        A slot that could not be proven free (`slot_free` false) stays taken until `release`.
        """
        task = lease.task
        lease.pool.stay.used_at = now
        lease.quarantined = not slot_free
        if slot_free:
            self.release(lease)
        else:
            self._let_go(lease)
        if task.terminal:
            return
        if usage is not None:
            task.usage = usage
        if failure is None:
            lease.replica.breaker.succeeded()
            assert finish_reason is not None, "a run ends with a finish reason or a failure"
            self._terminate(task, TaskState.ENDED, now, wall_ms, finish_reason=finish_reason, phase="running")
            self._observe(lease, now)  # last: what is learnt from a task must not be able to keep it from ending
        else:
            self._terminate(task, TaskState.FAILED, now, wall_ms, failure=failure, phase="running")

    def blame(self, lease: Lease, fault: Fault, now: float) -> bool:
        """The engine behind this lease failed its task. True when that opened the replica's breaker."""
        replica = lease.replica
        if replica.incarnation != lease.incarnation or not replica.breaker.failed(now):
            return False
        replica.reason = fault.message
        replica.last_error = lease.pool.last_error = fault
        return True

    def retry(self, lease: Lease, not_before: float, *, slot_free: bool = True) -> None:
        """The lease came to nothing before any output: its task gets another one, elsewhere if it can.

        Not before `not_before` (monotonic seconds), and then before everybody who waits.
        """
        task = lease.task
        assert task.state is TaskState.STARTING, "output was seen: it must not be made a second time"
        lease.quarantined = not slot_free
        task.tried = (*task.tried, lease.replica.id)
        task.not_before = not_before
        task.retrying = True
        lease.pool.queue.again(task)
        if slot_free:
            self.release(lease)
        else:
            self._let_go(lease)
        self._hooks.wake()

    def _observe(self, lease: Lease, now: float) -> None:
        task = lease.task
        assert task.started is not None
        units = task.tokens_out if task.request.workload == "completion" else task.request.units
        pool, took_ms = lease.pool, (now - task.started) * 1000
        pool.service.observe(task.request, units, took_ms, pool.slots, now)
        session = self.sessions.get(task.session_id, now)
        keeps = task.request.kv_hint != "cold" and task.request.workload == "completion"
        if session is not None and keeps and "prefix_cache" in lease.replica.features:
            session.warm, session.kv_tokens = lease.prefix, tokens_left(task.usage)

    def release(self, lease: Lease) -> None:
        """The slot is known to be free."""
        if lease.replica.give_back(lease):
            self._hooks.wake()
            self._let_go(lease)

    @staticmethod
    def _let_go(lease: Lease) -> None:
        for tell in tuple(lease.pool.on_release):
            tell()

    def cancel(self, task: Task, reason: CancelReason, now: float, wall_ms: int) -> int:
        """End the task now: nothing is appended above the id this returns, that of the terminal event.

        On a task that is over already it changes nothing.
        """
        if not task.terminal:
            phase = "queued" if task.state is TaskState.QUEUED else "running"
            self.pools[task.pool_id].queue.remove(task)
            self._terminate(
                task, TaskState.CANCELED, now, wall_ms, finish_reason="canceled", phase=phase, reason=reason
            )
            self._abort(task)
        assert task.log.terminal_id is not None
        return task.log.terminal_id

    def fail(self, task: Task, failure: Failure, now: float, wall_ms: int, reason: CancelReason | None = None) -> None:
        """End an open task, queued or leased, with an error."""
        if not task.terminal:
            phase = "queued" if task.state is TaskState.QUEUED else "running"
            self.pools[task.pool_id].queue.remove(task)
            self._terminate(task, TaskState.FAILED, now, wall_ms, failure=failure, phase=phase, reason=reason)
            self._abort(task)

    def _fail(self, task: Task, code: str, message: str, now: float, wall_ms: int, *, retriable: bool = False) -> None:
        self.fail(task, Failure(code, message, task.request.engine, retriable), now, wall_ms)

    def _terminate(
        self,
        task: Task,
        state: TaskState,
        now: float,
        wall_ms: int,
        *,
        phase: str,
        finish_reason: FinishReason | None = None,
        failure: Failure | None = None,
        reason: CancelReason | None = None,
        terminal_id: int | None = None,
    ) -> None:
        task.log.seal()
        task.move(state)
        task.ended, task.ended_ms = now, wall_ms
        task.finish_reason, task.failure = finish_reason, failure
        task.decode_ms = int((now - task.first_token) * 1000) if task.first_token is not None else 0
        event_id = task.log.next_id if terminal_id is None else terminal_id
        frame = self._hooks.encode(event_id, "error" if failure else "end", terminal_payload(task))
        self._record_tail(task)
        task.log.close(frame, event_id)
        if task.committed:
            self._hooks.ended(task, phase, reason)
        else:
            self._untold[task.task_id] = phase, reason
        used = self._used(task)
        finished = Finished(
            task_id=task.task_id,
            state=state,
            usage=task.usage,
            used=used,
            finish_reason=finish_reason,
            failure=failure,
            ended_ms=wall_ms,
            terminal_id=event_id,
            terminal_frame=frame,
            transcript=transcript_source(task) if self.limits.transcripts else None,
        )
        self._gate(task, finished, self._closed)
        self.sessions.task_ended(task.session_id, task.admitted.held, used, now)
        self.tasks.retire(task)
        self._hooks.wake()

    def _used(self, task: Task) -> Amounts:
        """What the task is charged: the engine's counts, the bound where it gave none, nothing for one that waited."""
        if task.started is None or task.ended is None or task.retrying:
            return Amounts()
        known = task.tokens_in
        tokens_in = task.admitted.prompt_bound if known is None else known
        milliseconds = int((task.ended - task.started) * 1000)
        cost = self.limits.tariff.cost(tokens_in, task.tokens_out)
        return Amounts(tokens_in + task.tokens_out, milliseconds, cost).capped(task.admitted.held)

    def _closed(self, task: Task, ticket: Ticket) -> None:
        if ticket.exception() is None and (artifact := ticket.result()) is not None:
            task.transcript_id = artifact.id
            self.tasks.owed.add(task.task_id)
            self._hooks.archive(task.task_id, artifact)
        task.unsaved = ticket.exception() is not None
        task.log.reveal()  # a journal that failed must not leave a reader hanging
        if ticket.exception() is None:
            self.tasks.keep_log(task)

    def saved_late(self, task_id: str, artifact: Any) -> None:
        """The end of this task is durable after all; readers have seen it long ago."""
        task = self.tasks.get(task_id)
        if artifact is not None:
            if task is not None:
                task.transcript_id = artifact.id
                self.tasks.owed.add(task_id)
            self._hooks.archive(task_id, artifact)
        if task is not None:
            task.unsaved = False
            self.tasks.keep_log(task)

    def _abort(self, task: Task) -> None:
        """What still runs for a task that is over."""
        if task.replica_id is not None and (pool := self.pools.get(task.pool_id)) is not None:
            for lease in [lease for lease in pool.leases if lease.task is task]:
                self._hooks.abort(lease)
