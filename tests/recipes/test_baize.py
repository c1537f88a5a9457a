"""Baize: transcripts are read exactly or not at all; self-distillation with a teacher's ranking.

LoRA (the base weights stay as they are) is a matter of the student: tests/models.
"""

import re

import pytest

from kd_lightning.teachers.scripted import spoken
from kd_lightning.teachers.student import Student
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, goals, share, talk
from tests.recipes.tasks import words

BROKEN = {
    "no marks": lambda good: good.replace("[Human] ", "").replace("[AI] ", ""),
    "twice the person": lambda good: good.replace("[AI]", "[Human]", 1),
    "ends with the person": lambda good: good.rpartition("\n")[0],
    "text before": lambda good: f"Here it is:\n{good}",
    "an empty turn": lambda good: re.sub(r"\[AI\] .*", "[AI]", good, count=1),
}
REASONS = {
    "no marks": "malformed: no turns",
    "twice the person": "malformed: turns do not alternate",
    "ends with the person": "malformed: the last turn is not the answer",
    "text before": "malformed: text before the first turn",
    "an empty turn": "malformed: a turn is empty",
}


def transcript(goal):
    return "\n".join(f"[Human] {said}\n[AI] {answer}" for said, answer in talk(goal))


def flaw(goal):
    """What is wrong with the transcript about a goal: a quarter of them are broken."""
    drawn = share("flaw", goal)
    return list(BROKEN)[int(drawn * 20)] if drawn < 0.25 else ""


def chats(prompt, rng):
    goal = re.search(r"begins with this: (.+)", spoken(prompt))[1]
    if goal == "short":
        return "[Human] Hello\n[AI] Hello"
    if goal == "refused":
        return "[Human] Go on\n[AI] As an AI I may not\n[Human] Why\n[AI] I may not"
    return BROKEN[flaw(goal)](transcript(goal)) if flaw(goal) else transcript(goal)


def test_whole_transcripts_come_through_and_broken_ones_do_not(tmp_path):
    asked = goals(120, 0)
    seeds = [{"prompt": goal} for goal in [*asked, asked[0], "short", "refused"]]
    made = recipe("baize", tmp_path, {"teacher": Says(chats)}, seeds)
    good = [goal for goal in asked if not flaw(goal)]
    assert [record["prompt"] for record in made] == good
    for record in made:
        told = [turn for pair in talk(record["prompt"]) for turn in pair]
        assert [turn["content"] for turn in record["messages"]] == told
        assert [turn["role"] for turn in record["messages"][:2]] == ["user", "assistant"]
        assert [e["step"] for e in record.lineage] == ["seeds", "02-self_chat"]
    fallen = dropped(tmp_path, "02-self_chat")
    for kind, reason in REASONS.items():
        told = {goal for goal in asked if flaw(goal) == kind}
        assert told and fallen[reason] == told
    assert dropped(tmp_path, "01-dedup_exact") == {"repeats an earlier record": {asked[0]}}
    assert dropped(tmp_path, "03-alternates") == {"too few turns": {"short"}}
    assert dropped(tmp_path, "04-no_refusal") == {"refusal": {"refused"}}


def dropped(folder, step):
    import json

    found = {}
    for line in (folder / "set/steps" / step / "dropped.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["reason"], set()).add(row["prompt"])
    return found


def ranks(prompt, rng):
    """The right answer first; on 15 of 100 tasks the slip is taken for right."""
    text = spoken(prompt)
    task = re.search(r"Task:\n(.+)", text)[1]
    wanted = task[::-1]
    if share("ranks", task) < 0.15:
        wanted = task[::-1][1:]
    options = re.findall(r"Answer (\w):\n(.*)", text)
    order = sorted(options, key=lambda option: (option[1] != wanted, option[0]))
    return "Because. Ranking: " + " > ".join(label for label, _ in order)


def half_wrong(rows):
    """Reversed words; on 55 of 100 the last letter is always left out."""
    return [
        {"prompt": w, "answer": w[::-1][1:] if share("base", w) < 0.55 else w[::-1]}
        for w in (row["prompt"] for row in rows)
    ]


def claims(folder, seed):
    """Held-out accuracy before, after the best of four, and after any one of the four."""
    told = words(1500, 10 + seed, 3, 4)
    start = learn(folder / "start", half_wrong(told[:1200]), seed, 600)
    student = Student.live(start.model)
    seeds = [{"prompt": row["prompt"]} for row in told[1200:]]
    picked = recipe("baize_feedback", folder, {"student": student, "teacher": Says(ranks)}, seeds)
    rng_draw = [
        {"prompt": r["prompt"], "answer": r["candidates"][int(4 * share("any", r.id, seed))]}
        for r in picked
        if len(r["candidates"]) == 4
    ]
    held = [(row["prompt"], row["reference"]) for row in words(200, 50 + seed, 3, 4)]
    best = learn(folder / "best", picked, seed, 200, start=start, rate=2e-3)
    any_one = learn(folder / "any", rng_draw, seed, 200, start=start, rate=2e-3)
    return start.score(held), best.score(held), any_one.score(held)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_of_four_teaches_more_than_any_of_the_four(tmp_path):
    found = [claims(tmp_path / str(seed), seed) for seed in range(3)]
    print(found)
    assert max(start for start, _, _ in found) < 0.7
    assert min(best for _, best, _ in found) > max(one for _, _, one in found) + 0.1
