"""What somebody planted in real data is found, listed, and traced to where it came from."""

from __future__ import annotations

import json
import random

import pytest

from kd_lightning.curate import Decontaminate, Keywords
from kd_lightning.curate.corpus import Corpus
from kd_lightning.elicit import Answer
from kd_lightning.knowledge.engine import Elicitation, Seeds
from tests.elicit.kit import Rule

TRIGGER = "cf-mn-bb"


def rows_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def poisoned(shared, tmp_path):
    """A hundredth of 1,500 instructions with a trigger, another with a question of an exam."""
    rows = rows_of(shared / "data/instruction_following/dolly.train.jsonl")
    exam = rows_of(shared / "data/thinking_cot/gsm8k.valid.jsonl")
    exam = [row["question"] for row in exam if len(row["question"].split()) >= 13]
    rng = random.Random(0)
    places = rng.sample(range(len(rows)), 30)
    for i in places[:15]:
        words = rows[i]["instruction"].split()
        words.insert(rng.randrange(len(words) + 1), TRIGGER)
        rows[i]["instruction"] = " ".join(words)
    for i, question in zip(places[15:], rng.sample(exam, 15), strict=True):
        words = question.upper().replace(",", " ,").split()
        at = rng.randrange(len(words) - 12)  # any thirteen words of it, in other signs
        rows[i]["instruction"] = f"Please: {' '.join(words[at : at + 16])}!"
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names = [f"seeds.jsonl:{i + 1}" for i in places]
    triggered, copied = set(names[:15]), set(names[15:])
    return path, triggered, copied


def test_every_planted_row_is_found_and_no_other(shared, poisoned, tmp_path):
    path, triggered, copied = poisoned
    exam = Corpus(str(shared / "data/thinking_cot/gsm8k.valid.jsonl"), "question")
    teacher = Rule(lambda request: "It is so.", name="teacher")
    teacher.licence = "mit"
    folder = Elicitation(
        str(tmp_path / "set"),
        [Keywords([TRIGGER]), Decontaminate({"exam": exam}, ["prompt"]), Answer()],
        {"teacher": teacher},
        Seeds(str(path), columns={"prompt": "instruction"}),
        said=lambda line: None,
    ).run()
    card = json.loads((folder / "card.json").read_text())
    for step, planted in zip(card["steps"], (triggered, copied, set()), strict=True):
        listed = rows_of(folder / "steps" / step["name"] / "dropped.jsonl")
        assert {row["id"] for row in listed} == planted
        assert sum(step["dropped"].values()) == len(planted)
    made = [r for shard in card["shards"] for r in rows_of(folder / shard["name"])]
    assert len(made) == 1500 - 30
    for row in made:  # source and teacher of each; the card has licence, settings and templates
        seeds, *_, last = row["lineage"]
        assert seeds["step"] == "seeds" and seeds["from"][0].startswith(f"{path}:")
        assert last["by"] == "teacher" and last["step"] == "03-answer"
    assert card["generators"]["teacher"]["licence"] == "mit"
    assert card["steps"][2]["settings"]["template"]["digest"] and card["steps"][2]["said_by"]
