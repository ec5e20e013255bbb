"""Spans of tasks, after the OpenTelemetry conventions for generative AI where these fit.

A task's span is a child of the request that brought it and outlives it: within are the time in the queue and each call
of an engine. What was written stays out: no prompt, no text, no stop string, no words of an engine's error.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestratord.domain.pool import Lease
from orchestratord.domain.task import Task
from orchestratord.ports import Deliver, EngineError, Job, JobEnd

Run = Callable[[Job, Deliver], Awaitable[None]]
OURS = "orchestratord"
OPERATIONS = {"completion": "text_completion", "embedding": "embeddings", "rerank": "rerank"}
KNOBS = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")  # gen_ai.request.*
PROPAGATOR = TraceContextTextMapPropagator()
CLOSE_S = 5.0  # what a collector that does not answer may delay a stop by


@dataclass(slots=True)
class _Open:
    """The spans of a task that is not over."""

    task: Span
    queue: Span | None


class Spans:
    """See `services.tracing.Tracing`. Keeps a span or two per live task."""

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self._provider = provider
        self.tracer = provider.get_tracer(OURS, version)
        self._open: dict[str, _Open] = {}

    def admitted(self, task: Task) -> None:
        request = task.request
        span = self.tracer.start_span(
            f"task {request.workload}",
            attributes={
                **_about(task),
                f"{OURS}.task.priority": request.priority,
                f"{OURS}.task.recovered": task.recovered,
                f"{OURS}.task.queue_position": task.admitted.admission.queue_position,
                f"{OURS}.correlation_id": task.admitted.caller.correlation_id,
            },
        )
        queue = self.tracer.start_span("queue", trace.set_span_in_context(span))
        self._open[task.task_id] = _Open(span, queue)

    def started(self, lease: Lease) -> None:
        if (spans := self._open.get(lease.task.task_id)) is not None:
            _leave_queue(spans)

    async def call(self, lease: Lease, job: Job, run: Run, deliver: Deliver, end: Callable[[], JobEnd | None]) -> None:
        task, spans = lease.task, self._open.get(lease.task.task_id)
        operation = OPERATIONS[job.workload]
        span = self.tracer.start_span(
            f"{operation} {task.request.model_ref}",
            trace.set_span_in_context(spans.task) if spans is not None else Context(),
            SpanKind.CLIENT,
            attributes={**_about(task), **_asked(job), **_where(lease)},
        )
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        try:
            await run(replace(job, trace=carrier), deliver)
        except EngineError as error:
            failed(span, error.kind)
            raise
        except asyncio.CancelledError:
            span.set_attribute("gen_ai.response.finish_reasons", ["canceled"])
            raise
        except Exception as error:
            failed(span, type(error).__qualname__)
            raise
        else:
            if (figures := end()) is not None:
                span.set_attributes(_usage(figures.tokens_in, figures.tokens_out, figures.finish_reason))
            else:  # the task was over first
                span.set_attribute("gen_ai.response.finish_reasons", ["canceled"])
        finally:
            if task.first_token is not None and task.started is not None:
                span.set_attribute("gen_ai.response.time_to_first_chunk", task.first_token - task.started)
            span.end()

    def ended(self, task: Task) -> None:
        spans = self._open.pop(task.task_id, None)
        if spans is None:
            return
        _leave_queue(spans)
        reason = "error" if task.failure is not None else str(task.finish_reason)
        spans.task.set_attributes(_usage(task.usage.tokens_in, task.usage.tokens_out, reason))
        spans.task.set_attribute(f"{OURS}.task.attempts", task.attempts)
        if task.failure is not None:
            failed(spans.task, task.failure.code)
        spans.task.end()

    async def close(self) -> None:
        """Hand over what is left, as far as that goes in time. In a thread that holds up no exit."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # it came too late: the loop is closed
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="tracing-close", daemon=True).start()
        timer = loop.call_later(CLOSE_S, done.set)
        await done.wait()
        timer.cancel()


def _leave_queue(spans: _Open) -> None:
    if spans.queue is not None:
        spans.queue.end()
        spans.queue = None


def failed(span: Span, kind: str) -> None:
    """Mark a span as failed by a word of a closed list: no message, which may quote a prompt."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _about(task: Task) -> dict[str, Any]:
    request = task.request
    return {
        "gen_ai.operation.name": OPERATIONS[request.workload],
        "gen_ai.provider.name": request.engine,
        "gen_ai.request.model": request.model_ref,
        "gen_ai.conversation.id": task.session_id,
        f"{OURS}.task.id": task.task_id,
        f"{OURS}.pool.id": task.pool_id,
    }


def _asked(job: Job) -> dict[str, Any]:
    if job.workload != "completion":
        return {}
    sampling = job.sampling
    given = {f"gen_ai.request.{knob}": value for knob in KNOBS if (value := getattr(sampling, knob)) is not None}
    return {
        "gen_ai.request.max_tokens": job.max_tokens,
        "gen_ai.request.seed": job.seed,
        "gen_ai.output.type": "json" if sampling.json_schema is not None else "text",
        **given,
    }


def _where(lease: Lease) -> dict[str, Any]:
    return {
        f"{OURS}.replica.id": lease.replica.id,
        f"{OURS}.engine.version": lease.replica.engine_version,
        f"{OURS}.task.attempt": lease.task.attempts,
    }


def _usage(tokens_in: int | None, tokens_out: int, reason: str) -> dict[str, Any]:
    known = {} if tokens_in is None else {"gen_ai.usage.input_tokens": tokens_in}
    return {**known, "gen_ai.usage.output_tokens": tokens_out, "gen_ai.response.finish_reasons": [reason]}
