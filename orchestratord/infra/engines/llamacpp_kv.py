"""What tokens take in llama-server's KV cache. It says so nowhere but in its log: computed from the model's header and
the options of the server, for one that the daemon started. Where that is not certain there is no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from orchestratord.domain.kv import KvLayout
from orchestratord.infra.engines.gguf_header import read_header
from orchestratord.infra.engines.llamacpp_process import environment
from orchestratord.ports import ProcessSpec

# Bytes of 32 numbers, which are a block: some have a scale, and an offset.
TYPES = {
    "f32": 128,
    "f16": 64,
    "bf16": 64,
    "q8_0": 34,
    "q5_1": 24,
    "q5_0": 22,
    "q4_1": 20,
    "q4_0": 18,
    "iq4_nl": 18,
}
# Every n-th layer keeps all, the others their window. Known to llama.cpp by the name of the architecture; newer files
# say it themselves.
PATTERNS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4}
# What makes the cache another one than is computed here: compressed, shared between layers, or recurrent in part.
OTHERWISE = (
    "attention.key_length_mla",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
    "nextn_predict_layers",
    "full_attention_interval",
)
VARIABLES = frozenset({"LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V", "LLAMA_ARG_SWA_FULL"})
FLAGS = {"-ctk": "k", "--cache-type-k": "k", "-ctv": "v", "--cache-type-v": "v"}


def kv_layout(path: str, process: ProcessSpec) -> KvLayout | None:
    """Of the model at `path` in a server started as `process`; None where it is not known. Off the event loop."""
    kinds = _cache_types(process)
    if kinds is None:
        return None
    try:
        header = read_header(path)
    except (OSError, ValueError):
        return None
    return layout(header, *kinds, all_in_full="--swa-full" in process.extra_args)


def _cache_types(process: ProcessSpec) -> tuple[str, str] | None:
    """The types of its K and V cache; None if something else decides than its options."""
    args = process.extra_args
    if "--override-kv" in args or not VARIABLES.isdisjoint(environment(process)):
        return None
    kinds = {"k": "f16", "v": "f16"}
    for flag, value in pairwise(args):
        if flag in FLAGS:
            kinds[FLAGS[flag]] = value
    return kinds["k"], kinds["v"]


def layout(header: Mapping[str, Any], k: str, v: str, *, all_in_full: bool = False) -> KvLayout | None:
    """From what a model's header says, and the types of K and V."""
    arch = header.get("general.architecture")

    def said(name: str) -> Any:
        return header.get(f"{arch}.{name}")

    layers, heads = said("block_count"), said("attention.head_count")
    if k not in TYPES or v not in TYPES or not layers or not heads or any(said(name) for name in OTHERWISE):
        return None
    kv_heads = _per_layer(said("attention.head_count_kv") or heads, layers)
    width = (said("embedding_length") or 0) // max(heads if isinstance(heads, list) else [heads])
    windowed = _windowed(str(arch), layers, said) if not all_in_full else [False] * layers
    recurrent = any(name.startswith(f"{arch}.ssm.") for name in header)
    if kv_heads is None or windowed is None or (recurrent and 0 not in kv_heads):
        return None
    key, value = said("attention.key_length") or width, said("attention.value_length") or width
    full = small = 0
    for heads_there, in_window in zip(kv_heads, windowed, strict=True):
        size = heads_there * (key * TYPES[k] + value * TYPES[v]) // 32
        if in_window:
            small += size
        else:
            full += size
    window = said("attention.sliding_window") or 0
    return KvLayout(full, ((window, small),) if small else ()) if full or small else None


def _per_layer(value: Any, layers: int) -> list[int] | None:
    """One number is that of every layer."""
    values = value if isinstance(value, list) else [value] * layers
    return values if len(values) == layers else None


def _windowed(arch: str, layers: int, said: Any) -> Sequence[bool] | None:
    """Which layers keep their window only; None if that is not known."""
    if not said("attention.sliding_window"):
        return [False] * layers
    pattern = said("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return [bool(flag) for flag in pattern] if len(pattern) == layers else None
    every = pattern or PATTERNS.get(arch)
    return [layer % every < every - 1 for layer in range(layers)] if every else None
