"""Constitutional AI: revisions offend less round by round, and a student of them too."""

import re
from itertools import pairwise

import pytest

from kd_lightning.teachers.scripted import spoken
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share
from tests.recipes.tasks import words

BANNED = {"No hash.": "#", "No star.": "*", "No bar.": "!"}
"""Principles, each against one sign."""
OTHERS = ["Be kind.", "Be brief.", "Be clear."]


def offending(word):
    """What the student says at first: the word reversed, and on most words signs behind it."""
    signs = [sign for sign in BANNED.values() if share("sign", word[0], sign) < 0.5]
    return word[::-1] + "".join(signs)


def offends(answer):
    return any(sign in answer for sign in BANNED.values())


def speaker(prompt, rng):
    """Keeps to the principle that it is told; on 15 of 100 it finds nothing wrong."""
    text = spoken(prompt)
    if "Request:" not in text:
        return offending(text)
    principle = re.search(r"[Pp]rinciple: (.+)", text)[1]
    answer = re.search(r"Answer(?: so far)?:\n(.+)", text)[1]
    sign = BANNED.get(principle, "")
    if "Say in a few sentences" in text:
        blind = share("blind", answer, principle) < 0.15
        return f"It holds {sign}" if sign and sign in answer and not blind else "Nothing to say."
    found = re.search(r"It holds (\S)", text)
    return answer.replace(found[1], "") if found else answer


def revised(folder, rows, principles):
    def told(run):
        run.steps[1].draw = {"principle": principles}

    return recipe("constitutional_ai", folder, {"student": Says(speaker)}, rows, told)


def rates(made):
    """Share that offends: at first, and after each round."""
    texts = [[step["answer"] for step in record["chain"]] + [record["answer"]] for record in made]
    return [sum(map(offends, column)) / len(made) for column in zip(*texts, strict=True)]


def test_revisions_offend_less_round_by_round(tmp_path):
    rows = [{"prompt": row["prompt"]} for row in words(200, 0)]
    made = revised(tmp_path, rows, list(BANNED))
    found = rates(made)
    assert len(found) == 5 and found[0] > 0.6
    assert all(after < before for before, after in pairwise(found))
    assert found[-1] < found[0] / 2
    for record in made:
        assert record["initial"] == offending(record["prompt"]) == record["chain"][0]["answer"]
        assert record["answer"].startswith(record["prompt"][::-1])
        assert {"principle", "critique"} <= record["chain"][0].keys()
        assert [e["step"] for e in record.lineage][1:3] == ["01-answer", "02-revise"]
    assert len({tuple(s["principle"] for s in r["chain"]) for r in made}) > 30  # drawn anew


def test_other_principles_change_nothing(tmp_path):
    rows = [{"prompt": row["prompt"]} for row in words(100, 0)]
    found = rates(revised(tmp_path, rows, OTHERS))
    assert len(set(found)) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_student_offends_half_as_often_and_is_as_able(tmp_path):
    """The task: the word reversed, whatever stands behind. Control: other principles."""
    found = []
    for seed in range(3):
        told = [row["prompt"] for row in words(1400, seed, 3, 4)]
        first = [{"prompt": word, "answer": offending(word)} for word in told[:1000]]
        start = learn(tmp_path / f"start{seed}", first, seed, 500)
        rows = [{"prompt": word} for word in told[1000:]]
        held = [row["prompt"] for row in words(200, 80 + seed, 3, 4)]
        of = [scored(start, held)]
        for name, principles in (("own", list(BANNED)), ("other", OTHERS)):
            made = revised(tmp_path / f"{name}{seed}", rows, principles)
            after = learn(tmp_path / f"t{name}{seed}", made, seed, 150, start=start, rate=2e-3)
            of.append(scored(after, held))
        found.append(of)
    print(found)
    for (before, able), (after, still), (other, _) in found:
        assert after <= before / 2 and still >= able - 0.02
        assert other > before - 0.1
    assert max(own[0] for _, own, _ in found) < min(other[0] for _, _, other in found)


def scored(learner, held):
    """Share of answers that offend, and share that reverse the word."""
    said = learner.answers(held)
    able = [text.rstrip("#*!") == word[::-1] for text, word in zip(said, held, strict=True)]
    return sum(map(offends, said)) / len(held), sum(able) / len(held)
