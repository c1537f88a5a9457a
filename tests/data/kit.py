"""Tiny tokenizers, and chat templates in the manner of well-known ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.rows import Row
from kd_lightning.types import Example

CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

GEMMA_FOLDED = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% else %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + ns.system + m.content | trim + '<end_of_turn>\n' }}"
    "{% set ns.system = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)

MISTRAL_SYSTEM_LAST = (
    "{{ bos_token }}{% set ns = namespace(last=0, system='') %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + (ns.system if loop.index0 == ns.last else '') "
    "+ m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)

QWEN3 = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{%- set content = m.content -%}{%- set thought = '' -%}"
    "{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + content -}}"
    "{%- else -%}{{- '<|im_start|>assistant\n' + content -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"
)


def byte_tokenizer(
    template: str | None = None, *, pad: str | None = "<pad>", bos: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """One id per byte, with the control tokens of all templates; reads any text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        additional_special_tokens=list(CONTROL),
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **({"bos_token": bos} if bos else {}),
        **({"pad_token": pad} if pad else {}),
    )


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a space before every text that it is given, in the manner of SentencePiece."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", "▁", "\n", *letters, "▁a", "▁b"]
    backend = Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def learned(tokenizer: Any, row: Encoded) -> list[str]:
    """The texts that are learned, one for each stretch."""
    texts = []
    pairs = zip(row.ids.tolist(), row.weights.tolist(), strict=True)
    for counts, part in groupby(pairs, key=lambda pair: pair[1] != 0):
        if counts:
            texts.append(tokenizer.decode([i for i, _ in part], skip_special_tokens=False))
    return texts


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """A jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Echo(KDDataModule):
    """Says its prompt again."""

    fields: ClassVar = {"prompt": ("question",), "answer": ()}

    def render(self, row: Row) -> Example:
        return Example.dialogue(
            id=row.id, user=row.text("prompt"), assistant=row.text("answer", row.text("prompt"))
        )

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        return {"same": float(answer == example.answer)}


def numbers(path: Path, count: int) -> str:
    """A file whose rows can be told apart."""
    return write(path, [{"prompt": f"row {i}", "answer": str(i)} for i in range(count)])
