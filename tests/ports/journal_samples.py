"""Facts to feed journals with, and waiting with a guard."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from orchestratord.domain.budget import Amounts
from orchestratord.domain.facts import Admitted, Finished, Started, TranscriptSource
from orchestratord.domain.outcome import Admission, Failure, TaskState, Usage
from orchestratord.domain.placement import Decision
from orchestratord.domain.request import Caller, Message, Sampling, TaskRequest
from orchestratord.ports import Artifact

GUARD_S = 5.0  # real seconds; only ever reached by a broken journal


def admitted(order: int, task_id: str | None = None, prompt: str = "Say something.", **request: Any) -> Admitted:
    return Admitted(
        TaskRequest(
            task_id=task_id or f"task-{order}",
            session_id="session-1",
            workload="completion",
            model_ref="hf:some/model",
            engine="llamacpp",
            ctx=4096,
            priority="interactive",
            max_tokens=16,
            deadline_ms=30_000,
            prompt=prompt,
            sampling=Sampling(temperature=0.7, stop=("\n\n",), json_schema={"type": "object", "x": [1, 2.5]}),
            **request,
        ),
        fingerprint=hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest(),
        order=order,
        seed=7,
        determinism_class="exact",
        admission=Admission(queue_position=1, predicted_start_ms=250, backoff_ms=0),
        decision=Decision("pool-1", 2, ("ctx", "engine"), ("least_loaded",), pinned=False, fallback_used=False),
        pool_id="pool-1",
        created_ms=1_700_000_000_000 + order,
        prompt_sha256=None,
        prompt_bound=12,
        held=Amounts(28, 60_000, 400),
        caller=Caller("corr-1", "localhost"),
        started_frame=b"id: 1\nevent: started\ndata: {}\n\n",
    )


def chat(order: int, *texts: str) -> Admitted:
    return admitted(order, prompt="", messages=tuple(Message("user", text) for text in texts), inputs=("in", "out"))


def started(task_id: str) -> Started:
    return Started(task_id, "pool-1", "replica-1", "b1234", None, 1_700_000_000_100, 1_700_000_000_200)


def finished(task_id: str, transcript: bytes | None = None) -> Finished:
    return Finished(
        task_id,
        TaskState.FAILED,
        Usage(tokens_in=3, tokens_out=5, decode_ms=70),
        used=Amounts(8, 90, 40),
        finish_reason=None,
        failure=Failure("DECODE_TIMEOUT", "too slow", "llamacpp", True, 1000, {"waited_ms": 12.5}),
        ended_ms=1_700_000_000_900,
        terminal_id=7,
        terminal_frame=b"id: 7\nevent: error\ndata: {}\n\n",
        transcript=None
        if transcript is None
        else TranscriptSource(transcript, (f"task:{task_id}",), {"seed": 7}, 1_700_000_000_900),
    )


def archive(source: TranscriptSource) -> Artifact:
    name = hashlib.sha256(source.frames + repr(source.tags).encode()).hexdigest()
    content = {"text": source.frames.decode("latin-1")}
    return Artifact(name, "trace", content, source.tags, None, source.metadata, source.created_ms)


async def within(awaitable: Awaitable[Any]) -> Any:
    task = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({task}, timeout=GUARD_S)
    assert done, f"nothing happened within {GUARD_S} s"
    return task.result()


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + GUARD_S
    while not condition():
        assert loop.time() < end, f"nothing happened within {GUARD_S} s"
        await asyncio.wait({loop.create_future()}, timeout=0.005)
