"""How to run the real servers of the on-demand environments, as the daemon does: by ProcessSpec."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from orchestratord.infra.process import Child, ProcessHost
from orchestratord.ports import Engine, EngineError, ProcessSpec
from tests.engines.real import triton_repo, venvs
from tests.engines.support import CLOCK

START_S = 180.0
CTX = 2048
SHORT_CTX = 512  # what the tiny BERTs hold
TINY_HF = Path(__file__).with_name("tiny_hf.py")


@cache
def triton_process(folder: Path, *, broken: bool = False) -> dict[str, Any]:
    """The replica's `process` for a Triton with the toy models in `folder`; with one that fails to load if `broken`."""
    python = venvs.python("triton")
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = python.parents[1] / "lib" / f"python{minor}" / "site-packages"
    home = site / "pytriton" / "tritonserver"
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copy(home / "python_backend_stubs" / minor / stub.name, stub)
    if not folder.exists():
        triton_repo.make(folder)
    models = ["ensemble", "vllm_model", *(["broken"] if broken else [])]
    return {
        "model_path": str(folder),
        "binary": str(home / "bin" / "tritonserver"),
        "slots": 4,
        "ctx": CTX,
        "extra_args": [
            f"--backend-directory={home / 'backends'}",
            "--model-control-mode=explicit",
            "--exit-on-error=false",
            *(f"--load-model={model}" for model in models),
        ],
        # Its stub loads the interpreter as a library: it must be the one the packages were installed for.
        "env": {
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "PYTHONPATH": str(site),
            "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        },
    }


@cache
def tiny_models(folder: Path) -> Path:
    """The tiny models in the Hugging Face layout, made once."""
    if not folder.exists():
        subprocess.run([venvs.python("vllm"), TINY_HF, folder], check=True, capture_output=True)
    return folder


def vllm_process(model: Path, *extra: str, ctx: int = CTX) -> dict[str, Any]:
    """The replica's `process` for a vLLM on the CPU with a tiny model; `extra` options."""
    small = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20))
    return {
        "model_path": str(model),
        "binary": str(venvs.python("vllm")),
        "slots": 4,
        "ctx": ctx,
        "extra_args": [*small, *extra],
        "env": {"HF_HUB_OFFLINE": "1"},
    }


def spec(driver: str, process: dict[str, Any]) -> ProcessSpec:
    given = {"threads": 1, "device_mask": None, **process, "extra_args": tuple(process["extra_args"])}
    return ProcessSpec(driver=driver, **given)


async def until_ready(engine: Engine, child: Child) -> list[str]:
    """Wait for the model; the different reasons why it was not ready yet."""
    reasons: list[str] = []
    async with CLOCK.limit(START_S):
        while True:
            if child.returncode is not None:
                raise AssertionError("the server ended:\n" + "\n".join(child.tail()))
            try:
                reason = await engine.ready()
            except EngineError as error:
                reason = error.kind
            if reason is None:
                return reasons
            if reason not in reasons:
                reasons.append(reason)
            await CLOCK.sleep(0.05)


@asynccontextmanager
async def server(driver: str, process: dict[str, Any]) -> AsyncIterator[Child]:
    """A server that was started; it may still be loading."""
    child = await ProcessHost(CLOCK).start(spec(driver, process))
    try:
        yield child
    finally:
        await asyncio.shield(child.stop(10))
