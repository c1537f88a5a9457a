"""The skills read real files with a real tokenizer that has no chat template."""

import pytest

from kd_lightning.data.skills import InstructionFollowing, PlainText, Thinking
from kd_lightning.data.verticals import Medicine
from kd_lightning.types import IGNORE

CASES = {
    "dolly": (InstructionFollowing, "instruction_following/dolly.train.jsonl", {}),
    "seed": (InstructionFollowing, "instruction_following/self_instruct_seed.train.jsonl", {}),
    "user": (
        InstructionFollowing,
        "instruction_following/self_instruct_user_oriented.valid.jsonl",
        {},
    ),
    "sharegpt": (InstructionFollowing, "multi_turn_dialogue/fastchat_dummy.train.jsonl", {}),
    "gsm8k": (Thinking, "thinking_cot/gsm8k.train.jsonl", {}),
    "medquad": (Medicine, "medical/medquad.train.jsonl", {}),
    "stories": (PlainText, "lm_text/stories260k_samples.train.jsonl", {"end": "bos"}),
    "all texts": (PlainText, "lm_text/*.jsonl", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_reads_encodes_and_grades(case, shared, stories):
    kind, path, more = CASES[case]
    data = kind(
        str(shared / "data" / path),
        tokenizer=stories,
        max_length=512,
        truncation="drop",
        limit_train=60,
        limit_validation=5,
        **more,
    )
    data.setup("fit")
    summary = data.summary["train"]
    assert summary.rows + sum(summary.dropped.values()) >= 60
    assert summary.longest <= 512
    for row in data.encoded("train"):
        prompt = data.prompt_ids(row.example)
        if kind is not PlainText:
            assert row.ids.tolist()[: len(prompt)] == prompt
            answer = row.ids[len(prompt) :].tolist()
            assert answer[-1] == data.tokenizer.eos_token_id
            text = data.tokenizer.decode(answer, skip_special_tokens=True)
            assert text.strip() == row.example.answer.strip()
    batch = next(iter(data.train_dataloader()))
    assert (batch.targets != IGNORE).any(1).all()
    grades = data.grade(batch.examples[0], batch.examples[0].answer)
    assert all(value == 1.0 for value in grades.values())
    assert bool(grades) == (kind is not PlainText)


def test_every_gsm8k_answer_has_a_number_and_no_calculator_notes(shared, stories):
    path = str(shared / "data/thinking_cot/gsm8k.train.jsonl")
    data = Thinking(path, tokenizer=stories, validation_share=0.0)
    examples = list(data.rendered("train"))
    assert len(examples) == 2000
    assert not any("<<" in e.answer for e in examples)
    assert all(data.grade(e, e.answer) == {"exact_match": 1.0} for e in examples)
    kept = Thinking(path, tokenizer=stories, validation_share=0.0, calculations=True)
    assert any("<<" in e.answer for e in kept.rendered("train"))


def test_benchmark_rows_without_a_reference_are_asked_but_not_graded(shared, stories):
    path = str(shared / "data/instruction_following/vicuna_bench.test.jsonl")
    data = InstructionFollowing(
        test=path, tokenizer=stories, max_length=512, truncation="drop", eval_batch_size=80
    )
    data.setup("test")
    examples = data.examples("test")
    graded = [e for e in examples if e.answer]
    assert len(examples) > len(graded) > 0
    assert data.grade(next(e for e in examples if not e.answer), "words") == {}
    (batch,) = data.test_dataloader()
    assert len(batch) == len(examples)
