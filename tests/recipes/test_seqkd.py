"""SeqKD: the student says what the teacher says, in its words and with its mistakes."""

import random
from dataclasses import replace

import pytest

from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from tests.recipes import tasks
from tests.recipes.kit import learn, recipe


class Chains(Rule):
    """Writes the partial sums of a sum; the slip: the second term is taken for 0."""

    def answer(self, prompt, rng):
        return tasks.chain(prompt)

    def slip(self, prompt, rng):
        first, _, *others = prompt.split("+")
        return tasks.chain("+".join([first, "0", *others]))


def made(folder, seed, count):
    teacher = Scripted(Chains(), error_rate=0.05, licence="MIT")
    rows = [{"prompt": r["prompt"]} for r in tasks.sums(count, seed)]
    return recipe("seqkd", folder, {"teacher": teacher}, [*rows, rows[0]])


def shuffled(records, seed):
    """The same answers, behind other questions: the control."""
    answers = [r["answer"] for r in records]
    random.Random(seed).shuffle(answers)
    pairs = zip(records, answers, strict=True)
    return [replace(r, values={**r.values, "answer": a}) for r, a in pairs]


def test_each_prompt_once_in_the_teachers_words_and_with_its_name(tmp_path):
    records = made(tmp_path, 0, 100)
    assert len({r["prompt"] for r in records}) == len(records) == 100
    right = [r["answer"] == tasks.chain(r["prompt"]) for r in records]
    assert 88 <= sum(right) < 100, "its mistakes are kept: nothing filters them"
    assert all(r.lineage[-1]["by"] == "teacher" for r in records)
    control = [r["answer"] == tasks.chain(r["prompt"]) for r in shuffled(records, 0)]
    assert sum(control) < 10


def arms(folder, seed) -> tuple[float, float]:
    """Students of the teacher's answers, and of the same answers shuffled."""
    pairs = [(r["prompt"], r["reference"]) for r in tasks.sums(150, 99)]
    records = made(folder, seed, 1200)
    control = shuffled(records, seed)
    told = {"seed": seed, "steps": 1200, "width": 64, "rate": 2e-3}
    one, other = learn(folder / "one", records, **told), learn(folder / "other", control, **told)
    return one.score(pairs, tasks.last), other.score(pairs, tasks.last)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_its_answers_beats_one_of_the_shuffled_ones(tmp_path):
    taught, control = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"taught {taught}, control {control}")
    assert min(taught) > max(control) + 0.3
    assert max(control) < 0.25
