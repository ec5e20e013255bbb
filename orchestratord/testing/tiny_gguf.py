"""Tiny GGUF models with random weights: a real llama-server loads one in well under 0.2 s.

The text they write is nonsense, but tokenizer, sampler, KV cache and HTTP behaviour are the real thing. The same
arguments always give the same bytes. Needs the packages `gguf` and `numpy`.

    python -m orchestratord.testing.tiny_gguf OUT [--ctx N] [--eos] [--seed N]
"""

from __future__ import annotations

import argparse
import itertools
from os import PathLike

import gguf
import numpy as np
import numpy.typing as npt

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 64, 2, 4, 2, 128
SPECIALS = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
SPACE = "\u2581"  # how SentencePiece writes a space
# Characters of two, three and four bytes: streams must survive them at any cut.
FOREIGN = ("größe", "été", "мир", "東京", "한국", "🙂", "👩‍🔬")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Weights = npt.NDArray[np.float32]


def _vocabulary() -> list[str]:
    """Specials, one token per byte (so every text can be encoded), words, printable ASCII."""
    syllables = [a + b for a, b in itertools.product("bdfgklmnprst", "aeiou")]
    words = syllables + [a + b for a, b in itertools.product(syllables, syllables[::4])]
    return [
        *SPECIALS,
        *BYTES,
        SPACE,
        *(SPACE + word for word in words),
        *(SPACE + word for word in FOREIGN),
        *(chr(code) for code in range(33, 127)),
    ]


def _kind(token: str) -> gguf.TokenType:
    if token == SPECIALS[0]:
        return gguf.TokenType.UNKNOWN
    if token in SPECIALS:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if token in BYTES else gguf.TokenType.NORMAL


def _tensors(rng: np.random.Generator, vocabulary: int, eos: bool) -> dict[str, Weights]:
    """Every weight of the model by its GGUF name."""

    def normal(*shape: int, scale: float) -> Weights:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    # Output rows of specials and bytes stay zero: greedy decoding never picks one, sampling rarely does.
    head = normal(vocabulary, WIDTH, scale=0.35)
    head[: len(SPECIALS) + len(BYTES)] = 0
    if eos:
        head[EOS] = normal(WIDTH, scale=0.6)
    tensors = {
        "token_embd.weight": normal(vocabulary, WIDTH, scale=1.0),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": head,
    }
    kv_width = WIDTH * KV_HEADS // HEADS
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", kv_width, WIDTH),
            ("attn_v", kv_width, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", HIDDEN, WIDTH),
            ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ):
            tensors[f"blk.{layer}.{name}.weight"] = normal(rows, columns, scale=columns**-0.5)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def tiny_llama(
    path: str | PathLike[str], *, ctx: int = 4096, eos: bool = False, seed: int = 1, template: bool = True
) -> None:
    """Write a llama-architecture model of about 0.8 MB to `path`.

    ctx: tokens it was "trained" for. eos: whether it may end its text by itself; otherwise only max_tokens or a
    stop string ends it. seed: of the weights. template: whether it carries a chat template.
    """
    tokens = _vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-llama")
    writer.add_context_length(ctx)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(token) for token in tokens])
    writer.add_token_scores([float(-index) for index in range(len(tokens))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if template:
        writer.add_chat_template(TEMPLATE)
    for name, weights in _tensors(np.random.default_rng(seed), len(tokens), eos).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model with random weights.")
    parser.add_argument("out")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--eos", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    tiny_llama(given.out, ctx=given.ctx, eos=given.eos, seed=given.seed)


if __name__ == "__main__":
    main()
