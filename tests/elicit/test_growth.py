"""Pools that grow and prompts that evolve."""

import random

import pytest

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.dedup import DedupExact, DedupMinHash, DedupRougeL
from kd_lightning.elicit import Evolve, FromPool, Rate
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import Step
from tests.elicit.kit import Rule, Stopped, last, records, run

SEEDS = records(*(f"Name a kind of {x}." for x in ("tree", "bird", "fish", "stone")))


def listed(request):
    """Four items, of which one repeats a seed and one depends on the request."""
    number = request.sampling.seed % 50
    return f"1. Name a kind of bird.\n2. Count to {number}.\n3. Spell {number}.\n4. Draw {number}."


def pool(**more):
    return FromPool(
        **{"target": 30, "batch": 4, "from_seeds": 2, "from_made": 1, **more},
    )


def rows_of(made):
    return [record.as_row() for record in made]


def test_it_grows_to_the_target_with_demonstrations_of_both_kinds(tmp_path):
    generator = Rule(listed)
    made, work = run(pool(filters=[DedupExact()]), SEEDS, tmp_path, teacher=generator)
    texts = [r["prompt"] for r in made]
    assert len(made) == 30 == len(set(texts))
    assert "Name a kind of bird." not in texts, "repeats a seed"
    assert set(work.tally.dropped) == {"repeats an earlier record", "beyond the target"}
    first, later = last(generator.asked[0]), last(generator.asked[-1])
    assert first.count("Name a kind of") == 3 and "Count" not in first
    assert later.count("Name a kind of") == 2, "two seeds and one of its own"
    assert all(len(r.lineage[0]["from"]) == 3 for r in made)


def test_without_the_filter_the_control_repeats(tmp_path):
    made, _ = run(pool(), SEEDS, tmp_path, teacher=Rule(listed))
    assert [r["prompt"] for r in made].count("Name a kind of bird.") > 5


def test_the_pool_is_neither_returned_nor_counted(tmp_path):
    """Seeds that a filter would drop stay out of the count."""

    class Short(Step):
        def run(self, records, work):
            for record in records:
                if "kind" in record["prompt"]:
                    work.drop(record, "kind")
            return [r for r in records if "kind" not in r["prompt"]]

    made, work = run(
        pool(target=12, filters=[Short()], keep_seeds=True), SEEDS, tmp_path, teacher=Rule(listed)
    )
    assert [r.id for r in made[:4]] == [r.id for r in SEEDS] and len(made) == 16
    assert work.tally.dropped == {"kind": 4}, "one of each of the four answers"


class Again(Step):
    """A step that remembers nothing: the pool passes it again in every round."""

    def __init__(self, step):
        self.step = step

    def run(self, records, work):
        return self.step.run(records, work)


class Halve(Step):
    """Shortens what it lets pass: the pool holds other texts than the steps before it saw."""

    def run(self, records, work):
        for record in records:
            if len(record["prompt"]) % 5 == 0:
                work.drop(record, "five")
        kept = [r for r in records if len(r["prompt"]) % 5]
        return [r.changed(work.name, prompt=r["prompt"][: len(r["prompt"]) // 2 + 4]) for r in kept]


@pytest.mark.parametrize(
    "step",
    [DedupExact(), DedupRougeL(threshold=0.6), DedupMinHash(threshold=0.7, ngram=1)],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("others", [[], [Halve()]])
def test_a_pool_that_is_remembered_grows_as_one_that_is_filtered_again(tmp_path, step, others):
    said = tmp_path / "said.jsonl"
    said.write_text('{"text": "ab cd ef"}\n')
    step.against = Corpus(str(said), "text")
    few = ("ab", "cd", "ef", "gh", "ij", "kl")

    def words(request):
        rng = random.Random(request.sampling.seed)
        drawn = [" ".join(rng.choices(few, k=rng.randint(1, 4))) for _ in range(4)]
        return "\n".join(f"{i}. {text}" for i, text in enumerate(drawn, 1))

    seeds = records("ab cd", "ab cd", "ab ab cd", "gh ij")  # they repeat each other
    grown = []
    for i, filters in enumerate(([step, *others], [Again(step), *others])):
        folder = tmp_path / str(i)
        folder.mkdir()
        grower = pool(target=80, filters=filters, patience=6)
        made, work = run(grower, seeds, folder, teacher=Rule(words))
        told = [(r.id, r["prompt"]) for r in made]
        grown.append((told, work.tally.dropped, [r.id for r, _ in work.fallen]))
    assert grown[0] == grown[1]
    told, dropped, _ = grown[0]
    assert len(told) > 30 and dropped["repeats an earlier record"] > 40


def test_twice_with_one_journal_asks_nothing_new(tmp_path):
    step = pool(filters=[DedupExact()])
    made, _ = run(step, SEEDS, tmp_path, teacher=Rule(listed))
    again = Rule(listed)
    assert rows_of(run(step, SEEDS, tmp_path, teacher=again)[0]) == rows_of(made)
    assert again.asked == []


@pytest.mark.parametrize("dies", [1, 4, 7, 11])
def test_killed_in_the_middle_it_ends_as_if_undisturbed(tmp_path, dies):
    judged = Rate({"truth": "is it so"}, field="prompt")  # a filter that asks, within the pool

    def rule(request):
        return "truth: 4" if "Rate the answer" in last(request) else listed(request)

    step = pool(filters=[DedupExact(), judged], target=12, batch=2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = Rule(rule)
    want, _ = run(step, SEEDS, tmp_path / "a", teacher=undisturbed)
    first, second = Rule(rule, dies=dies), Rule(rule)
    with pytest.raises(Stopped):
        run(step, SEEDS, tmp_path / "b", teacher=first)
    got, _ = run(step, SEEDS, tmp_path / "b", teacher=second)
    assert rows_of(got) == rows_of(want)
    assert len(first.asked) + len(second.asked) == len(undisturbed.asked)
    assert all(r["score"] == 4 for r in got)


def test_it_stops_where_nothing_new_comes(tmp_path):
    generator = Rule(lambda request: "1. The same.")
    made, work = run(pool(filters=[DedupExact()], patience=3), SEEDS, tmp_path, teacher=generator)
    assert len(made) == 1
    assert work.tally.notes["short of the target"] == 29 and work.tally.notes["rounds"] == 4


def test_too_few_seeds_are_refused(tmp_path):
    with pytest.raises(KDError, match="give more seeds"):
        run(pool(from_seeds=6), SEEDS, tmp_path, teacher=Rule(listed))


# ---- Evolve ---------------------------------------------------------------------------------


def longer(request):
    return f"<task>{last(request)}+</task>"


def test_every_generation_is_kept(tmp_path):
    rows = records("a", "b", answer="old", reference="old", licence="mine")
    made, _ = run(Evolve(rounds=3), rows, tmp_path, teacher=Rule(longer))
    assert [r["prompt"] for r in made] == ["a", "b", "a+", "b+", "a++", "b++", "a+++", "b+++"]
    new = made[2:]
    assert [r["generation"] for r in new] == [1, 1, 2, 2, 3, 3]
    assert [r["evolved_from"] for r in new] == ["a", "b", "a+", "b+", "a++", "b++"]
    assert all("answer" not in r.values and "reference" not in r.values for r in new)
    assert made[0]["answer"] == "old" and new[0]["licence"] == "mine"
    assert new[-1].id == "r1/e1/e2/e3" and len(new[-1].lineage) == 3


def test_operators_are_drawn_by_their_weights(tmp_path):
    weights = {"evolve_breadth": 3.0, "evolve_deepen": 1.0, "evolve_reasoning": 0.0}
    rows = records(*map(str, range(400)))
    made, _ = run(
        Evolve(rounds=1, operators=weights, keep_originals=False), rows, tmp_path,
        teacher=Rule(longer),
    )  # fmt: skip
    used = [r["operator"] for r in made]
    assert set(used) == {"evolve_breadth", "evolve_deepen"}
    assert 260 < used.count("evolve_breadth") < 340  # 300, deviation 8.7


class NoB(Step):
    """Eliminates what was made of b once."""

    def run(self, records, work):
        for record in records:
            if record["prompt"] == "b+":
                work.drop(record, "eliminated")
        return [r for r in records if r["prompt"] != "b+"]


def test_what_is_eliminated_is_tried_again_from_its_parent(tmp_path):
    generator = Rule(longer)
    made, work = run(
        Evolve(rounds=2, filters=[NoB()]), records("a", "b"), tmp_path, teacher=generator
    )
    assert [r["prompt"] for r in made] == ["a", "b", "a+", "a++"]
    assert work.tally.dropped == {"eliminated": 2}
    assert [last(r) for r in generator.asked] == ["a", "b", "a+", "b"]


def test_a_prompt_that_did_not_change_is_eliminated(tmp_path):
    made, work = run(
        Evolve(rounds=1), records("a b"), tmp_path, teacher=Rule(lambda r: "<task>a  b</task>")
    )
    assert len(made) == 1 and work.tally.dropped == {"evolved into itself": 1}


def test_weights_are_checked():
    with pytest.raises(KDError, match="weights"):
        Evolve(operators={"evolve_deepen": 0.0})
