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


@pytest.mark.slow
def test_weak_then_strong_beats_strong_alone_and_answers_alone(tmp_path):
    progressive, strong_alone, answers_alone, styles = [], [], [], []
    for seed in range(3):
        folder, rows = tmp_path / str(seed), sums(1420, seed)
        many, few, held = rows[:1100], rows[1100:1220], rows[1220:]
        weak = asked(folder, "orca_weak", cheaper, many)
        strong = asked(folder, "orca", better, few)
        direct = [{**r.values, "answer": r["reference"]} for r in [*weak, *strong]]

        def said(student, style, held=held):
            return student.answers([f"{style}|{row['prompt']}" for row in held])

        def score(student, held=held, said=said):
            pairs = [
                (answer, row["reference"])
                for style in STYLES
                for answer, row in zip(said(student, style), held, strict=True)
            ]
            return sum(last(answer) == right for answer, right in pairs) / len(pairs)

        begun = learn(folder / "begun", weak, seed, steps=450, width=64)
        done = learn(folder / "done", strong, seed, steps=120, width=64, rate=1e-3, start=begun)
        progressive.append(score(done))
        strong_alone.append(score(learn(folder / "strong", strong, seed, steps=570, width=64)))
        answers_alone.append(score(learn(folder / "direct", direct, seed, steps=570, width=64)))
        styles += [
            sum(("=" in answer) == (style == "show") for answer in said(done, style)) / len(held)
            for style in STYLES
        ]
        print(
            f"seed {seed}: cheaper alone {score(begun):.3f}, then better {progressive[-1]:.3f}, "
            f"better alone {strong_alone[-1]:.3f}, answers alone {answers_alone[-1]:.3f}"
        )
    assert min(progressive) >= max(strong_alone) + 0.15
    assert min(progressive) >= max(answers_alone) + 0.15
    assert min(styles) >= 0.9
