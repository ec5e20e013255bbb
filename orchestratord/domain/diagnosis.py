"""Diagnosis: why an engine died, from its exit code and its last lines, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals

OTHER = "ENGINE_EXITED"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`code` is the finer word of a Fault; `line` the engine's own, where one gave it away."""

    code: str
    message: str


# (code, what the engine says, what that means and what to do), the most telling first: an engine that ran out of
# memory also says that it could not load its model.
_TABLE: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (code, re.compile(pattern, re.IGNORECASE), advice)
    for code, pattern, advice in (
        (
            "DRIVER_RESET",
            r"ErrorDeviceLost|DeviceLostError|device lost|unspecified launch failure|illegal memory access"
            r"|fallen off the bus|uncorrectable ECC|cudaErrorDevicesUnavailable|context is lost|\bXid\b",
            "The driver reset the device, or lost it. It is tried again; if that goes on, look at the kernel's log, "
            "the driver's version and the card's power and temperature.",
        ),
        (
            "VRAM_OOM",
            r"cudaMalloc failed: out of memory|CUDA error: out of memory|CUDA out of memory|OutOfMemoryError"
            r"|ErrorOutOfDeviceMemory|unable to allocate (CUDA|Vulkan|ROCm|SYCL|Metal)\w* buffer"
            r"|failed to allocate (CUDA|Vulkan|ROCm|SYCL|Metal)\w* buffer|hipMalloc failed: out of memory"
            r"|Device memory allocation of size \d+ failed|No available memory for the cache blocks",
            "The model and its KV cache do not fit into the device's memory. Lower ctx or slots, put fewer layers on "
            "the device, take a smaller quantisation, or declare `vram_bytes`, so that nothing is loaded beside it.",
        ),
        (
            "HOST_OOM",
            r"insufficient memory|failed to allocate CPU buffer|failed to allocate buffer of size|std::bad_alloc"
            r"|Cannot allocate memory|\bMemoryError\b|mmap failed",
            "The machine has too little memory for the model and its KV cache. Lower ctx or slots, take a smaller "
            "quantisation, or declare `memory_bytes`, so that nothing is loaded beside it.",
        ),
        (
            "PORT_IN_USE",
            r"couldn't bind|address already in use|failed to bind|EADDRINUSE",
            "Another program took the port first. It is tried again on another one.",
        ),
        (
            "MODEL_INVALID",
            r"failed to open GGUF file|invalid magic|gguf_init|error loading model|failed to load model"
            r"|is not a valid (model|json) file|unknown model architecture",
            "The model file is missing, damaged or of a kind this engine does not load. Check `model_path`, and the "
            "file's size and digest against its source.",
        ),
        (
            "BAD_OPTION",
            r"unrecognized arguments?|unknown argument|invalid argument: -|error: the following arguments",
            "The engine does not know one of its options. Check `extra_args` against the engine's version.",
        ),
        (
            "BINARY_MISSING",
            r"no llama-server found|No such file or directory: \S+$|Permission denied: \S+$|Exec format error: \S+$",
            "The engine's program cannot be run. Check the replica's `binary`, or install the engine.",
        ),
    )
)


def diagnose(code: int | None, tail: Sequence[str], reason: str = "") -> Diagnosis:
    """Why an engine is gone. `code` as of subprocess (negative: a signal), None if it was never started.

    `reason` is what is known otherwise. The last telling line counts, of it the most telling kind.
    """
    lines = [line for line in (*tail, reason) if line]
    for kind, pattern, advice in _TABLE:
        line = next((line for line in reversed(lines) if pattern.search(line)), None)
        if line is not None:
            return Diagnosis(kind, _sentence(code, line, reason) + advice)
    if code in (-Signals.SIGKILL, 128 + Signals.SIGKILL):
        return Diagnosis(
            "HOST_OOM",
            "The engine was killed (SIGKILL). When nobody did that, the system ran out of memory, and the kernel's log "
            "says so. Lower ctx or slots, or declare `memory_bytes`, so that nothing is loaded beside it.",
        )
    return Diagnosis(OTHER if code is not None else "POOL_UNAVAILABLE", reason or _exit(code))


def _sentence(code: int | None, line: str, reason: str) -> str:
    said = line.strip()[:300]
    if said == reason or code is None:
        return f"{said}. " if not said.endswith(".") else f"{said} "
    return f'{_exit(code)}, and said "{said}". '


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"the engine process died of {Signals(-code).name}"
        except ValueError:
            return f"the engine process died of signal {-code}"
    return f"the engine process exited with code {code}"
