"""Curators by their short names in a configuration, one after the other."""

import json

import yaml

from kd_lightning.elicitation import elicit

STEPS = """
- DedupExact
- class_path: DedupMinHash
  init_args: {ngram: 1, threshold: 1.0}
- class_path: Decontaminate
  init_args:
    against: {exam: {path: EXAM, field: question}}
    ngram: 5
- class_path: Rules
  init_args:
    rules:
    - {class_path: Length, init_args: {field: [prompt], min_words: 3}}
    - {class_path: Language, init_args: {languages: [en]}}
- class_path: FinalAnswer
  init_args: {field: candidates, mode: score, extract: {class_path: After, init_args: {marker: is}}}
- class_path: Vote
  init_args: {extract: Number, keep_agreeing: false}
- class_path: KCentre
  init_args: {k: 20, vectors: {class_path: TfIdf, init_args: {dimensions: 64}}}
- PairsBestWorst
- class_path: Split
  init_args: {validation: 0.2}
"""


def test_a_chain_of_curators(tmp_path):
    told = [
        {
            "prompt": f"what is {i} plus {i}",
            "candidates": [f"it is {2 * i}", f"it is {2 * i + 1}", f"is {2 * i}"],
            "reference": str(2 * i),
        }
        for i in range(40)
    ]
    lines = [json.dumps(row) + "\n" for row in (*told, *told[:5])]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "exam.jsonl").write_text('{"question": "what is 7 plus 7"}\n')
    config = {
        "output": str(tmp_path / "set"),
        "seeds": {"path": str(tmp_path / "rows.jsonl")},
        "steps": yaml.safe_load(STEPS.replace("EXAM", str(tmp_path / "exam.jsonl"))),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    folder = elicit(["-c", str(tmp_path / "config.yaml")])
    card = json.loads((folder / "card.json").read_text())
    assert [step["dropped"] for step in card["steps"]] == [
        {"repeats an earlier record": 5},
        {},
        {"shares words with exam": 1},
        {},
        {},
        {},
        {"near a chosen record": 19},
        {},
        {},
    ]
    for step in card["steps"]:
        assert step["taken"] == step["given"] + sum(step["dropped"].values())
    files = [folder / shard["name"] for shard in card["shards"]]
    made = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(made) == 20 and {row["split"] for row in made} == {"train", "validation"}
    for row in made:
        number = int(row["prompt"].split()[2])
        assert row["chosen"].endswith(f" {2 * number}")
        assert row["rejected"].endswith(f" {2 * number + 1}")
