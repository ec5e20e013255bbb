"""Tiny models in the Hugging Face layout, with random weights, for real vLLM servers. Needs transformers:

    python tests/engines/real/tiny_hf.py FOLDER

Writes FOLDER/tiny-llama (about 2 MB: decoder, byte-level BPE, a chat template; ends by itself never under greedy
decoding), FOLDER/tiny-embed (BERT, mean pooling) and FOLDER/tiny-rerank (BERT with one score). The same bytes
every time with the same versions of torch and transformers.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

CONTEXT = 4096  # of the decoder
SHORT_CONTEXT = 512
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghklmnprstvw", "aeiou")]


def words(count: int) -> list[str]:
    draw = random.Random(1)
    found = dict.fromkeys("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(4 * count))
    return list(found)[:count]


def tiny_llama(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    draw = random.Random(2)
    known = words(600)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(draw.choices(known, k=30)) for _ in range(400)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[:3] = 0  # never the best, so that only max_tokens and stop strings end a text
    model.to(torch.float32).save_pretrained(folder)
    fast.save_pretrained(folder)


def tiny_bert(folder: Path, *, scores: bool) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words(600), *letters, *(f"##{letter}" for letter in letters)]
    )
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=SHORT_CONTEXT,
    )
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=SHORT_CONTEXT,
        pad_token_id=0,
        **({"num_labels": 1} if scores else {}),
    )
    (BertForSequenceClassification if scores else BertModel)(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    tiny_llama(folder / "tiny-llama")
    tiny_bert(folder / "tiny-embed", scores=False)
    tiny_bert(folder / "tiny-rerank", scores=True)


if __name__ == "__main__":
    main()
