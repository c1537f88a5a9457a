"""UltraChat: two agents over topics; a student of whole dialogues against one of single turns."""

import json
import re
from collections import Counter

import pytest

from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import SLOTS, Says, goals, share, talk, upto

LOOP = "Could you tell me that once more, please?"


def fault(goal):
    """A person who loops, thanks or leaves after one round: 15 of 100 dialogues."""
    drawn = share("fault", goal)
    return "loop" if drawn < 0.05 else "thanks" if drawn < 0.1 else "left" if drawn < 0.15 else ""


def person(prompt, rng):
    goal = re.search(r"What you care about: (.+)", prompt.messages[0].content)[1]
    turn = sum(m.role == "assistant" for m in prompt.messages)
    rounds = talk(goal)
    if turn == len(rounds) and fault(goal) == "thanks":
        return "Thank you so much."
    if fault(goal) == "left" and turn == 1:
        return "[END]"
    if fault(goal) == "loop" and turn:
        return LOOP
    return rounds[turn][0] if turn < len(rounds) else "[END]"


def helper(prompt, rng):
    """Knows topics, and answers the last turn out of all that was said before it."""
    said = [m.content for m in prompt.messages if m.role == "user"]
    if found := re.search(r"Name (\d+) parts of the topic \"(\w+)\"", said[-1]):
        return "\n".join(f"{found[2]} {part}" for part in ("one", "two"))
    if found := re.search(r"Write (\d+) questions or tasks about \"(\w+) (\w+)\"", said[-1]):
        wanted = [g for g in goals(320, found[3] == "two") if g.split()[0] == found[2]]
        return "\n".join(wanted[: int(found[1])])
    name, *told = said
    if not all(len(one) == 1 for one in told) or name not in SLOTS:
        return "I see."
    whole = len(told) == SLOTS[name]
    return f"{name} {''.join(told)}" if whole else f"{len(told) + 1}?"


def dialogues(folder, count):
    def smaller(run):
        run.steps[0].given = {"count": 2}
        run.steps[1].given = {"count": count}
        run.steps[2].threshold = 1.0  # goals of one kind share most of their words

    seeds = [{"topic": name} for name in SLOTS]
    return recipe(
        "ultrachat", folder, {"user": Says(person, "user"), "teacher": Says(helper)}, seeds, smaller
    )


def test_dialogues_take_turns_cover_topics_and_do_not_loop(tmp_path):
    made = dialogues(tmp_path, 15)
    assert len(made) > 150
    for record in made:
        turns = record["messages"]
        assert [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert 3 <= len(turns) // 2 <= 7
        assert [t["content"] for t in turns] == [t for pair in talk(record["prompt"]) for t in pair]
    counts = Counter(record["prompt"].split()[0] for record in made)
    even = len(made) / len(SLOTS)
    assert set(counts) == set(SLOTS)
    assert all(0.5 * even <= n <= 1.5 * even for n in counts.values())


def test_each_filter_takes_what_it_is_for(tmp_path):
    made = dialogues(tmp_path, 15)
    assert not any(fault(record["prompt"]) for record in made)
    found = {}
    for path in sorted((tmp_path / "set/steps").glob("*/dropped.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["reason"], set()).add(fault(row["prompt"]))
    assert found["fewer than 6 turns"] == {"left"}
    assert found["thanks instead of a turn"] == {"thanks"}
    assert found["a line twice"] == {"loop"}


def goal_completion(learner, held):
    """Share of held-out orders that are repeated rightly after the last round."""
    return learner.score([(upto(goal, len(talk(goal))), goal) for goal in held])


def arms(folder, seed) -> tuple[float, float]:
    """Held-out orders by students of the dialogues, and of the same turns, each alone."""
    made = dialogues(folder, 60)
    alone = [
        {"prompt": asked["content"], "answer": told["content"]}
        for record in made
        for asked, told in zip(record["messages"][::2], record["messages"][1::2], strict=True)
    ]
    known = {record["prompt"] for record in made}
    held = [goal for goal in goals(300, 9) if goal not in known][:120]
    talks = learn(folder / "talks", made, seed, 900, width=64)
    single = learn(folder / "single", alone, seed, 900, width=64)
    return goal_completion(talks, held), goal_completion(single, held)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dialogues_teach_what_single_turns_do_not(tmp_path):
    """At least 90 of 100 held-out orders; the same turns, each alone, at most 60."""
    talks, single = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"dialogues {talks}, single turns {single}")
    assert min(talks) >= 0.9 and max(single) <= 0.6
