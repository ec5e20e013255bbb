"""Admission: everything between a valid TaskRequest and the 202, in the order the specification fixes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from orchestratord.domain.core import Core
from orchestratord.domain.errors import InvalidParams, Overloaded, PoolUnready, Refusal, StorageUnavailable
from orchestratord.domain.hooks import Sized
from orchestratord.domain.pool import Pool
from orchestratord.domain.ratelimit import RateLimit
from orchestratord.domain.request import Caller, TaskRequest
from orchestratord.domain.task import Task
from orchestratord.ports import Clock, Engine, EngineError, Journal
from orchestratord.services.durability import durable
from orchestratord.services.late import assumed_bound, unknown_knob
from orchestratord.services.narration import Narrator

T = TypeVar("T")

TOKENIZE_LIMIT_S = 1.0
CACHED_COUNTS = 1024


class Admission:
    def __init__(
        self,
        core: Core,
        clock: Clock,
        journal: Journal,
        narrator: Narrator,
        engine_of: Callable[[Pool], Engine | None],
        profiles: frozenset[str],
        draw_seed: Callable[[], int],
        rate_limit: RateLimit,
        pressed: Callable[[], bool],
    ) -> None:
        self._core = core
        self._clock = clock
        self._journal = journal
        self._narrator = narrator
        self._engine_of = engine_of
        self._profiles = profiles
        self._draw_seed = draw_seed
        self._rate_limit = rate_limit
        self._pressed = pressed
        self._counts: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self.closed = False  # set at shutdown

    def forget_counts(self) -> None:
        """A model has changed: its tokenizer may count otherwise."""
        self._counts.clear()

    async def admit(
        self, request: TaskRequest, fingerprint: bytes, caller: Caller, *, strict_trust: bool = False
    ) -> tuple[Task, bool]:
        """(task, whether this repeats an earlier admission). Returns when the admission is durable.

        Raises a Refusal; a refused task_id is not remembered.
        """
        received = self._clock.now()
        try:
            known = self._core.known(request.task_id, fingerprint)
            if known is None:
                known = await self._decide(request, fingerprint, caller, received, strict_trust=strict_trust)
        except Refusal as refusal:
            self._narrator.rejected(request, refusal, caller)
            raise
        if known is None:
            return self._core.tasks[request.task_id], False
        await self._settled(known)
        return known, True

    async def _decide(
        self, request: TaskRequest, fingerprint: bytes, caller: Caller, received: float, *, strict_trust: bool
    ) -> Task | None:
        """Admit; or, when an equal request got there first while this one was being sized, that one's task."""
        if self.closed:
            raise Overloaded("The server is shutting down. Try again when it is back.", retry_after_ms=2000)
        if not self._journal.healthy:
            raise StorageUnavailable(retry_after_ms=1000)
        if self._pressed():
            raise Overloaded("The memory the daemon may use is nearly full. Try again shortly.", retry_after_ms=1000)
        self._rate_limit.take(caller.identity, self._clock.now())
        serving = self._core.serving(request)
        self._check_meaning(request, serving)
        request, bound = await self._size(request, serving, self._clock.now() + TOKENIZE_LIMIT_S)
        if (known := self._core.known(request.task_id, fingerprint)) is not None:
            return known
        text = request.prompt
        sized = Sized(
            request=request,
            fingerprint=fingerprint,
            seed=self._draw_seed() if request.seed is None else request.seed,
            prompt_bound=bound,
            prompt_sha256=hashlib.sha256(text.encode()).hexdigest() if text is not None else None,
            caller=caller,
            strict_trust=strict_trust,
            waited_s=self._clock.now() - received,
        )
        _, ticket = self._core.admit(sized, self._clock.now(), self._clock.wall_ms())
        await durable(ticket)
        return None

    async def _settled(self, task: Task) -> None:
        """A repeat of an admission that is still being made durable shares its fate."""
        ticket = self._core.closing.get(task.task_id)
        if not task.committed and ticket is not None:
            await durable(ticket)

    # -- semantics ---------------------------------------------------------------------------------------
    def _check_meaning(self, request: TaskRequest, serving: list[Pool]) -> None:
        wrong = _wrong_inputs(request)
        if wrong:
            raise InvalidParams(wrong, rule="inputs_for_workload")
        profile = request.sampler_profile_version
        if profile is not None and profile not in self._profiles:
            raise InvalidParams(
                f"There is no sampler profile {profile!r}. Configured: {', '.join(sorted(self._profiles))}.",
                rule="unknown_profile",
            )
        if request.sampling.json_schema is not None and request.sampling.grammar is not None:
            raise InvalidParams("Give sampling.json_schema or sampling.grammar, not both.", rule="unsupported_sampling")
        self._check_knobs(request, serving)
        placement = request.placement
        if placement.mode == "pin" and placement.pin_pool_id is None:
            raise InvalidParams("placement.mode is pin: name the pool in pin_pool_id.", rule="pin_unknown_pool")
        if request.workload != "completion":
            self._check_output(request, serving)
        limits = [r.ctx for p in serving for r in p.replicas.values() if r.ctx]  # also of one that is down just now
        unknown = any(p.dormant and not p.known_replicas for p in serving)
        if limits and not unknown and request.ctx > max(limits):
            raise InvalidParams(
                f"ctx {request.ctx} is more than {request.model_ref} offers here: at most {max(limits)} tokens.",
                rule="ctx_exceeds_model",
                limit=max(limits),
            )

    def _check_output(self, request: TaskRequest, serving: list[Pool]) -> None:
        """An embedding whose vectors would not fit into one task's log, by the length of those already seen."""
        seen = [r.result_bytes for p in serving for r in p.known_replicas]
        sizes = [size for each in seen if (size := each.get(request.workload))]
        most = self._core.limits.task_bytes // min(sizes) if sizes else None
        if most is not None and len(request.inputs or ()) > most:
            raise InvalidParams(
                f"{len(request.inputs or ())} results of {request.model_ref} would pass the "
                f"{self._core.limits.task_bytes} bytes of one task. Send at most {max(1, most)} inputs at once.",
                rule="output_exceeds_limit",
                limit=max(1, most),
            )

    def _check_knobs(self, request: TaskRequest, serving: list[Pool]) -> None:
        """Engines ignore what they do not know, in silence: a knob that would be dropped is refused."""
        if not request.sampling.given:
            return
        honoured = {f for p in serving for r in p.known_replicas for f in r.features}
        if not honoured or any(p.dormant and not p.known_replicas for p in serving):
            return  # nothing is ready: placement says why, or the run once the model is loaded
        if request.workload != "completion":
            honoured = set()
        if (knob := unknown_knob(request, honoured)) is not None:
            raise InvalidParams(
                f"{request.model_ref} on {request.engine} cannot honour sampling.{knob} for a {request.workload}. "
                "Leave it out.",
                rule="unsupported_sampling",
                field=f"sampling.{knob}",
                engine=request.engine,
            )

    # -- prompt size -------------------------------------------------------------------------------------
    async def _size(self, request: TaskRequest, serving: list[Pool], until: float) -> tuple[TaskRequest, int]:
        """The request with its messages rendered to a prompt, and an upper bound of its prompt tokens.

        until: when the engine must have answered all that it is asked (256 inputs may be as many questions); most often
        it is asked nothing, and nothing is waited for. Refuses, never truncates (ORCH-3016).
        """
        pools = [p for p in serving if p.ready_replicas]
        engine = self._engine_of(pools[0]) if pools else None
        if engine is None:
            return request, assumed_bound(request)  # nothing is ready: placement says why, or the model will be loaded
        if request.workload != "completion":
            return request, await self._check_inputs(engine, request, until)
        if request.messages is not None:
            if not any(r.chat_template for p in pools for r in p.ready_replicas):
                raise InvalidParams(
                    f"{request.model_ref} has no chat template. Send `prompt` instead of `messages`.",
                    rule="no_chat_template",
                )
            rendered = await self._ask(engine.render(request.messages), request, until)
            request = replace(request, prompt=rendered, messages=None)
        tokens = await self._tokens(engine, (request.prompt or "",), request.ctx - request.max_tokens, request, until)
        if tokens + request.max_tokens > request.ctx:
            raise InvalidParams(
                f"The prompt has {tokens} tokens and max_tokens is {request.max_tokens}: together more than "
                f"ctx {request.ctx}. Shorten the prompt, lower max_tokens, or raise ctx if the model allows.",
                rule="prompt_exceeds_ctx",
                tokens_in=tokens,
                max_tokens=request.max_tokens,
                ctx=request.ctx,
            )
        return request, tokens

    async def _check_inputs(self, engine: Engine, request: TaskRequest, until: float) -> int:
        """Each input (for rerank: each pair of query and document) is one prompt of its own; the bound of them all."""
        total = 0
        for index, text in enumerate(request.inputs or ()):
            # Of a pair each text with marks of its own: no fewer than what an engine joins them with.
            texts = (request.prompt or "", text) if request.workload == "rerank" else (text,)
            tokens = await self._tokens(engine, texts, request.ctx, request, until)
            if tokens > request.ctx:
                raise InvalidParams(
                    f"inputs[{index}] has {tokens} tokens, more than ctx {request.ctx}. Shorten it or raise ctx.",
                    rule="prompt_exceeds_ctx",
                    field=f"inputs[{index}]",
                    tokens_in=tokens,
                    ctx=request.ctx,
                )
            total += tokens
        return total

    async def _tokens(
        self, engine: Engine, texts: tuple[str, ...], room: int, request: TaskRequest, until: float
    ) -> int:
        """Of all the texts together: an upper bound if that fits into `room`, else the engine's exact count."""
        bound = sum(map(engine.bound, texts))
        return bound if bound <= room else sum([await self._count(engine, text, request, until) for text in texts])

    async def _count(self, engine: Engine, prompt: str, request: TaskRequest, until: float) -> int:
        key = (request.model_ref, hashlib.sha256(prompt.encode()).digest())
        if (known := self._counts.get(key)) is not None:
            self._counts.move_to_end(key)
            return known
        tokens = await self._ask(engine.tokenize(prompt), request, until)
        self._counts[key] = tokens
        if len(self._counts) > CACHED_COUNTS:
            self._counts.popitem(last=False)
        return tokens

    async def _ask(self, question: Awaitable[T], request: TaskRequest, until: float) -> T:
        """The engine's answer; none in time is a reason to come back, not to guess."""
        try:
            async with self._clock.limit(until - self._clock.now()):
                return await question
        except TimeoutError as error:
            raise self._no_answer(request) from error
        except EngineError as error:
            if error.kind == "refused":
                message = f"The engine refuses this input: {error.message}"
                raise InvalidParams(message, rule="inputs_for_workload", engine=request.engine) from error
            raise self._no_answer(request) from error

    @staticmethod
    def _no_answer(request: TaskRequest) -> PoolUnready:
        return PoolUnready(
            "The engine did not say in time how long the prompt is. Try again shortly.",
            engine=request.engine,
            retry_after_ms=1000,
        )


def _wrong_inputs(request: TaskRequest) -> str | None:
    """What is wrong with the fields that carry the input, or None."""
    prompt, messages, inputs = (x is not None for x in (request.prompt, request.messages, request.inputs))
    if request.workload == "completion":
        if inputs or prompt == messages:
            return "A completion takes exactly one of `prompt` and `messages`, and no `inputs`."
    elif request.workload == "embedding":
        if not inputs or prompt or messages:
            return "An embedding takes `inputs`, and neither `prompt` nor `messages`."
    elif not (prompt and inputs) or messages:
        return "A rerank takes `prompt` (the query) and `inputs` (the documents), and no `messages`."
    return None
