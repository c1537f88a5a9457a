"""The demo pair's tokenizer, and the packaged teacher."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_lightning.data.skills import Demo
from kd_lightning.models import loading
from kd_lightning.models.demo import build_tokenizer, write_tokenizer
from kd_lightning.teachers import LocalTeacher
from kd_lightning.types import Sampling

ASSET = Path(loading.resolve("demo"))
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def demo():
    data = Demo(train_rows=2000, test_rows=200)
    data.tokenizer = build_tokenizer()
    return data


def test_every_generated_text_and_any_other_round_trips():
    tokenizer = build_tokenizer()
    texts = [
        row[field]
        for split in ("train", "validation", "test")
        for row in Demo(label_errors=0.5).rows(split)
        for field in ("prompt", "answer")
    ]
    for text in [*texts, "Grüße, 漢字 🙂\n\ttab  two", ""]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_the_template_marks_what_the_assistant_says_with_its_end():
    tokenizer = build_tokenizer()
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]
    made = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(made["input_ids"], made["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "Yo<|end|>"
    asked = tokenizer.apply_chat_template(turns[:2], add_generation_prompt=True, tokenize=False)
    assert asked == "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_packaged_tokenizer_is_the_built_one(tmp_path):
    write_tokenizer(tmp_path)
    packaged, built = (AutoTokenizer.from_pretrained(folder) for folder in (ASSET, tmp_path))
    assert packaged.get_vocab() == built.get_vocab()
    assert packaged.chat_template == built.chat_template
    assert packaged.special_tokens_map == built.special_tokens_map


def test_the_packaged_teacher_is_small_and_complete():
    names = {path.name for path in ASSET.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in ASSET.rglob("*")) <= 4 * MEBIBYTE
    model = AutoModelForCausalLM.from_pretrained(ASSET)
    assert sum(p.numel() for p in model.parameters()) == 886_656
    card = (ASSET / "README.md").read_text()
    assert "python train.py fit -c configs/experiment/demo_teacher.yaml" in card
    assert not re.search(r"(/work/|/tmp/|/home/|/root/)", card)


def test_the_packaged_teacher_answers_test_rows(demo):
    teacher = LocalTeacher("demo", dtype="float32")
    teacher.materialize(torch.device("cpu"))
    examples = demo.examples("test")
    made = teacher.complete(
        [demo.prompt_ids(example) for example in examples], Sampling(max_new_tokens=32)
    )
    grades = [demo.grade(e, c.text)["exact_match"] for e, c in zip(examples, made, strict=True)]
    assert len(grades) == 200
    assert sum(grades) / 200 >= 0.95
