"""A run of steps: what it writes, what it does not do twice, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_lightning.errors import KDError
from kd_lightning.knowledge.engine import Elicitation, Seeds
from kd_lightning.knowledge.sets import read_records
from kd_lightning.teachers.generator import BudgetError
from tests.knowledge.kit import Answers, Counting, Odd, seeds


def make(folder: Path, steps=None, generator=None, count=10, **more) -> Elicitation:
    path = folder / "seeds.jsonl"
    if not path.exists():
        seeds(path, count)
    return Elicitation(
        str(folder / "set"),
        [Answers(), Odd()] if steps is None else steps,
        {"teacher": generator or Counting()},
        Seeds(str(path)),
        **{"said": lambda line: None, **more},
    )


def card(folder: Path):
    return json.loads((folder / "set" / "card.json").read_text())


def rows(folder: Path):
    return [
        json.loads(line)
        for shard in card(folder)["shards"]
        for line in (folder / "set" / shard["name"]).read_text().splitlines()
    ]


def asked(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_the_set_holds_the_records_and_their_descent(tmp_path):
    make(tmp_path).run()
    made = rows(tmp_path)
    assert [row["id"] for row in made] == ["q0", "q2", "q4", "q6", "q8"]
    assert all(row["answer"].startswith(row["prompt"] + " -> ") for row in made)
    assert made[0]["lineage"] == [
        {"step": "seeds", "from": [f"{tmp_path}/seeds.jsonl:1"]},
        {"step": "01-answers", "from": ["q0"], "by": "counting"},
    ]


def test_the_card_counts_everything(tmp_path):
    make(tmp_path, generator=Counting(refuses="question 3")).run()
    told = card(tmp_path)
    first, second = told["steps"]
    assert (first["taken"], first["given"]) == (10, 9)
    assert first["dropped"] == {"the generator refuses this": 1}
    assert second["dropped"] == {"of the other half": 4} and told["records"] == 5
    assert told["seeds"]["records"] == 10 and told["seed"] == 0
    assert told["generators"]["teacher"]["licence"] == "apache-2.0"
    texts = [f"question {i}" for i in range(10) if i != 3]
    assert told["spend"]["requests"] == 9 and told["spend"]["money"] == 4.5
    assert told["spend"]["prompt_tokens"] == sum(map(len, texts))
    fallen = (tmp_path / "set/steps/01-answers/dropped.jsonl").read_text()
    assert json.loads(fallen)["reason"] == "the generator refuses this"
    page = (tmp_path / "set/README.md").read_text()
    assert "license: apache-2.0" in page and "| 01-answers | 10 | 9 |" in page


def test_nothing_is_done_twice(tmp_path):
    log = tmp_path / "asked"
    make(tmp_path, generator=Counting(log=str(log))).run()
    before, shards = asked(log), card(tmp_path)["shards"]
    make(tmp_path, generator=Counting(log=str(log))).run()
    assert asked(log) == before and len(before) == 10
    assert card(tmp_path)["shards"] == shards


def test_a_later_step_that_changed_is_done_again_alone(tmp_path):
    log = tmp_path / "asked"
    make(tmp_path, generator=Counting(log=str(log))).run()
    make(tmp_path, [Answers(), Odd(keep=1)], Counting(log=str(log))).run()
    assert len(asked(log)) == 10
    assert [row["id"] for row in rows(tmp_path)] == ["q1", "q3", "q5", "q7", "q9"]
    named = {shard["name"] for shard in card(tmp_path)["shards"]}
    assert {f"shards/{p.name}" for p in (tmp_path / "set/shards").iterdir()} == named


@pytest.mark.parametrize("change", ["seed", "seeds", "settings", "generator"])
def test_what_an_answer_depends_on_is_asked_again(tmp_path, change):
    log = tmp_path / "asked"
    make(tmp_path, generator=Counting(log=str(log))).run()
    more, steps = {}, None
    generator = Counting("other" if change == "generator" else "counting", log=str(log))
    if change == "seed":
        more["seed"] = 1
    if change == "seeds":
        seeds(tmp_path / "seeds.jsonl", 12)
    if change == "settings":
        steps = [Answers("revision"), Odd()]
    make(tmp_path, steps, generator, **more).run()
    # another field is asked nothing new: the journal has what these requests were answered
    assert len(asked(log)) == {"seeds": 12, "settings": 10}.get(change, 20)


def test_a_budget_stops_it_cleanly_and_it_goes_on(tmp_path):
    log = tmp_path / "asked"
    with pytest.raises(BudgetError, match=r"7 answers of 01-answers are kept.*same command"):
        make(tmp_path, generator=Counting(log=str(log), stop_after=7)).run()
    assert not (tmp_path / "set/card.json").exists()
    second = Counting(log=str(log))
    make(tmp_path, generator=second).run()
    assert len(asked(log)) == 10 == len(set(asked(log)))
    assert second._charged[0] == 7 and second._charged[1].money == 3.5
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole).run()
    assert [s["sha256"] for s in card(whole)["shards"]] != []
    strip = [{k: v for k, v in r.items() if k != "lineage"} for r in rows(tmp_path)]
    assert strip == [{k: v for k, v in r.items() if k != "lineage"} for r in rows(whole)]


def test_a_torn_line_of_the_journal_is_asked_again(tmp_path):
    log = tmp_path / "asked"
    with pytest.raises(BudgetError):
        make(tmp_path, generator=Counting(log=str(log), stop_after=7)).run()
    journal = tmp_path / "set/steps/01-answers/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    make(tmp_path, generator=Counting(log=str(log))).run()
    assert len(asked(log)) == 11 and len(set(asked(log))) == 10


def test_a_damaged_step_is_done_again_from_its_journal(tmp_path):
    log = tmp_path / "asked"
    make(tmp_path, generator=Counting(log=str(log))).run()
    stored = tmp_path / "set/steps/01-answers/records.jsonl"
    expected = read_records(stored)
    stored.write_bytes(stored.read_bytes()[:-50])
    make(tmp_path, generator=Counting(log=str(log))).run()
    assert read_records(stored) == expected and len(asked(log)) == 10


def test_parquet_and_several_shards(tmp_path):
    make(tmp_path, format="parquet", shard_rows=2).run()
    shards = card(tmp_path)["shards"]
    assert [s["rows"] for s in shards] == [2, 2, 1]
    assert all(s["name"].endswith(".parquet") for s in shards)


def test_refusals(tmp_path):
    with pytest.raises(KDError, match=r"step 1 \(Answers\) asks the generator 'judge' \(teacher\)"):
        make(tmp_path, [Answers(generator="judge")]).run()
    with pytest.raises(KDError, match="write at least one of `steps`"):
        make(tmp_path, []).run()
    blind = Counting()
    blind.offers = frozenset()
    with pytest.raises(KDError, match=r"step 1 \(Answers\) needs text, which Counting"):
        make(tmp_path, generator=blind).run()
    with pytest.raises(KDError, match=r"no record is left.*01-answers: 10 the generator refuses"):
        make(tmp_path, generator=Counting(refuses="question")).run()
    twice = tmp_path / "twice"
    twice.mkdir()
    (twice / "seeds.jsonl").write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n')
    with pytest.raises(KDError, match="two records are called '1'"):
        make(twice).run()


def test_terms_that_forbid_training(tmp_path):
    bound = Counting(licence="terms of use, no-train")
    with pytest.raises(KDError, match="no-train"):
        make(tmp_path, generator=bound).run()
    make(tmp_path, generator=bound, terms_override="written permission of 2026-01-01").run()
    told = card(tmp_path)
    statement = "written permission of 2026-01-01"
    assert told["terms_override"] == {"of": ["teacher"], "statement": statement}
    assert "written permission" in (tmp_path / "set/README.md").read_text()


def test_an_input_stands_behind_its_prompt_unless_it_is_kept_apart(tmp_path):
    """As the data modules ask it: what the teacher answers is what the student will be asked."""
    path = tmp_path / "seeds.jsonl"
    told = [{"prompt": "Sum up.", "input": "A b c."}, {"prompt": "Hi.", "input": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    make(tmp_path, steps=[Answers()]).run()
    assert [row["prompt"] for row in rows(tmp_path)] == ["Sum up.\n\nA b c.", "Hi."]
    assert not any("input" in row for row in rows(tmp_path))
    apart = make(tmp_path, steps=[Answers()])
    apart.seeds = Seeds(str(path), input="apart")
    apart.run()
    assert [row["input"] for row in rows(tmp_path)] == ["A b c.", ""]


def test_reasons_in_a_servers_own_words_do_not_fill_the_card(tmp_path):
    class Falls(Odd):
        def run(self, records, work):
            for i, record in enumerate(records[1:]):
                work.drop(record, f"status 400: {i} tokens are too many")
            return list(records[:1])

    make(tmp_path, steps=[Falls()], count=40).run()
    dropped = card(tmp_path)["steps"][0]["dropped"]
    assert len(dropped) == 13 and dropped["other reasons (dropped.jsonl)"] == 39 - 12
    told = (tmp_path / "set/steps/01-falls/dropped.jsonl").read_text().splitlines()
    assert len({json.loads(line)["reason"] for line in told}) == 39
