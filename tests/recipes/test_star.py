"""STaR: right reasoning is kept, wrong is rationalised, and rounds solve what one model cannot."""

from __future__ import annotations

import random

import pytest

from tests.elicit.kit import Rule
from tests.recipes.kit import Learner, learn, recipe
from tests.recipes.tiny_speaker import Speaking, last, plainly, stepwise

EASY, HARD = "abcdefgh", "ijklmnop"
OTHERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def hear(request):
    """The question, and behind = the answer where the student is told it."""
    text = last(request)
    if "Correct answer: " not in text:
        return text
    task, _, told = text.partition("\n\nCorrect answer: ")
    return f"{task.removeprefix('Task:').strip()}={told.strip()}"


def unhinted(run):
    run.steps[0].hint = ""
    run.steps[0].shots = None


def hinted(run):
    run.steps[0].shots = None


def test_wrong_answers_are_rationalised_and_verified_again(tmp_path):
    said = {
        "1+1": "1 and 1\nAnswer: 2",  # right at once
        "2+2": "2 and 2\nAnswer: 5",  # wrong, right with the hint
        "2+2=4": "twice 2\nAnswer: 4.",
        "3+3": "3 and 3\nAnswer: 5",  # wrong, and wrong with the hint
        "3+3=6": "3 and 3\nAnswer: 7",
        "4+4": "8",  # not in the form, nor with the hint
        "4+4=8": "8",
    }
    seeds = [
        {"id": q, "prompt": q, "reference": str(2 * int(q[0]))} for q in list(said) if len(q) < 4
    ]
    student = Rule(lambda request: said[hear(request)], name="student")
    made = {r.id: r for r in recipe("star", tmp_path, {"student": student}, seeds, hinted)}
    assert list(made) == ["1+1/0", "2+2/h0"]
    assert made["1+1/0"]["answer"] == "1 and 1\nAnswer: 2"
    assert made["2+2/h0"]["rationale"] == "twice 2" and made["2+2/h0"]["hinted"] is True
    assert [e["by"] for e in made["1+1/0"].lineage if "by" in e] == ["student"]
    # what is learned does not show that the answer was told
    assert "=4" not in made["2+2/h0"]["prompt"] and made["2+2/h0"]["prompt"] == "2+2"
    # without rationalisation only what was right at once is left
    student = Rule(lambda request: said[hear(request)], name="student")
    plain = recipe("star", tmp_path / "plain", {"student": student}, seeds, unhinted)
    assert [r.id for r in plain] == ["1+1/0"]


def test_the_question_that_is_put_first_shows_demonstrations_and_not_the_answer(tmp_path):
    student = Rule(lambda request: "so\nAnswer: 7", name="student")
    recipe("star", tmp_path, {"student": student}, [{"prompt": "3 and 4?", "reference": "7"}])
    (request,) = student.asked
    assert request.sampling.temperature == 0 and request.n == 1
    assert sum(m.role == "assistant" for m in request.prompt.messages) == 4
    assert request.prompt.messages[-1].content == "3 and 4?"


class Letters:
    """3+k, where each letter is a digit. Of the hard letters the student has seen no value."""

    def __init__(self, seed):
        self.rng = random.Random(f"letters/{seed}")
        self.values = {letter: self.rng.randrange(10) for letter in EASY + HARD}
        self.questions = [self._asked(d, letter) for letter in EASY + HARD for d in range(10)]
        self.hard = [q for q in self.questions if q["prompt"][2] in HARD]

    def _asked(self, digit, letter):
        result = (digit + self.values[letter]) % 10
        return {"prompt": f"{digit}+{letter}", "reference": str(result)}

    def base(self, count):
        """Easy letters; and for any letter and value, how a known answer is explained."""
        rows = []
        for _ in range(count):
            digit, letter = self.rng.randrange(10), self.rng.choice(EASY)
            rows.append(_solved(digit, letter, self.values[letter], False))
            letter, value = self.rng.choice(OTHERS + EASY + HARD), self.rng.randrange(10)
            rows.append(_solved(digit, letter, value, True))
        return rows


def _solved(digit, letter, value, told):
    result = (digit + value) % 10
    prompt = f"{digit}+{letter}={result}" if told else f"{digit}+{letter}"
    return {"prompt": prompt, "answer": f"{letter} is {value} so {result}"}


def score(learner: Learner, questions) -> float:
    pairs = [(q["prompt"], q["reference"]) for q in questions]
    return learner.score(pairs, lambda answer: answer.rpartition("so ")[2])


def rounds(folder, base, task, seed, change, number):
    """Scores on the hard questions, round after round; each round trains the base anew."""
    student, found = base, []
    for i in range(number):
        generators = {"student": Speaking(student, hear, stepwise)}
        made = recipe("star", folder / f"{i}", generators, task.questions, change)
        rows = [{"prompt": r["prompt"], "answer": plainly(r["answer"])} for r in made]
        student = learn(
            folder / f"{i}-student", rows, seed, steps=150, width=64, rate=1e-3, start=base
        )
        found.append(score(student, task.hard))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rounds_solve_what_stays_unsolved_without_rationalisation(tmp_path):
    star, plain = [], []
    for seed in range(3):
        task = Letters(seed)
        folder = tmp_path / str(seed)
        base = learn(folder / "base", task.base(1500), seed, steps=700, width=64)
        begin = score(base, task.hard)
        assert begin < 0.5
        found = rounds(folder / "star", base, task, seed, hinted, 2)
        assert begin < found[0] <= found[1] + 0.02
        star.append(found[-1])
        plain.append(rounds(folder / "plain", base, task, seed, unhinted, 2)[-1])
        print(f"seed {seed}: base {begin:.3f}, STaR {found}, without hints {plain[-1]:.3f}")
    assert min(star) > 0.9 and max(plain) < 0.5
