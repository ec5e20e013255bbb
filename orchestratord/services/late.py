"""What admission could not ask an engine that was not loaded is asked when the task has its slot."""

from __future__ import annotations

from dataclasses import replace

from orchestratord.domain.pool import Lease
from orchestratord.domain.request import TaskRequest
from orchestratord.ports import Engine, EngineError


class Unfit(EngineError):
    """The loaded model cannot do what the task asks for. `rule` is the contract's, as a 400 would have named it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__("refused", message)
        self.rule = rule


def assumed_bound(request: TaskRequest) -> int:
    """An upper bound of the prompt tokens of a task that will run: more than fit will not."""
    if request.workload == "completion":
        room = max(0, request.ctx - request.max_tokens)
        return room if request.prompt is None else min(_bytes(request.prompt), room)
    query = request.prompt or ""
    return sum(min(_bytes(f"{query} {text}"), request.ctx) for text in request.inputs or ())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass")) + 8  # every vocabulary falls back to bytes


def unknown_knob(request: TaskRequest, honoured: frozenset[str] | set[str]) -> str | None:
    """A knob of the request that an engine with these features would drop in silence."""
    return next((knob for knob in request.sampling.given if knob not in honoured), None)


async def prepared(engine: Engine, lease: Lease) -> TaskRequest:
    """The request of a task that is not `sized`, as the engine can take it. Raises Unfit and EngineError."""
    request, replica = lease.task.request, lease.replica
    if (knob := unknown_knob(request, set(replica.features))) is not None:
        raise Unfit("unsupported_sampling", f"{request.model_ref} cannot honour sampling.{knob}. Leave it out.")
    if request.messages is not None:
        if not replica.chat_template:
            raise Unfit("no_chat_template", f"{request.model_ref} has no chat template. Send `prompt` instead.")
        request = replace(request, prompt=await engine.render(request.messages), messages=None)
    completion = request.workload == "completion"
    room = request.ctx - request.max_tokens if completion else request.ctx
    query = f"{request.prompt} " if request.workload == "rerank" else ""
    for text in [request.prompt or ""] if completion else [query + text for text in request.inputs or ()]:
        if engine.bound(text) > room and (tokens := await engine.tokenize(text)) > room:
            raise Unfit(
                "prompt_exceeds_ctx",
                f"An input has {tokens} tokens and there is room for {room}. Shorten it, or raise ctx if the model "
                "allows.",
            )
    return request


def sized(lease: Lease) -> bool:
    """Whether admission has asked an engine of this pool all there is to ask."""
    task = lease.task
    return not (lease.pool.spec.on_demand or task.request.messages is not None or task.pool_id != task.admitted.pool_id)
