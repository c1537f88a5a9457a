"""Feedback: ratings, errors, pairs in both orders, rankings, revision."""

import json
import math

import pytest

from kd_lightning.curate.agree import SwapConsistent
from kd_lightning.elicit import Compare, Critique, ErrorSpans, Prefer, Rank, Rate, Revise
from kd_lightning.errors import KDError
from kd_lightning.types import Sampling
from tests.elicit.kit import Rule, last, records, run
from tests.elicit.test_shipped import ERRORS

ASPECTS = {"Truth": "is it so", "Form": "is it short"}
WARM = Sampling(temperature=1.0)


def pairs(*pairs_):
    return records(*({"prompt": "p", "candidates": list(p)} for p in pairs_))


# ---- Rate -----------------------------------------------------------------------------------


def test_ratings_of_an_answer_and_of_candidates(tmp_path):
    def rule(request):
        return f"truth: {1 + last(request).count('!')}\nform: 4"

    made, _ = run(Rate(ASPECTS), records("p", answer="yes!"), tmp_path, teacher=Rule(rule))
    assert made[0]["ratings"] == {"Truth": 2.0, "Form": 4.0} and made[0]["score"] == 3.0
    (tmp_path / "b").mkdir()
    made, _ = run(
        Rate(ASPECTS, field="candidates"), pairs(("a!!!", "b")), tmp_path / "b", teacher=Rule(rule)
    )
    assert made[0]["scores"] == [4.0, 2.5] and len(made[0]["ratings"]) == 2


def test_several_judgements_are_averaged(tmp_path):
    step = Rate({"truth": "?"}, n=3, sampling=WARM)
    rule = Rule(lambda r: ["truth: 1", "truth: 2", "truth: 5"])
    made, _ = run(step, records("p", answer="x"), tmp_path, teacher=rule)
    assert made[0]["score"] == pytest.approx(8 / 3)


def test_a_judgement_that_leaves_an_aspect_out_is_malformed(tmp_path):
    made, work = run(
        Rate(ASPECTS), records("p", answer="x"), tmp_path, teacher=Rule(lambda r: "truth: 3")
    )
    assert not made and work.tally.dropped == {"malformed: not each aspect rated, or others": 1}


def test_one_bad_candidate_takes_the_record_with_it(tmp_path):
    rule = Rule(lambda r: "none" if "bad" in last(r) else "truth: 3")
    step = Rate({"truth": "?"}, field="candidates")
    made, work = run(step, pairs(("a", "bad"), ("a", "b")), tmp_path, teacher=rule)
    assert [r.id for r in made] == ["r1"] and [r.id for r, _ in work.fallen] == ["r0"]


# ---- pairs ----------------------------------------------------------------------------------


def honest(request):
    a, b = (last(request).split(f"Answer {x}:\n")[1].split("\n")[0] for x in "AB")
    return f"Better: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


def test_an_honest_judge_says_the_same_in_both_orders(tmp_path):
    rows = pairs(("long", "s"), ("s", "long"), ("same", "even"))
    made, _ = run(Compare(), rows, tmp_path, teacher=Rule(honest))
    assert [r["verdicts"] for r in made] == [["A", "A"], ["B", "B"], ["tie", "tie"]]
    assert [r["verdict"] for r in made] == ["A", "B", "tie"]
    assert [r["scores"] for r in made] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


def test_a_judge_that_likes_the_first_place_decides_nothing(tmp_path):
    made, _ = run(Compare(), pairs(("long", "s")), tmp_path, teacher=Rule(lambda r: "Better: A"))
    assert made[0]["verdicts"] == ["A", "B"]
    assert made[0]["verdict"] == "tie" and made[0]["scores"] == [0.5, 0.5]
    (tmp_path / "b").mkdir()
    blind, _ = run(
        Compare(swap=False), pairs(("long", "s")), tmp_path / "b",
        teacher=Rule(lambda r: "Better: A"),
    )  # fmt: skip
    assert blind[0]["verdict"] == "A", "the control without the swap believes it"


def test_the_swap_filter_reads_what_compare_writes(tmp_path):
    rule = Rule(lambda r: honest(r) if "long" in last(r) else "Better: A")
    made, _ = run(Compare(), pairs(("long", "s"), ("x", "y")), tmp_path, teacher=rule)
    kept, work = run(SwapConsistent(), made, tmp_path)
    assert [(r.id, r["verdict"]) for r in kept] == [("r0", "A")]
    assert work.tally.dropped == {"orders disagree": 1}


def test_choice_log_probabilities_are_averaged_over_both_orders(tmp_path):
    """P = (sigma(d + bias) + 1 - sigma(-d + bias)) / 2 for a judge with a liking for A."""

    def choices(request):
        a, b = (last(request).split(f"Answer {x}:\n")[1].split("\n")[0] for x in "AB")
        return (0.5 * (len(a) - len(b)) + bias - 3.0, -3.0)

    def sigma(x):
        return 1 / (1 + math.exp(-x))

    for bias in (0.0, 2.0, -900.0):
        folder = tmp_path / str(bias)
        folder.mkdir()
        rows = pairs(("longer", "s"), ("same", "even"))
        made, _ = run(Prefer(), rows, folder, teacher=Rule(choices=choices))
        want = (sigma(2.5 + bias) + 1 - sigma(-2.5 + bias)) / 2 if bias > -9 else 0.5
        assert made[0]["scores"] == pytest.approx([want, 1 - want])
        assert made[1]["scores"] == pytest.approx([0.5, 0.5]), "a bias takes no side"


def test_pairs_have_two(tmp_path):
    for step in (Compare(), Prefer()):
        with pytest.raises(KDError, match="needs 2 texts in `candidates`, and record r0"):
            run(step, pairs(("a", "b", "c")), tmp_path, teacher=Rule(honest))
    with pytest.raises(KDError, match="two or more"):
        run(Rank(), records("a"), tmp_path, teacher=Rule(honest))


# ---- lists ----------------------------------------------------------------------------------


def by_length(request):
    shown = {x: last(request).split(f"Answer {x}:\n")[1].split("\n")[0] for x in "ABC"}
    return f"Ranking: {' > '.join(sorted(shown, key=lambda x: -len(shown[x])))}"


def test_a_ranking_names_candidates_whatever_order_they_were_shown_in(tmp_path):
    generator = Rule(by_length)
    rows = pairs(*[("aa", "aaaa", "a")] * 12)
    made, _ = run(Rank(), rows, tmp_path, teacher=generator)
    assert all(r["ranking"] == [1, 0, 2] and r["scores"] == [1, 2, 0] for r in made)
    assert len({last(r) for r in generator.asked}) > 3, "shown in different orders"


@pytest.mark.parametrize("told", ["Ranking: A > B", "Ranking: A > B > D", "Ranking: A > B > C > D"])
def test_a_ranking_of_others_is_malformed(tmp_path, told):
    made, work = run(Rank(), pairs(("a", "b", "c")), tmp_path, teacher=Rule(lambda r: told))
    assert not made
    assert work.tally.dropped == {"malformed: not each label ranked, or others": 1}


# ---- one answer -----------------------------------------------------------------------------


def test_error_spans_must_stand_in_the_answer(tmp_path):
    rule = Rule(lambda r: json.dumps(ERRORS))
    rows = records({"prompt": "p", "answer": "It is 41."}, {"prompt": "p", "answer": "It is 42."})
    made, work = run(ErrorSpans(), rows, tmp_path, teacher=rule)
    assert [r.id for r in made] == ["r0"] and made[0]["errors"] == ERRORS
    assert work.tally.dropped == {"malformed: an error's words do not stand in the answer": 1}


def test_a_critique_comes_with_its_verdict(tmp_path):
    made, _ = run(Critique(), records("p", answer="x"), tmp_path,
                  teacher=Rule(lambda r: "Good.\nVerdict: keep"))  # fmt: skip
    assert (made[0]["critique"], made[0]["verdict"]) == ("Good.", "keep")


def fixer(request):
    """Takes one error (x) away at a time; content when there is none."""
    if "Verdict" not in last(request):
        answer = last(request).split("Answer so far:\n")[1].split("\n")[0]
        return answer.replace("x", "", 1) or "-"
    answer = last(request).split("Answer:\n")[1].split("\n")[0]
    return f"{answer.count('x')} errors\nVerdict: {'revise' if 'x' in answer else 'keep'}"


def test_revision_goes_on_until_nothing_is_left_to_say(tmp_path):
    rows = records(*({"prompt": "p", "answer": a} for a in ("ok", "okx", "okxx", "okxxxxx")))
    made, _ = run(Revise(rounds=3), rows, tmp_path, teacher=Rule(fixer))
    assert [r["revision"] for r in made] == ["ok", "ok", "ok", "okxx"]
    assert [r["verdict"] for r in made] == ["keep", "keep", "keep", "revise"]
    assert [len(r["chain"]) for r in made] == [1, 2, 3, 4]
    assert [step["answer"] for step in made[2]["chain"]] == ["okxx", "okx", "ok"]
    assert made[1]["answer"] == "okx", "the first answer stays"


def test_a_least_number_of_revisions_is_made_whatever_the_verdict(tmp_path):
    generator = Rule(fixer)
    made, _ = run(Revise(least=1), records("p", answer="ok"), tmp_path, teacher=generator)
    assert len(made[0]["chain"]) == 2 and len(generator.asked) == 3


def test_a_principle_is_drawn_in_each_round(tmp_path):
    principles = ["be brief", "be kind", "be true"]
    generator = Rule(lambda request: f"re: {len(last(request))}")
    step = Revise("constitutional_critique", "constitutional_revise", rounds=4,
                  draw={"principle": principles})  # fmt: skip
    made, _ = run(step, records(*"abcdef", answer="x"), tmp_path, teacher=generator)
    assert len(generator.asked) == 6 * 4 * 2, "no critique behind the last revision"
    drawn = [step["principle"] for record in made for step in record["chain"]]
    assert set(drawn) == set(principles) and len(made[0]["chain"]) == 4
    critiques, revisions = generator.asked[:6], generator.asked[6:12]
    for record, one, other in zip(made, critiques, revisions, strict=True):
        principle = record["chain"][0]["principle"]
        assert principle in last(one) and principle in last(other), "the same in both"


def test_a_record_falls_where_its_revision_fails(tmp_path):
    def rule(request):
        if "Verdict" in last(request):
            return "bad\nVerdict: revise"
        return "" if "stuck" in last(request) else "better"

    rows = records({"prompt": "stuck", "answer": "a"}, {"prompt": "p", "answer": "a"})
    made, work = run(Revise(rounds=1), rows, tmp_path, teacher=Rule(rule))
    assert [r.id for r in made] == ["r1"]
    assert [(r.id, why) for r, why in work.fallen] == [("r0", "malformed: the answer is empty")]
