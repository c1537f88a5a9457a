"""Elicited sets as training rows of any skill."""

from __future__ import annotations

import pytest

from kd_lightning.data.skills.demo import Demo
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.sets import write_set
from tests.data import kit

CARD = {
    "generators": {}, "steps": [], "seed": 0, "run": {"command": "kd elicit"},
    "spend": {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "money": 0.0},
}  # fmt: skip


def knowledge(folder, records, format="jsonl", shard_rows=3):
    write_set(folder, records, CARD, format, shard_rows)
    return str(folder)


def answered(count, **more):
    return [
        Record(f"r{i}", {"prompt": f"question {i}", "answer": f"answer {i}", **more})
        for i in range(count)
    ]


def ready(data):
    data.tokenizer = kit.byte_tokenizer(kit.CHATML)
    return data


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_set_is_the_training_rows_and_a_share_of_it_validates(tmp_path, format):
    path = knowledge(tmp_path / "set", answered(20), format)
    data = ready(InstructionFollowing(knowledge=path, validation_share=0.2))
    train, held = data.encoded("train"), data.encoded("validation")
    assert (len(train), len(held)) == (16, 4)
    assert {r.example.id for r in train} | {r.example.id for r in held} == {
        f"r{i}" for i in range(20)
    }
    assert train[0].example.answer.startswith("answer")


def test_other_rows_validate(tmp_path):
    path = knowledge(tmp_path / "set", answered(5))
    other = kit.write(tmp_path / "held.jsonl", [{"prompt": "x", "answer": "y"}])
    data = ready(InstructionFollowing(knowledge=path, validation=other))
    assert len(data.encoded("train")) == 5 and len(data.encoded("validation")) == 1


def test_splits_of_the_set_itself(tmp_path):
    records = [*answered(4), Record("v", {"prompt": "p", "answer": "a", "split": "validation"})]
    data = ready(InstructionFollowing(knowledge=knowledge(tmp_path / "set", records)))
    assert len(data.encoded("train")) == 4
    assert [row.example.id for row in data.encoded("validation")] == ["v"]


def test_a_skill_that_makes_its_rows_takes_the_training_rows_from_the_set(tmp_path):
    records = answered(6, family="addition", labeller="careful")
    path = knowledge(tmp_path / "set", records)
    data = ready(Demo(knowledge=path, train_rows=50, validation_rows=10, test_rows=10))
    assert [row.example.id for row in data.encoded("train")] == [f"r{i}" for i in range(6)]
    assert len(data.encoded("validation")) == 10  # its own


def test_refusals(tmp_path):
    path = knowledge(tmp_path / "set", answered(5))
    with pytest.raises(KDError, match="knowledge gives the training rows"):
        InstructionFollowing("a.jsonl", knowledge=path)
    with pytest.raises(KDError, match="is no knowledge set"):
        ready(Demo(knowledge=str(tmp_path))).encoded("train")
    (tmp_path / "begun" / "steps").mkdir(parents=True)
    with pytest.raises(KDError, match="was not finished: run its kd elicit command again"):
        ready(InstructionFollowing(knowledge=str(tmp_path / "begun"))).encoded("train")
    shard = next((tmp_path / "set/shards").iterdir())
    shard.write_text(shard.read_text().replace("answer", "Answer"))
    with pytest.raises(KDError, match=r"is not what kd elicit wrote \(checksum\)"):
        ready(InstructionFollowing(knowledge=path)).encoded("train")
