"""Answers judged right or wrong."""

from typing import ClassVar

import pytest

from kd_lightning.curate.extract import After, Boxed, Found, Number, Whole, same, settled
from kd_lightning.curate.verify_answer import FinalAnswer
from kd_lightning.curate.verify_code import UnitTests, code_of
from kd_lightning.curate.verify_model import Graded, RoundTrip
from kd_lightning.data.base import KDDataModule
from kd_lightning.errors import KDError
from kd_lightning.security import sandbox
from kd_lightning.types import Example
from tests.curate.kit import Rule, ids, ran, records, work

here = pytest.mark.skipif(bool(sandbox.missing()), reason=f"no sandbox: {sandbox.missing()}")


@pytest.mark.parametrize(
    ("extract", "text", "found"),
    [
        (Number(), "3 apples and 4 make 7.", "7"),
        (Number(), "The answer is $1,200.50, not 3", "1200.5"),
        (Number(), "none", None),
        (Boxed(), r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (Boxed(), r"never closed \boxed{1", None),
        (After("Answer:"), "Answer: 3\nanswer:  yes, four \nthe end", "yes, four"),
        (After("Answer:", to_end=True), "Answer: a\nb", "a\nb"),
        (After("Answer:"), "no marker", None),
        (Found(r"\(([A-E])\)"), "(A) is wrong, so (C)", "C"),
        (Found("yes|no", ignore_case=True), "Yes. No", "No"),
        (Whole(), "  a b ", "a b"),
        (Whole(), "  ", None),
    ],
)
def test_outcomes_are_read(extract, text, found):
    assert extract.of(text) == found


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "equal"),
    [
        ("1,200", "1200.00", 0, True),
        ("$5", "5", 0, True),
        ("1200", "1201", 0, False),
        ("100", "101", 0.01, True),
        ("100", "102", 0.01, False),
        ("-3", "3", 0.5, False),
        ("Paris.", "paris", 0, True),
        ("nan", "nan", 0, True),
        ("a", "1", 1, False),
    ],
)
def test_outcomes_are_compared(a, b, tolerance, equal):
    assert same(a, b, tolerance) is equal
    assert settled("1e3") == "1000"


def test_wrong_answers_fall_with_their_reason():
    rows = records(
        {"answer": "2 + 2 = 4", "reference": "#### 4"},
        {"answer": "2 + 2 = 5", "reference": 4},
        {"answer": "no idea", "reference": "4"},
        {"answer": "4"},
        {"reference": "4"},
        {"answer": "it is 7", "reference": ["6", "7"]},
    )
    kept, fallen = ran(FinalAnswer(), rows)
    assert kept == ["r0", "r5"]
    assert fallen == {
        "wrong final answer": ["r1"],
        "no final answer": ["r2"],
        "no reference": ["r3"],
        "no answer": ["r4"],
    }


def test_scores_are_written_down_instead():
    rows = records(
        {"answer": "4", "reference": "4"}, {"candidates": ["4", "5", "4"], "reference": "4"}
    )
    at = work()
    one = FinalAnswer(mode="score", into="right").run(rows[:1], at)[0]
    assert (one["right"], at.tally.notes) == (1.0, {"right": 1, "wrong": 0})
    many = FinalAnswer("candidates", mode="score").run(rows[1:], work())[0]
    assert many["scores"] == [1.0, 0.0, 1.0]
    assert many.lineage[-1]["step"] == "curator"


def test_of_candidates_the_wrong_ones_are_taken_out():
    rows = records(
        {"candidates": ["4", "5", "is 4"], "sources": ["x", "y", "z"], "reference": "4"},
        {"candidates": ["5"], "reference": "4"},
    )
    at = work()
    (one,) = FinalAnswer("candidates").run(rows, at)
    assert (one["candidates"], one["sources"]) == (["4", "is 4"], ["x", "z"])
    assert at.tally.dropped == {"wrong final answer": 1}
    assert at.tally.notes == {"candidates dropped": 1}


TASK = {"tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "setup": "import math"}
GOOD = "Here:\n```python\ndef add(a, b):\n    return int(math.fsum([a, b]))\n```\nIt adds."
BAD = "def add(a, b): return a - b"


def test_code_is_taken_out_of_its_fences():
    assert code_of(GOOD).startswith("def add") and "It adds" not in code_of(GOOD)
    assert code_of("```\na = 1\n```\nand\n```py\nb = 2\n```") == "a = 1\n\nb = 2\n"
    assert code_of(BAD) == BAD


def test_no_code_is_run_unless_allowed():
    with pytest.raises(KDError, match="allow_code=true"):
        UnitTests().run(records({"answer": GOOD, **TASK}), work())


@here
def test_programs_must_pass_their_tests():
    rows = records(
        {"answer": GOOD, **TASK}, {"answer": BAD, **TASK}, {"answer": GOOD}, {"answer": "(", **TASK}
    )
    kept, fallen = ran(UnitTests(), rows, work(allow_code=True))
    assert kept == ["r0"]
    assert fallen == {"tests failed": ["r1", "r3"], "no tests": ["r2"]}


@here
def test_what_went_wrong_is_kept_for_a_repair():
    rows = records({"answer": BAD, **TASK}, {"answer": GOOD, **TASK})
    step = UnitTests(mode="score", into="score", seconds=3)
    bad, good = step.run(rows, work(allow_code=True))
    assert (bad["score"], good["score"]) == (0.0, 1.0)
    assert "AssertionError" in bad["errors"] and good["errors"] == ""


@here
def test_several_programs_at_a_time_are_told_apart():
    rows = records(*({"answer": BAD if i % 3 else GOOD, **TASK} for i in range(7)))
    kept, _ = ran(UnitTests(workers=3), rows, work(allow_code=True))
    assert kept == ["r0", "r3", "r6"]
    assert UnitTests(workers=3).digest() == UnitTests().digest()


@here
def test_an_endless_program_falls():
    rows = records({"answer": "while True: pass", **TASK})
    kept, fallen = ran(UnitTests(seconds=0.8), rows, work(allow_code=True))
    assert (kept, fallen) == ([], {"tests too slow": ["r0"]})


def test_the_way_back_must_lead_to_the_prompt():
    back = {"4": "what is two and two", "blue": "which colour has grass"}
    rule = Rule(says=lambda prompt: back[prompt.splitlines()[0]])
    rows = records(
        {"prompt": "what is two and two", "answer": "4"},
        {"prompt": "which colour has the sky over us", "answer": "blue"},
        {"answer": "4"},
    )
    kept, fallen = ran(RoundTrip(threshold=0.7), rows, work(teacher=rule))
    assert kept == ["r0"]
    assert fallen == {"does not come back": ["r1"], "no prompt": ["r2"]}
    (first, _) = rule.asked
    assert first.prompt.messages[0].content.startswith("4\n")
    scored = RoundTrip(mode="score", into="back").run(rows[:2], work(teacher=rule))
    # back: which colour has grass; asked: which colour has sky over us ("the" does not count)
    assert [r["back"] for r in scored] == pytest.approx([1.0, 2 * 3 / (4 + 6)])


def test_places_inside_values_are_not_filled():
    rule = Rule(says=lambda prompt: prompt)
    rows = records({"prompt": "p", "answer": "see {secret}", "secret": "hidden"})
    RoundTrip("{answer} in {prompt}").run(rows, work(teacher=rule))
    assert rule.asked[0].prompt.messages[0].content == "see {secret} in p"


def test_a_failed_reply_is_no_verdict():
    rule = Rule(fails=lambda prompt: "too long" if "b" in prompt else "")
    rows = records({"prompt": "A", "answer": "a"}, {"prompt": "B", "answer": "b"})
    step = RoundTrip("{answer}", mode="score")
    assert ran(step, rows, work(teacher=rule)) == (["r0"], {"no way back: too long": ["r1"]})


class Sums(KDDataModule):
    """Grades by the last character."""

    fields: ClassVar = {"prompt": ("question",), "answer": ()}

    def render(self, row):
        return Example.dialogue(id=row.id, user=row.text("prompt"), assistant=row.text("answer"))

    def grade(self, example, answer):
        return {"right": float(answer[-1] == example.answer[-1]), "there": 1.0}


def test_the_skill_grades():
    rows = records(
        {"question": "1+1", "answer": "so 2", "reference": "2"},
        {"question": "1+1", "answer": "so 3", "reference": "2"},
        {"question": "1+1", "answer": "so 3"},
    )
    kept, fallen = ran(Graded(), rows, work(skill=Sums()))
    assert kept == ["r0"]
    assert fallen == {"right below 1": ["r1"], "no reference": ["r2"]}
    assert ran(Graded(grade="there"), rows[:2], work(skill=Sums()))[0] == ["r0", "r1"]


def test_grading_needs_a_skill_and_a_grade_that_it_has():
    rows = records({"question": "1+1", "answer": "so 2", "reference": "2"})
    with pytest.raises(KDError, match="name one in `skill`"):
        Graded().run(rows, work())
    with pytest.raises(KDError, match="use right, there"):
        Graded(grade="f1").run(rows, work(skill=Sums()))
    with pytest.raises(KDError, match="against themselves"):
        Graded(reference=None)


def test_seeds_of_requests_differ_and_stay():
    rule = Rule()
    rows = records(*({"prompt": c, "answer": c} for c in "abc"))
    RoundTrip().run(rows, work(teacher=rule))
    RoundTrip().run(rows, work(teacher=rule))
    seeds = [r.sampling.seed for r in rule.asked]
    assert len(set(seeds)) == 3 and seeds[:3] == seeds[3:]
    assert ids(rows) == ["r0", "r1", "r2"]
