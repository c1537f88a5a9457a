"""Orca: explanations under drawn system prompts; the cheaper teacher first, then the better one."""

from __future__ import annotations

from collections import Counter

import pytest

from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.elicit.pools import pool
from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe
from tests.recipes.tasks import chain, last, sums

STYLES = ("list", "show")


def equations(question):
    """3+4+8 as `3+4=7 7+8=5 so 5`."""
    total, *others = (int(digit) for digit in question.split("+"))
    steps = []
    for digit in others:
        steps.append(f"{total}+{digit}={(total + digit) % 10}")
        total = (total + digit) % 10
    return f"{' '.join(steps)} so {total}"


def better(request):
    system, question = (message.content for message in request.prompt.messages)
    return (equations if system == "show" else chain)(question)


def cheaper(request):
    """Forgets a last number above 6: the same mistake each time."""
    system, question = (message.content for message in request.prompt.messages)
    shorter, _, digit = question.rpartition("+")
    return (equations if system == "show" else chain)(shorter if int(digit) > 6 else question)


def asked(folder, name, teacher, rows):
    def change(run):
        run.steps[0].k = len(rows)
        run.steps[1].draw = {"system": list(STYLES)}

    seeds = [{**row, "task": "sums"} for row in rows]
    return recipe(name, folder / name, {"teacher": Rule(teacher, name=name)}, seeds, change)


def test_each_task_meets_one_of_sixteen_system_prompts_which_the_student_sees(tmp_path):
    rows = [{"prompt": f"q{i}", "task": "ab"[i % 2]} for i in range(400)]
    teacher = Rule(lambda request: f"told {request.prompt.messages[0].content}", name="teacher")

    def few(run):
        run.steps[0].k = 150

    made = recipe("orca", tmp_path, {"teacher": teacher}, rows, few)
    assert Counter(record["task"] for record in made) == {"a": 150, "b": 150}
    drawn = Counter(record["system"] for record in made)
    assert len(pool("systems")) == 16 and set(drawn) == set(pool("systems"))
    assert max(drawn.values()) < 3 * 300 / 16  # none is a favourite
    for record in made:
        assert record["answer"] == f"told {record['system']}"
    data = InstructionFollowing(knowledge=str(tmp_path / "set"), validation_share=0.1)
    for example in map(data.example, data.placed("train")):
        system, user, assistant = example.messages
        assert (system.role, user.role, assistant.role) == ("system", "user", "assistant")
        assert assistant.content == f"told {system.content}"


def test_the_next_draw_of_the_seed_is_another(tmp_path):
    def systems(folder, seed):
        teacher = Rule(lambda request: "told", name="teacher")
        rows = [{"id": str(i), "prompt": f"q{i}", "task": "a"} for i in range(30)]
        made = recipe("orca", tmp_path / folder, {"teacher": teacher}, rows, seed=seed)
        return [record["system"] for record in made]

    assert systems("a", 1) == systems("b", 1) != systems("c", 2)


def score(student, held) -> float:
    """Share that is right, in both styles."""
    pairs = [(f"{style}|{r['prompt']}", r["reference"]) for style in STYLES for r in held]
    return student.score(pairs, last)


def obeys(student, held) -> float:
    """The smaller share, of both styles, of answers that are in the style that was asked for."""
    shares = []
    for style in STYLES:
        said = student.answers([f"{style}|{row['prompt']}" for row in held])
        shares.append(sum(("=" in text) == (style == "show") for text in said) / len(held))
    return min(shares)


def arms(folder, seed) -> tuple[float, float, float, float]:
    """Cheaper explanations, then better ones; these alone; answers alone; the first's style."""
    rows = sums(1420, seed)
    many, few, held = rows[:1100], rows[1100:1220], rows[1220:]
    weak = asked(folder, "orca_weak", cheaper, many)
    strong = asked(folder, "orca", better, few)
    direct = [{**r.values, "answer": r["reference"]} for r in [*weak, *strong]]
    begun = learn(folder / "begun", weak, seed, steps=450, width=64)
    done = learn(folder / "done", strong, seed, steps=120, width=64, rate=1e-3, start=begun)
    alone = learn(folder / "strong", strong, seed, steps=570, width=64)
    answers = learn(folder / "direct", direct, seed, steps=570, width=64)
    return score(done, held), score(alone, held), score(answers, held), obeys(done, held)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weak_then_strong_beats_strong_alone_and_answers_alone(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    both, strong, answers, style = zip(*told, strict=True)
    print(f"cheaper, then better {both}, better alone {strong}, answers {answers}, style {style}")
    assert min(both) >= max(*strong, *answers) + 0.15
    assert min(style) >= 0.9
