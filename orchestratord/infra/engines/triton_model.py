"""A model on a Triton server as its metadata and configuration describe it, and how it wants to be asked.

Two dialects of field names are common: `max_tokens` and one input per knob (TensorRT-LLM), or one JSON text
`sampling_parameters` (vLLM backend). The model's inputs tell which one it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines.plumbing import Count, read
from orchestratord.ports import EngineError, Job

CTX_PARAMETERS = ("ctx", "max_model_len", "max_seq_len")
# Our knob -> its input on a model of the TensorRT-LLM kind, or its key in a vLLM model's sampling_parameters.
KNOBS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
SWITCHES = ("exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens", "return_finish_reason")


class _Tensor(msgspec.Struct):
    name: str


class _Metadata(msgspec.Struct):
    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    versions: list[str] = []


class _Instances(msgspec.Struct):
    count: Count = 1


class _Parameter(msgspec.Struct):
    string_value: str = ""


class _Config(msgspec.Struct):
    max_batch_size: int = 0
    instance_group: list[_Instances] = []
    parameters: dict[str, _Parameter] = {}


@dataclass(frozen=True, slots=True)
class Model:
    """A model to ask, and how it wants to be asked."""

    name: str
    version: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    ctx: int
    slots: int

    @property
    def one_text(self) -> bool:
        """The vLLM dialect: all knobs in one JSON text, counts of each response instead of running ones."""
        return "max_tokens" not in self.inputs

    @property
    def says_why(self) -> bool:
        """It tells why it stopped, when asked."""
        return "finish_reason" in self.outputs

    @property
    def knobs(self) -> frozenset[str]:
        """`stop` is always among them: we cut the text ourselves."""
        taken = KNOBS if self.one_text else {ours: theirs for ours, theirs in KNOBS.items() if theirs in self.inputs}
        return frozenset({*taken, "stop"})

    def request(self, job: Job) -> dict[str, Any]:
        """The body of POST /v2/models/NAME/generate_stream."""
        knobs = _knobs(job.sampling)
        body: dict[str, Any] = {"text_input": job.prompt, "stream": True}
        body |= {name: True for name in SWITCHES if name in self.inputs}
        stops = list(job.sampling.stop or ())
        if self.one_text:
            settings = {"max_tokens": job.max_tokens, "seed": job.seed, **knobs, **({"stop": stops} if stops else {})}
            return {**body, "sampling_parameters": msgspec.json.encode(settings).decode()}
        if job.sampling.temperature == 0 and "top_k" in self.inputs:
            knobs = {name: value for name, value in knobs.items() if name not in ("temperature", "top_p", "top_k")}
            knobs["top_k"] = 1  # how TensorRT-LLM is told to be greedy
        seed = next((name for name in ("seed", "random_seed") if name in self.inputs), None)
        return {
            **body,
            "max_tokens": job.max_tokens,
            **knobs,
            **({seed: job.seed} if seed else {}),
            **({"stop_words": stops} if stops and "stop_words" in self.inputs else {}),
        }


def _knobs(sampling: Sampling) -> dict[str, Any]:
    given = ((theirs, getattr(sampling, ours)) for ours, theirs in KNOBS.items())
    return {name: value for name, value in given if value is not None}


def describe(metadata: Any, config: Any, *, ctx: int | None, slots: int | None) -> Model:
    """The model of these two documents; `ctx` and `slots` as the operator gives them. Raises EngineError(protocol)."""
    known = read(_Metadata, metadata, "the model's metadata")
    setup = read(_Config, config, "the model's configuration")
    inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (known.inputs, known.outputs))
    if "text_input" not in inputs or "text_output" not in outputs:
        raise EngineError(
            "protocol", f"model {known.name} takes no text_input or gives no text_output: it does not write"
        )
    if not inputs & {"max_tokens", "sampling_parameters"}:
        raise EngineError("protocol", f"model {known.name} takes neither max_tokens nor sampling_parameters")
    instances = sum(group.count for group in setup.instance_group) or 1
    return Model(
        name=known.name,
        version=known.versions[-1] if known.versions else "",
        inputs=frozenset(inputs),
        outputs=frozenset(outputs),
        ctx=ctx or _ctx(known.name, setup.parameters),
        slots=slots or instances * max(1, setup.max_batch_size),
    )


def _ctx(name: str, parameters: Mapping[str, _Parameter]) -> int:
    for key in CTX_PARAMETERS:
        value = parameters[key].string_value if key in parameters else ""
        if value.isdigit() and int(value):
            return int(value)
    raise EngineError(
        "protocol",
        f"the configuration of model {name} does not say how many tokens its context holds: give the replica "
        f'`options = {{ ctx = ... }}`, or the model a parameter "{CTX_PARAMETERS[0]}" in its config.pbtxt',
    )
