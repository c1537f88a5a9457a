"""Self-Instruct: the pool stays unlike itself, each filter has its victim, and growing it pays."""

import json
import random
import re

import pytest

from kd_lightning.errors import KDError
from kd_lightning.metrics.answers import rouge_l
from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from tests.recipes.kit import learn, recipe

LETTERS = "abcdefgh"
ODD = {
    "Draw a map of abc def": "prompt holds 'map'",
    "Say abc": "prompt too short",
    "Write a program that says abc def": "a program is asked for",
    "? what does abc def say": "begins with a sign or another script",
}
"""What a filter of the pool must stop, and what it says."""


def word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(3))


def task(rng: random.Random) -> str:
    """One of three kinds; the last is a classification."""
    a, b = word(rng), word(rng)
    kinds = (f"say {a} {b} backwards", f"swap {a} with {b}", f"does {a} {b} hold {rng.choice(b)}")
    return rng.choice(kinds)


def solved(told: str) -> str:
    """The right answer to a task."""
    if found := re.fullmatch(r"say (\w+) (\w+) backwards", told):
        return f"{found[2][::-1]} {found[1][::-1]}"
    if found := re.fullmatch(r"swap (\w+) with (\w+)", told):
        return f"{found[2]} {found[1]}"
    found = re.fullmatch(r"does (\w+ \w+) hold (\w)", told)
    if found is None:
        raise KDError("I cannot do that")
    return "yes" if found[2] in found[1] else "no"


def wrong(told: str) -> str:
    """One and the same mistake: the words as they stand; the other label."""
    if found := re.fullmatch(r"(?:say|swap) (\w+) (?:with )?(\w+).*", told):
        return f"{found[1]} {found[2]}"
    return {"yes": "no", "no": "yes"}[solved(told)]


class Model(Rule):
    """Writes tasks, tells classifications, makes cases; `slip` makes a case with a wrong answer."""

    def answer(self, prompt: str, rng: random.Random) -> str:
        return self.said(prompt, rng, solved)

    def slip(self, prompt: str, rng: random.Random) -> str:
        return self.said(prompt, rng, wrong)

    def said(self, prompt: str, rng: random.Random, how) -> str:
        if "different tasks" in prompt:
            shown = re.findall(r"^\d+\. (.*)$", prompt, re.M)
            items = [task(rng), task(rng), rng.choice(shown) + " please", rng.choice([*ODD])]
            return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
        told = prompt.split("Task:\n")[1].split("\n")[0]
        if "Labels:" in prompt:
            return f"So. Labels: {'yes' if told.startswith('does') else 'no'}"
        told = told.removesuffix(" please")
        if "The answers to this task are labels" in prompt:
            no = re.sub(r"hold \w", "hold z", told)
            cases = [(told, how(told)), (no, "no"), (no, "yes")]
            cases = cases[: 2 + (how is wrong)]  # one who errs says both
            return "".join(f"<answer>{a}</answer><task>{t}</task>" for t, a in cases)
        return f"<task>{told}</task> <answer>{how(told)}</answer>"


def seeds(seed: int, count: int = 24) -> list[dict[str, str]]:
    rng = random.Random(f"seeds/{seed}")
    return [{"prompt": task(rng)} for _ in range(count)]


def made(folder, seed, target, filters=True, error_rate=0.1):
    def change(run):
        run.seed = seed
        run.steps[0].target = target
        if not filters:
            run.steps[0].filters = []

    model = Scripted(Model(), error_rate, licence="MIT")
    return recipe("self_instruct", folder, {"teacher": model}, seeds(seed), change), folder / "set"


def dropped(folder) -> dict[str, int]:
    steps = json.loads((folder / "card.json").read_text())["steps"]
    return {reason: n for step in steps for reason, n in step["dropped"].items()}


def pooled(folder) -> list[str]:
    """The tasks that stand in the pool, before there are cases of them."""
    lines = (folder / "steps/01-from_pool/records.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def likest(texts: list[str], given: list[str]) -> list[float]:
    """Of each text the ROUGE-L with the likest before it."""
    earlier = [[*given, *texts[:i]] for i in range(len(texts))]
    return [max(rouge_l(t, [o]) for o in e) for t, e in zip(texts, earlier, strict=True)]


def test_the_pool_stays_unlike_itself_and_each_filter_has_its_victim(tmp_path):
    records, folder = made(tmp_path, 0, 60)
    pool = pooled(folder)
    assert len(pool) == 60
    assert max(likest(pool, [row["prompt"] for row in seeds(0)])) < 0.7
    fell = dropped(folder)
    assert {*ODD.values(), "repeats an earlier record"} <= set(fell), fell
    assert not set(ODD) & set(pool)
    assert len(records[0].lineage[0]["from"]) == 8, "six seeds and two of its own"


def test_without_the_filters_the_control_repeats_itself(tmp_path):
    _, folder = made(tmp_path, 0, 60, filters=False)
    pool = pooled(folder)
    assert sum(found >= 0.7 for found in likest(pool, [""])) > 10
    assert set(ODD) <= set(pool)


def test_classifications_get_their_label_first_and_contradictions_fall(tmp_path):
    records, folder = made(tmp_path, 0, 60)
    labels = {r["answer"] for r in records if r["classification"] == "yes"}
    assert labels == {"yes", "no"}
    assert all(r["prompt"].startswith("does") == (r["classification"] == "yes") for r in records)
    assert dropped(folder)["answered differently elsewhere"] > 0
    assert len({r["prompt"] for r in records}) == len(records)


def arms(folder, seed) -> tuple[float, float]:
    """Students of the grown set and of the seeds with right answers: same updates."""
    rng = random.Random("test")
    pairs = [(told, solved(told)) for told in (task(rng) for _ in range(150))]
    grown, _ = made(folder, seed, 1500)
    own = [{**row, "answer": solved(row["prompt"])} for row in seeds(seed)]
    one = learn(folder / "grown", grown, seed, 800, width=64)
    other = learn(folder / "own", own, seed, 800, width=64)
    return one.score(pairs), other.score(pairs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_the_grown_set_beats_one_of_the_seeds(tmp_path):
    grown, own = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"grown {grown}, seeds alone {own}")
    assert min(grown) > max(own) + 0.1
