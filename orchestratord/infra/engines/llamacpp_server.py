"""llama-server for machines that have none: the same server out of the `xllamacpp` wheel, as a command.

That wheel carries llama.cpp's own HTTP server as a library and picks its instructions for the CPU it finds, so it runs
where a prebuilt binary may not. Understands the options `llamacpp_process.command` gives and a few more. The difference
from the binary: SIGTERM ends running streams at once.

    python -m orchestratord.infra.engines.llamacpp_server -m MODEL --port N [...]
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from typing import Any

MAGIC = b"GGUF"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llamacpp_server", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-a", "--alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--api-key", action="append", default=[])
    parser.add_argument("-c", "--ctx-size", type=int)
    parser.add_argument("-np", "--parallel", type=int)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-ngl", "--n-gpu-layers", type=int)
    parser.add_argument("-cram", "--cache-ram", type=int)
    parser.add_argument("--sse-ping-interval", type=int)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--reranking", action="store_true")
    parser.add_argument("--pooling", choices=("none", "mean", "cls", "last", "rank"))
    parser.add_argument("-ctk", "--cache-type-k", default="f16")
    parser.add_argument("-ctv", "--cache-type-v", default="f16")
    parser.add_argument("--swa-full", action="store_true")
    parser.add_argument("-lv", "--verbosity", type=int)
    parser.add_argument("--no-slots", action="store_true")
    parser.add_argument("--no-ui", action="store_true")
    return parser


def _settings(given: argparse.Namespace) -> Any:
    """`given` as the library's parameter object; what is not given keeps llama.cpp's default."""
    settings = importlib.import_module("xllamacpp").CommonParams()
    settings.model.path = given.model
    settings.hostnames = [given.host]
    settings.port = given.port
    settings.endpoint_metrics = given.metrics
    settings.endpoint_slots = not given.no_slots
    settings.ui = not given.no_ui
    settings.embedding = given.embeddings or given.reranking
    pooling = "rank" if given.reranking else given.pooling
    if pooling:
        kinds = importlib.import_module("xllamacpp").llama_pooling_type
        settings.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    if given.alias:
        settings.model_alias = {given.alias}
    if given.api_key:
        settings.api_keys = given.api_key
    if given.threads:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = given.threads
    settings.swa_full = given.swa_full
    numbers = importlib.import_module("xllamacpp").ggml_type
    settings.cache_type_k = getattr(numbers, f"GGML_TYPE_{given.cache_type_k.upper()}")
    settings.cache_type_v = getattr(numbers, f"GGML_TYPE_{given.cache_type_v.upper()}")
    for name, value in (
        ("n_ctx", given.ctx_size),
        ("n_parallel", given.parallel),
        ("n_batch", given.batch_size),
        ("n_ubatch", given.ubatch_size),
        ("n_gpu_layers", given.n_gpu_layers),
        ("cache_ram_mib", given.cache_ram),
        ("verbosity", given.verbosity),
        ("sse_ping_interval", given.sse_ping_interval),
    ):
        if value is not None:
            setattr(settings, name, value)
    return settings


def _no_model(path: str) -> str | None:
    """What is plainly wrong with the file. The library says it too, in a thread whose last lines an exit may lose."""
    try:
        with open(path, "rb") as file:
            return None if file.read(len(MAGIC)) == MAGIC else "invalid magic: it is no GGUF file"
    except OSError as error:
        return f"failed to open GGUF file: {error.strerror}"


def main() -> None:
    given = _options().parse_args()
    if (wrong := _no_model(given.model)) is not None:
        sys.exit(f"cannot serve {given.model}: {wrong}")
    ending = {signal.SIGTERM, signal.SIGINT}
    # Before the library starts its threads, so that all of them leave the signals to the wait below.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        server = importlib.import_module("xllamacpp").Server(_settings(given))
    except (ImportError, RuntimeError) as error:
        sys.exit(f"cannot serve {given.model}: {error}")
    signal.sigwait(ending)
    assert server is not None  # referenced until now: its destructor ends the service, and waits for streams
    os._exit(0)


if __name__ == "__main__":
    main()
