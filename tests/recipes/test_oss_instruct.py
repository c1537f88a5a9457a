"""OSS-Instruct: snippets of a corpus become problems; copies, repeats and a benchmark's fall."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.vectors import TfIdf
from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from tests.curate.kit import work
from tests.recipes.kit import learn, recipe

WORDS = {"+": "plus", "-": "minus", "*": "times"}


def program(rng: random.Random, signs: str = "+-*") -> str:
    """`x * 2 + 3`: read from left to right."""
    steps = [f"{rng.choice(signs)} {rng.randint(2, 9)}" for _ in range(rng.randint(1, 3))]
    return " ".join(["x", *steps])


def problem(told: str) -> str:
    """The program in words: `from x times 2 then plus 3`."""
    steps = re.findall(r"([-+*]) (\d)", told)
    return "from x " + " then ".join(f"{WORDS[sign]} {number}" for sign, number in steps)


def value(told: str, x: int) -> int | None:
    """What the interpreter makes of a program; None: it is none."""
    if not re.fullmatch(r"x(?: [-+*] \d)+", told):
        return None
    for sign, number in re.findall(r"([-+*]) (\d)", told):
        x = {"+": x + int(number), "-": x - int(number), "*": x * int(number)}[sign]
    return x


def passes(told: str, right: str) -> bool:
    return all(value(told, x) == value(right, x) for x in range(7))


class Inspired(Rule):
    """A problem after the last program line of the snippet; the slip forgets the last step."""

    def answer(self, prompt, rng):
        return self.said(prompt, rng, lambda told: told)

    def slip(self, prompt, rng):
        return self.said(prompt, rng, lambda told: told.rpartition(" ")[0].rpartition(" ")[0])

    def said(self, prompt, rng, how):
        found = re.findall(r"= (x(?: [-+*] \d)+)$", prompt, re.M)
        if not found:
            return "## Problem\nnothing comes to my mind"
        told = found[-1]
        solution = how(told) if " " in how(told) else told
        if rng.random() < 0.1:
            fence = f"```\n{solution}\n```"
            return f"## Problem\n{problem(told)}\n{fence}\n## Solution\n{fence}"
        return f"## Problem\n{problem(told)}\n## Solution\n{solution}"


def corpus(count: int, seed: int) -> list[dict[str, str]]:
    """Files of a few functions each."""
    rng = random.Random(f"corpus/{seed}")
    files = []
    for i in range(count):
        parts = [f"def f{j}(x):\n    y = {program(rng)}\n    return y" for j in range(3)]
        files.append({"content": f"# file {i}\n" + "\n\n".join(parts)})
    return files


def made(folder, seed, count):
    folder.mkdir(parents=True, exist_ok=True)
    exam = folder / "exam.jsonl"
    rows = [{"text": problem(told)} for told in held(80)]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def change(run):
        run.seed = seed
        run.seeds = replace(run.seeds, columns={"code": "content"})
        run.steps[0].fewest, run.steps[0].snippets = 3, 2
        found = {type(step).__name__: step for step in run.steps}
        found["DecontaminateSubstring"].against = {"exam": Corpus(str(exam), "text")}
        run.steps[3].field = ["prompt", "answer"]  # two problems may have one short solution
        found["DedupMinHash"].ngram = 9  # problems here are of a few words each

    teacher = Scripted(Inspired(), error_rate=0.15, licence="MIT")
    return recipe("oss_instruct", folder, {"teacher": teacher}, corpus(count, seed), change)


def held(count: int) -> list[str]:
    """Programs that are asked for in the end: three steps each, so that none is inside another."""
    rng = random.Random("held")
    made: dict[str, None] = {}
    while len(made) < count:
        told = program(rng)
        made.update({told: None} if len(told) > 9 else {})
    return list(made)


def test_what_has_no_problem_repeats_copies_or_is_of_the_exam_falls(tmp_path):
    records = made(tmp_path, 0, 300)
    card = json.loads((tmp_path / "set/card.json").read_text())
    fell = Counter()
    for step in card["steps"]:
        fell.update(step["dropped"])
    reasons = {"malformed: ## Solution missing", "repeats an earlier record",
               "answer repeats code of prompt", "holds a text of exam"}  # fmt: skip
    assert reasons <= set(fell), fell
    exam = {problem(told) for told in held(80)}
    asked = [r["prompt"] for r in records]
    assert not exam & set(asked) and len(set(asked)) == len(asked)
    assert all("```" not in text for text in asked)
    assert all(r["snippet"].count("\n") < 15 and "code" not in r.values for r in records)
    right = [passes(r["answer"], back(r["prompt"])) for r in records]
    assert 0.7 < sum(right) / len(right) < 0.95, "nothing verifies: the teacher's slips stay"


def back(told: str) -> str:
    """The program that a problem asks for."""
    signs = {word: sign for sign, word in WORDS.items()}
    steps = re.findall(r"(plus|minus|times) (\d)", told)
    return " ".join(["x", *(f"{signs[word]} {number}" for word, number in steps)])


def test_problems_are_less_like_the_exam_than_those_imitated_from_it(tmp_path):
    """The control writes new problems after the exam's own, as Self-Instruct would of its seeds."""
    exam = [problem(told) for told in held(80)]
    ours = [r["prompt"] for r in made(tmp_path, 0, 150)]
    rng = random.Random(0)
    control = [re.sub(r"\d", lambda m: rng.choice([m[0], "5"]), rng.choice(exam)) for _ in ours]
    points = TfIdf().of([*exam, *ours, *control], work())
    near = points[80:] @ points[:80].T
    nearest = near.max(1)
    assert nearest[: len(ours)].mean() < nearest[len(ours) :].mean()


def arms(folder, seed) -> tuple[float, float, float]:
    """pass@1 of students of the problems, of shuffled solutions, and of the snippets alone."""
    records = made(folder, seed, 700)
    answers = [r["answer"] for r in records]
    random.Random(seed).shuffle(answers)
    mixed = [{"prompt": r["prompt"], "answer": a} for r, a in zip(records, answers, strict=True)]
    alone = [{"prompt": "code", "answer": r["snippet"]} for r in records]
    scores = []
    for name, rows in (("one", records), ("mixed", mixed), ("alone", alone)):
        student = learn(folder / name, rows, seed, 400, width=64)
        said = student.answers([problem(told) for told in held(80)])
        scores.append(sum(map(passes, said, held(80))) / 80)
    return scores[0], scores[1], scores[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_the_problems_beats_those_of_the_controls(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    ours, mixed, alone = zip(*told, strict=True)
    print(f"problems {ours}, shuffled {mixed}, snippets alone {alone}")
    assert min(ours) >= max(*mixed, *alone) + 0.1
