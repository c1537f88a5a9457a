"""DEITA: twentieth of a pool that is complex, right and various beats a random fifth of it."""

import json
import random
import re

import pytest

from kd_lightning.curate.vectors import TfIdf
from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from tests.curate.kit import work
from tests.recipes import tasks
from tests.recipes.kit import learn, recipe


class Grader(Rule):
    """Rates words to be reversed by their length, answers by whether they are; or by the slip.

    Whoever slips takes a copied word for right, and long words for easy.
    """

    def answer(self, prompt, rng):
        word, answer = read(prompt)
        if "How good" in prompt:
            return f"Score: {6 if answer == word[::-1] else 2}"
        return f"Score: {min(6, len(word) - 1)}"

    def slip(self, prompt, rng):
        word, answer = read(prompt)
        if "How good" in prompt:
            return f"Score: {6 if answer == word else 3}"
        return f"Score: {max(1, 7 - len(word))}"


def read(prompt):
    word = re.search(r"Task:\nreverse (\w+)", prompt)[1]
    answer = re.search(r"Answer:\n(\w+)", prompt)
    return word, answer[1] if answer else ""


def pool(seed: int, count: int) -> list[dict[str, str]]:
    """Half of the answers only copy the word; each third row is said again, more politely."""
    rng = random.Random(f"pool/{seed}")
    rows = []
    for row in tasks.words(count * 3 // 4, seed, 2, 6):
        word = row["prompt"]
        answer = word if rng.random() < 0.5 else word[::-1]
        rows.append({"prompt": f"reverse {word}", "answer": answer})
        if len(rows) % 4 == 3:
            rows.append({"prompt": f"reverse {word} {word} now", "answer": answer})
    return rows[:count]


def made(folder, seed, rows, k, closest=0.9):
    def change(run):
        run.seed = seed
        novelty = run.steps[-1]
        novelty.k, novelty.closest, novelty.vectors = k, closest, TfIdf(4096)
        novelty.field = "prompt"

    judge = Scripted(Grader(), error_rate=0.1, licence="MIT")
    return recipe("deita", folder, {"judge": judge, "embedder": judge}, rows, change)


def right(row) -> bool:
    return row["answer"] == row["prompt"].split()[1][::-1]


def share(rows) -> float:
    return sum(map(right, rows)) / len(rows)


def test_the_selected_are_complex_right_and_unlike_each_other(tmp_path):
    rows = pool(0, 1600)
    records = made(tmp_path, 0, rows, 80)
    assert len(records) == 80
    length = sum(len(r["prompt"].split()[1]) for r in records) / 80
    assert length > 5.5 > 5 > sum(len(r["prompt"].split()[1]) for r in rows) / len(rows)
    assert share(rows) < 0.55 and share(records) > 0.8, "the judge errs on a tenth"
    points = TfIdf(4096).of([r["prompt"] for r in rows], work())
    place = {row["prompt"]: i for i, row in enumerate(rows)}
    chosen = points[[place[r["prompt"]] for r in records]]
    near = chosen @ chosen.T
    assert max(near[i, j] for i in range(80) for j in range(i)) < 0.9
    for r in records:
        assert r["score"] == r["complexity"] * r["quality"]
    fell = json.loads((tmp_path / "set/card.json").read_text())["steps"][-1]["dropped"]
    assert set(fell) == {"near a record of a higher score", "enough records of a higher score"}


def test_without_the_distance_the_control_says_the_same_twice(tmp_path):
    records = made(tmp_path, 0, pool(0, 1600), 80, closest=1.0)
    words = [r["prompt"].split()[1] for r in records]
    assert len(words) - len(set(words)) > 5


def arms(folder, seed) -> tuple[float, float]:
    """Students of the selected twentieth, and of four times as many drawn: same updates."""
    rows = pool(seed, 8000)
    pairs = [(f"reverse {r['prompt']}", r["reference"]) for r in tasks.words(150, 99, 4, 6)]
    drawn = random.Random(seed).sample(rows, 1600)
    told = {"seed": seed, "steps": 400, "width": 48}
    one = learn(folder / "one", made(folder, seed, rows, 400), **told)
    other = learn(folder / "other", drawn, **told)
    return one.score(pairs), other.score(pairs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_the_selected_beats_one_of_four_times_as_many_drawn(tmp_path):
    selected, drawn = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"selected {selected}, drawn {drawn}")
    assert min(selected) > max(drawn) + 0.1
