"""How to run NVIDIA Triton as a child process: `model_path` is its model repository. Options checked against 2.51."""

from __future__ import annotations

import os
import shutil

from orchestratord.ports import ProcessSpec


def command(spec: ProcessSpec, port: int) -> list[str]:
    """The command line of a server on 127.0.0.1:`port`. Raises OSError."""
    if spec.mode != "completion":
        raise OSError(f"the Triton driver has no {spec.mode}: leave `mode` out")
    binary = spec.binary or shutil.which("tritonserver")
    if binary is None:
        raise FileNotFoundError("no tritonserver found: put it on PATH, or name it in the replica's `binary`")
    return [
        binary,
        f"--model-repository={spec.model_path}",
        *("--http-address=127.0.0.1", f"--http-port={port}"),
        "--allow-grpc=false",
        "--allow-metrics=false",  # their ports are fixed: two servers on one machine would clash
        "--exit-timeout-secs=4",
        *spec.extra_args,
    ]


def environment(spec: ProcessSpec) -> dict[str, str]:
    """The environment of the child: ours, the device mask, then the replica's own."""
    mask = {} if spec.device_mask is None else {"CUDA_VISIBLE_DEVICES": spec.device_mask}
    return {**os.environ, **mask, **spec.env}
