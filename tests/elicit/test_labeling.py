"""Labeling, expansion and curation presets: what each asks and writes."""

import pytest

from kd_lightning.elicit import (
    Candidates,
    Explain,
    FromSnippets,
    FromTools,
    Fuse,
    Grounded,
    Rationale,
    Rationalise,
    SelfChat,
)
from kd_lightning.elicit.pools import pool
from kd_lightning.errors import KDError
from tests.elicit.kit import Rule, last, records, run, whole


def test_a_rationale_is_apart_from_its_answer(tmp_path):
    made, _ = run(
        Rationale(), records("2+3?"), tmp_path, teacher=Rule(lambda r: "2 and 3.\nAnswer: 5")
    )
    assert (made[0]["rationale"], made[0]["answer"]) == ("2 and 3.", "5")


def test_candidates_come_with_their_sources(tmp_path):
    made, _ = run(Candidates(n=3), records("a"), tmp_path, teacher=Rule(lambda r: ["x", "y", "z"]))
    assert made[0]["candidates"] == ["x", "y", "z"] and made[0]["sources"] == ["teacher"] * 3


def test_an_explanation_is_asked_for_under_a_drawn_system_prompt(tmp_path):
    generator = Rule(lambda request: "because")
    made, _ = run(Explain(), records(*"abcdefghijkl"), tmp_path, teacher=generator)
    assert {r["system"] for r in made} <= set(pool("systems")) and len({r["system"] for r in made})
    for record, request in zip(made, generator.asked, strict=True):
        assert request.prompt.messages[0].content == record["system"]
    assert len({r["system"] for r in made}) > 3


def test_the_hint_is_told_and_not_kept(tmp_path):
    def rule(request):
        return "so\nAnswer: 42" if "Correct answer: 42" in last(request) else "?\nAnswer: 0"

    made, _ = run(Rationalise(), records("6*7", reference="42"), tmp_path, teacher=Rule(rule))
    assert made[0]["answer"] == "42"
    assert "Correct" not in made[0]["prompt"] + made[0]["rationale"]
    with pytest.raises(KDError, match="'reference' is undefined"):
        run(Rationalise(), records("6*7"), tmp_path, teacher=Rule(rule))


def test_documents_stand_in_the_question(tmp_path):
    rows = records("Who?", docs=["Ann did.", {"text": "Bob did not."}])
    made, _ = run(Grounded(), rows, tmp_path, teacher=Rule(whole))
    assert "Ann did." in made[0]["answer"] and "Bob did not." in made[0]["answer"]


def test_two_prompts_become_one_or_fall(tmp_path):
    def rule(request):
        return "IMPOSSIBLE: no" if "sing" in last(request) else "both at once"

    made, work = run(Fuse(group="consecutive"), records("add", "sort", "sing", "sum"), tmp_path,
                     teacher=Rule(rule))  # fmt: skip
    assert [(r.id, r["prompt"]) for r in made] == [("r0+r1/0", "both at once")]
    assert work.tally.dropped == {"malformed: says IMPOSSIBLE": 2}


def test_snippets_are_consecutive_lines_of_the_file(tmp_path):
    code = "\n".join(f"line {i}" for i in range(40))
    generator = Rule(lambda request: "## Problem\np\n## Solution\ns")
    step = FromSnippets(snippets=20, fewest=2, most=15)
    rows = [*records({"code": code}), *records({"code": "one line"})]
    rows[1] = type(rows[1])("r1", rows[1].values)
    made, work = run(step, rows, tmp_path, teacher=generator)
    sizes = set()
    for record in made:
        lines = record["snippet"].splitlines()
        sizes.add(len(lines))
        assert record["snippet"] in code and 2 <= len(lines) <= 15
        assert "code" not in record.values and record["prompt"] == "p"
    assert len(made) == 20 and len(sizes) > 5
    assert work.tally.dropped == {"fewer than 2 lines of code": 1}


def test_calls_come_beside_the_requests_that_need_them(tmp_path):
    told = '<request>6*7?</request><call>{"name": "c"}</call>' * 2
    made, _ = run(FromTools(), records({"tools": []}), tmp_path, teacher=Rule(lambda r: told))
    assert [(r.id, r["prompt"]) for r in made] == [("r0/0", "6*7?"), ("r0/1", "6*7?")]
    assert made[0]["answer"] == '{"name": "c"}'


def test_one_answer_is_a_whole_conversation(tmp_path):
    told = "[Human] Hi\n[AI] Hello\n[Human] Why?\n[AI] So."
    made, _ = run(SelfChat(), records("greetings"), tmp_path, teacher=Rule(lambda r: told))
    assert [t["role"] for t in made[0]["messages"]] == ["user", "assistant"] * 2
