"""Tiny GGUF models with random weights: a real llama-server loads one in well under 0.2 s.

The text they write is nonsense, but tokenizer, sampler, KV cache and HTTP behaviour are the real thing. The same
arguments always give the same bytes. Needs the packages `gguf` and `numpy`.

    python -m orchestratord.testing.tiny_gguf OUT [--kind llama|embed|rerank] [--ctx N] [--eos] [--seed N]
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
    _tell_vocabulary(writer, tokens)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if template:
        writer.add_chat_template(TEMPLATE)
    _finish(writer, _tensors(np.random.default_rng(seed), len(tokens), eos))


def windowed_gguf(path: str | PathLike[str], *, window: int = 64, layers: int = 7, seed: int = 4) -> None:
    """Write a gemma3-architecture model to `path`: of six layers five keep only the last `window` tokens."""
    rng = np.random.default_rng(seed)
    tokens = _vocabulary()
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_name("tiny-windowed")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    writer.add_sliding_window(window)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _tell_vocabulary(writer, tokens)
    tensors: dict[str, Weights] = {"output_norm.weight": np.ones(WIDTH, np.float32)}
    shapes = {"token_embd": (len(tokens), WIDTH)}
    for layer in range(layers):
        blk = f"blk.{layer}."
        shapes[blk + "attn_q"] = (HEADS * WIDTH, WIDTH)
        shapes[blk + "attn_k"] = shapes[blk + "attn_v"] = (KV_HEADS * WIDTH, WIDTH)
        shapes[blk + "attn_output"] = (WIDTH, HEADS * WIDTH)
        shapes[blk + "ffn_gate"] = shapes[blk + "ffn_up"] = (HIDDEN, WIDTH)
        shapes[blk + "ffn_down"] = (WIDTH, HIDDEN)
        for name in ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors[f"{blk}{name}.weight"] = np.ones(WIDTH, np.float32)
    for name, (rows, columns) in shapes.items():
        weights = rng.standard_normal((rows, columns), dtype=np.float32)
        tensors[f"{name}.weight"] = weights * np.float32(columns**-0.5)
    _finish(writer, tensors)


def _tell_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(token) for token in tokens])
    writer.add_token_scores([float(-index) for index in range(len(tokens))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)


def _finish(writer: gguf.GGUFWriter, tensors: dict[str, Weights]) -> None:
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# -- encoders ----------------------------------------------------------------------------------------------
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(MARKS))


def _word_pieces() -> list[str]:
    """Marks, the words of `tiny_llama`, and every letter and sign, both as a word's beginning and within one."""
    words = [token.removeprefix(SPACE) for token in _vocabulary() if token.startswith(SPACE) and token != SPACE]
    signs = [chr(code) for code in range(33, 127)]
    beginnings = dict.fromkeys(SPACE + word for word in (*words, *signs))
    return [*MARKS, *beginnings, *signs]  # llama.cpp's own spelling: a beginning has the space, the rest has nothing


def _encoder_tensors(rng: np.random.Generator, vocabulary: int, ctx: int, ranks: bool) -> dict[str, Weights]:
    tensors: dict[str, Weights] = {}

    def linear(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32)
        tensors[f"{name}.weight"] = weights * np.float32(scale * columns**-0.5)
        tensors[f"{name}.bias"] = np.zeros(rows, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"{name}.bias"] = np.zeros(WIDTH, np.float32)

    for name, rows, scale in (("token_embd", vocabulary, 1.0), ("token_types", 2, 0.1), ("position_embd", ctx, 0.1)):
        tensors[f"{name}.weight"] = rng.standard_normal((rows, WIDTH), dtype=np.float32) * np.float32(scale)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{name}", WIDTH, WIDTH)
        linear(f"blk.{layer}.ffn_up", HIDDEN, WIDTH)
        linear(f"blk.{layer}.ffn_down", WIDTH, HIDDEN)
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
    if ranks:
        linear("cls", WIDTH, WIDTH, scale=2.0)
        linear("cls.output", 1, WIDTH, scale=4.0)
    return tensors


def _encoder(path: str | PathLike[str], pooling: gguf.PoolingType, ctx: int, seed: int) -> None:
    tokens = _word_pieces()
    ranks = pooling is gguf.PoolingType.RANK
    kinds = [gguf.TokenType.CONTROL] * len(MARKS) + [gguf.TokenType.NORMAL] * (len(tokens) - len(MARKS))
    kinds[UNK] = gguf.TokenType.UNKNOWN
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("tiny-rerank" if ranks else "tiny-embed")
    writer.add_context_length(ctx)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    writer.add_sep_token_id(SEP)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(PAD)
    writer.add_mask_token_id(MASK)
    _finish(writer, _encoder_tensors(np.random.default_rng(seed), len(tokens), ctx, ranks))


def tiny_embed(path: str | PathLike[str], *, ctx: int = 512, seed: int = 2) -> None:
    """Write a BERT-architecture model of about 0.6 MB that embeds, to be served with `--embeddings`."""
    _encoder(path, gguf.PoolingType.MEAN, ctx, seed)


def tiny_rerank(path: str | PathLike[str], *, ctx: int = 512, seed: int = 3) -> None:
    """Write a BERT-architecture model of about 0.6 MB that scores pairs, to be served with `--reranking`."""
    _encoder(path, gguf.PoolingType.RANK, ctx, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model with random weights.")
    parser.add_argument("out")
    parser.add_argument("--kind", choices=("llama", "embed", "rerank"), default="llama")
    parser.add_argument("--ctx", type=int, help="default: 4096, or 512 for embed and rerank")
    parser.add_argument("--eos", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.kind == "llama":
        tiny_llama(given.out, ctx=given.ctx or 4096, eos=given.eos, seed=given.seed)
    else:
        make = tiny_embed if given.kind == "embed" else tiny_rerank
        make(given.out, ctx=given.ctx or 512, seed=given.seed)


if __name__ == "__main__":
    main()
