"""A model repository for a real Triton: the toy model in both dialects, and one that does not load."""

from __future__ import annotations

import shutil
from pathlib import Path

CTX = 2048
MODEL = Path(__file__).with_name("triton_model.py")
# Input -> type. What TensorRT-LLM's ensemble and the vLLM backend call them.
SHARED = {
    "stream": "BOOL",
    "exclude_input_in_output": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
}
ONE_BY_ONE = {
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "random_seed": "UINT64",
    "stop_words": "STRING",
}
ONE_TEXT = {"sampling_parameters": "STRING", "return_finish_reason": "BOOL"}


def _tensors(kind: str, tensors: dict[str, str], optional: bool) -> str:
    mark = " optional: true" if optional else ""
    dims = {"stop_words": "-1"}
    return "".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{type_} dims: [ {dims.get(name, "1")} ]{mark} }}\n'
        for name, type_ in tensors.items()
    )


def _model(folder: Path, dialect: str, knobs: dict[str, str], outputs: dict[str, str], token_ms: float) -> None:
    parameters = {"max_model_len": CTX, "dialect": dialect, "token_ms": token_ms}
    (folder / "1").mkdir(parents=True)
    shutil.copy(MODEL, folder / "1" / "model.py")
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nbackend: "python"\nmax_batch_size: 0\n'
        "model_transaction_policy { decoupled: true }\n"
        + _tensors("input", {"text_input": "STRING"}, optional=False)
        + _tensors("input", SHARED | knobs, optional=True)
        + _tensors("output", {"text_output": "STRING", **outputs}, optional=False)
        + "instance_group { count: 1 kind: KIND_CPU }\n"
        + "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())
    )


def make(folder: Path, token_ms: float = 1.0) -> None:
    """Write the repository: `ensemble` (a name per knob), `vllm_model` (one text for all), and `broken`."""
    counts = {"num_input_tokens": "INT32", "num_output_tokens": "INT32"}
    _model(folder / "ensemble", "tensorrt_llm", ONE_BY_ONE, counts, token_ms)
    _model(folder / "vllm_model", "vllm", ONE_TEXT, {**counts, "finish_reason": "STRING"}, token_ms)
    _model(folder / "broken", "vllm", ONE_TEXT, counts, token_ms)
    (folder / "broken" / "1" / "model.py").write_text('raise RuntimeError("cannot load weights")\n')
