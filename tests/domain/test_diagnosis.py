"""Why an engine died: from what real ones said, and from the forms in which drivers say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestratord.domain.diagnosis import diagnose

DEATHS = Path(__file__).parents[1] / "engines" / "deaths"  # llama-server b11549: exit code, then its last lines

RECORDED = {
    "truncated_file": "MODEL_INVALID",
    "not_a_gguf": "MODEL_INVALID",
    "missing_file": "MODEL_INVALID",
    "port_in_use": "PORT_IN_USE",
    "host_out_of_memory": "HOST_OOM",
    "killed": "HOST_OOM",
    "unknown_option": "BAD_OPTION",
}


@pytest.mark.parametrize(("name", "kind"), RECORDED.items())
def test_what_a_real_engine_said(name: str, kind: str) -> None:
    """ORCH-3049."""
    code, *tail = (DEATHS / f"{name}.txt").read_text("utf-8").splitlines()
    found = diagnose(int(code), tail)
    assert found.code == kind
    assert len(found.message) > 60, "what to do about it"


def test_every_recording_is_used() -> None:
    assert {path.stem for path in DEATHS.iterdir()} == set(RECORDED)


# There is no card here to run out of: these are the forms in which CUDA, Vulkan, ROCm and PyTorch say it.
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory", "VRAM_OOM"),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "VRAM_OOM"),
        ("alloc_tensor_range: failed to allocate Vulkan1 buffer of size 123", "VRAM_OOM"),
        ("ggml_vulkan: Device memory allocation of size 123 failed.", "VRAM_OOM"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "VRAM_OOM"),
        ("ValueError: No available memory for the cache blocks.", "VRAM_OOM"),
        ("  what():  vk::Queue::submit: ErrorDeviceLost", "DRIVER_RESET"),
        ("CUDA error: unspecified launch failure", "DRIVER_RESET"),
        ("CUDA error: an illegal memory access was encountered", "DRIVER_RESET"),
        ("ggml_vulkan: device lost on Vulkan0", "DRIVER_RESET"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "HOST_OOM"),
        ("OSError: [Errno 98] Address already in use", "PORT_IN_USE"),
    ],
)
def test_what_drivers_and_runtimes_say(line: str, kind: str) -> None:
    """ORCH-3049: and with a failure to load the model as its consequence it is still told apart."""
    assert diagnose(1, ["starting", line, "llama_model_load: failed to load model"]).code == kind


def test_a_program_that_is_not_there() -> None:
    """ORCH-3049: with what the host says of it, since nothing ran."""
    found = diagnose(None, [], "No such file or directory: /nowhere/llama-server")
    assert (found.code, "/nowhere/llama-server" in found.message) == ("BINARY_MISSING", True)
    assert diagnose(None, [], "no llama-server found: put one on PATH").code == "BINARY_MISSING"


def test_what_tells_nothing_is_not_explained() -> None:
    """An exit code and a signal are told as such, and a lost connection is left as it is."""
    assert diagnose(3, ["bye"]).message == "the engine process exited with code 3"
    assert diagnose(-11, []).message == "the engine process died of SIGSEGV"
    assert diagnose(-250, []).message == "the engine process died of signal 250"
    assert diagnose(None, [], "lost: nothing accepts connections").message == "lost: nothing accepts connections"
    assert diagnose(None, [], "lost: nothing accepts connections").code == "POOL_UNAVAILABLE"


def test_a_kill_in_a_container_shows_too() -> None:
    """A shell in between turns the signal into 137."""
    assert diagnose(137, []).code == "HOST_OOM"
