"""The demo pair's tokenizer: one token for each byte, and a chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
MAX_TOKENS = 1024
SPECIAL = (PAD, END, *(f"<|{role}|>" for role in ROLES))

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""`<|user|>question<|end|><|assistant|>answer<|end|>`; what the assistant says is marked."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer without training: 256 bytes, then the special tokens; any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        padding_side="right",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(folder: Path) -> None:
    """The tokenizer as a Hugging Face folder, for a new model to be trained with."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder)
