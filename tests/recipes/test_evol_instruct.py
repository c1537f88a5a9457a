"""Evol-Instruct: each operator in depth adds a step; what failed is eliminated; depth pays."""

import json
import random
import re
from collections import Counter

import pytest

from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from tests.recipes import tasks
from tests.recipes.kit import learn, recipe

SUM = r"\d(?:\+\d)+"
SORRY = "Sorry, that is beyond me."
BASE = 6
"""Of the sums: as many rules for one step as the tiny students learn from so few rows."""


def chain(question: str) -> str:
    return tasks.chain(question, BASE)


def slipped(question: str) -> str:
    """The chain of one who always gets the last step wrong by one."""
    right = chain(question)
    head, _, end = right.rpartition(" so ")
    wrong = str((int(end) + 1) % BASE)
    return f"{head[:-1]}{wrong} so {wrong}"


class Evolver(Rule):
    """Rewrites sums, compares them and answers them; one in eight rewritings fails in some way."""

    def answer(self, prompt: str, rng: random.Random) -> str:
        return self.said(prompt, rng, chain)

    def slip(self, prompt: str, rng: random.Random) -> str:
        return self.said(prompt, rng, slipped)

    def said(self, prompt: str, rng: random.Random, how) -> str:
        found = re.findall(rf"{SUM}(?:\?!)?", prompt)
        if "Verdict: equal" in prompt:
            return f"Verdict: {'equal' if same(found[0]) == same(found[1]) else 'gain'}"
        told = found[0].removesuffix("?!")
        return how(told) if not prompt.endswith("?!") else rng.choice([SORRY, "?! ... and the"])

    def evolved(self, prompt: str, deeper: bool, rng: random.Random) -> str:
        more = f"{prompt}+{rng.randrange(BASE)}"
        other = "+".join(str(rng.randrange(BASE)) for _ in prompt.split("+"))
        failed = (prompt[::-1], f"{more}?!", f"New task: {more}")
        good = more if deeper else other
        return f"<task>{rng.choice(failed) if rng.random() < 1 / 8 else good}</task>"


def same(question: str) -> list[str]:
    return sorted(question.removesuffix("?!").split("+"))


class Teacher(Scripted):
    """Reads the operator in the system prompt, the sum in the user's."""

    def _completion(self, prompt, request, number):
        turns = request.prompt.messages
        if turns[0].role == "system":
            deeper = "hint of a field" not in turns[0].content
            rng = random.Random(json.dumps([prompt, request.sampling.seed]))
            text = self.rule.evolved(prompt, deeper, rng)
            self = Scripted(lambda *_: text)
        return Scripted._completion(self, prompt, request, number)


def made(folder, seed, count=60, operators=None, filters=True):
    def change(run):
        run.seed = seed
        step = run.steps[1]
        step.operators = operators or step.operators
        step.filters = step.filters if filters else [step.filters[3]]

    teacher = Teacher(Evolver(), error_rate=0.05, licence="MIT")
    rows = [{"prompt": r["prompt"]} for r in tasks.sums(count, seed, 3, BASE)]
    return recipe("evol_instruct", folder, {"teacher": teacher}, rows, change)


def depth(record) -> int:
    return record["prompt"].count("+")


def mean(values) -> float:
    told = list(values)
    return sum(told) / len(told)


def test_each_round_is_deeper_and_nothing_that_failed_stays(tmp_path):
    records = made(tmp_path, 0, 60)
    by_round = {g: mean(depth(r) for r in records if r.get("generation", 0) == g) for g in range(5)}
    assert by_round[0] == 2 and by_round[4] > 4
    assert all(by_round[g] < by_round[g + 1] for g in range(4)), by_round
    for record in records:
        if "generation" in record.values:
            before = record["evolved_from"]
            assert depth(record) == before.count("+") + (record["operator"] != "evolve_breadth")
            assert re.fullmatch(SUM, record["prompt"]) and same(before) != same(record["prompt"])
    card = json.loads((tmp_path / "set/card.json").read_text())
    fell = card["steps"][1]["dropped"]
    assert {"speaks of the rewriting", "no gain", "punctuation and stop words only"} <= set(fell)
    assert any(reason.startswith("refusal and") for reason in fell), fell


def test_without_the_eliminations_the_control_keeps_what_failed(tmp_path):
    records = made(tmp_path, 0, 60, filters=False)
    odd = Counter(bool(re.fullmatch(SUM, r["prompt"])) for r in records)
    assert odd[False] > 10


def named(question: str, told: str) -> tuple[str, str]:
    """As the tiny students read it: `3+4+5` is `a3b4c5`, its chain `b1c0`.

    Each term and the sum up to it share a name, so that the way from one to the other is the same
    in sums of all depths.
    """
    digits, parts = question.split("+"), told.rpartition(" so ")[0].split()
    asked = "".join(a + b for a, b in zip("abcdefg", digits, strict=False))
    return asked, "".join(a + b for a, b in zip("bcdefg", parts, strict=False))


def arms(folder, seed) -> tuple[float, float]:
    """Students of tasks that were evolved, and evolved in breadth alone: as many rows, updates."""
    deep = made(folder / "deep", seed, 200)
    flat = made(folder / "flat", seed, 200, {"evolve_breadth": 1.0})
    count, seen = min(len(deep), len(flat)), {r["prompt"] for r in [*deep, *flat]}
    new = [r["prompt"] for r in tasks.sums(200, 99, 4, BASE) if r["prompt"] not in seen]
    pairs = [(question, said[-1]) for question, said in (named(q, chain(q)) for q in new)]
    scores = []
    for name, rows in (("one", deep), ("other", flat)):
        read = [named(r["prompt"], r["answer"]) for r in random.Random(seed).sample(rows, count)]
        some = [{"prompt": question, "answer": answer} for question, answer in read]
        student = learn(folder / name, some, seed, 1000, width=64, rate=2e-3)
        scores.append(student.score(pairs, lambda said: said[-1:]))
    return scores[0], scores[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_evolved_tasks_solves_deeper_ones(tmp_path):
    evolved, broad = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"evolved {evolved}, in breadth alone {broad}")
    assert min(evolved) > max(broad) + 0.1
