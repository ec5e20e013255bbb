"""How to run vLLM as a child process. Options checked against 0.32."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from orchestratord.ports import ProcessSpec

_MODULE = "vllm.entrypoints.openai.api_server"


def _program(spec: ProcessSpec) -> list[str]:
    """What to run, the model included. Raises FileNotFoundError that says how to get it."""
    binary = spec.binary or shutil.which("vllm")
    if binary is None and importlib.util.find_spec("vllm"):
        binary = sys.executable
    if binary is None:
        raise FileNotFoundError(
            "no vLLM found: put `vllm` on PATH, or name in the replica's `binary` the `vllm` command or the Python "
            "interpreter of the environment it is installed in"
        )
    if Path(binary).name.startswith("python"):
        return [binary, "-m", _MODULE, "--model", spec.model_path]
    return [binary, "serve", spec.model_path]


def command(spec: ProcessSpec, port: int) -> list[str]:
    """The command line of a server on 127.0.0.1:`port`. Raises FileNotFoundError."""
    return [
        *_program(spec),
        *("--host", "127.0.0.1", "--port", str(port)),
        *(() if spec.mode == "completion" else ("--runner", "pooling")),
        *("--max-model-len", str(spec.ctx), "--max-num-seqs", str(spec.slots)),
        *("--generation-config", "vllm"),  # a model's own defaults would fill in knobs behind our back
        *("--shutdown-timeout", "4"),  # without it SIGTERM leaves streams hanging for ever
        *spec.extra_args,
    ]


def environment(spec: ProcessSpec) -> dict[str, str]:
    """The environment of the child: ours, the device mask, then the replica's own."""
    mask = {} if spec.device_mask is None else {"CUDA_VISIBLE_DEVICES": spec.device_mask}
    own = {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": str(spec.threads)}
    return {**os.environ, **own, **mask, **spec.env}
