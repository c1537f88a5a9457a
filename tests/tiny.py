"""The smallest things that behave like models and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!+-*/=()<>#'\"\n_|"


def tokenizer(extra: tuple[str, ...] = (), words: str = "") -> PreTrainedTokenizerFast:
    """One id per character; `<pad>`, `<s>`, `</s>` first. `words`: pattern of what is one id, too,
    each of `extra`."""
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS, *extra])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = Regex(rf"{words}|\s|.") if words else ""
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def config(width: int = 16, layers: int = 2, **more: Any) -> dict[str, Any]:
    """Fields of a tiny Llama."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **more,
    }


def save_model(folder: Path, width: int = 16, layers: int = 2, seed: int = 0, **more: Any) -> None:
    """A random model and its tokenizer in a folder."""
    tok = tokenizer()
    fields = config(width, layers, **more)
    fields.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaConfig(
            vocab_size=fields.pop("vocab_size", len(tok)),
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
            initializer_range=0.5,
            **fields,
        )
        LlamaForCausalLM(made).save_pretrained(folder)
    tok.save_pretrained(folder)
