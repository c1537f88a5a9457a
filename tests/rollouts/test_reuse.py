"""One batch of answers for several steps: who is learned from when, and that the clip clips."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.reuse import Reuse
from kd_lightning.types import IGNORE, Progress
from tests.rollouts import kit, reused, runs
from tests.tiny import save_model


def steps(reuse, number, rows=None):
    """What each of the first steps learns from: names to answers."""
    chosen = kit.examples()
    made = []
    for step in range(number):
        some = [chosen[(step + i) % 6] for i in range(4)] if rows is None else rows
        made.append(kit.roll(reuse, kit.batch(some), Progress(step, 20)))
    return made


def test_each_answer_comes_once_an_epoch_in_another_order_and_new_ones_after_all():
    reuse = Reuse(FromStudent(2, kit.SHORT), epochs=3, minibatches=2)
    made = [kit.texts(batch) for batch in steps(reuse, 8)]
    drawn = kit.texts(kit.roll(FromStudent(2, kit.SHORT), kit.batch(kit.examples()[:4]),
                               Progress(0, 20)))  # fmt: skip
    epochs = [made[0:2], made[2:4], made[4:6]]
    for first, second in epochs:
        assert len(first) == len(second) == 2 and first | second == drawn
    assert len({tuple(sorted(first)) for first, _ in epochs}) > 1, "every epoch deals alike"
    again = [kit.examples()[(6 + i) % 6] for i in range(4)]
    fresh = kit.texts(kit.roll(FromStudent(2, kit.SHORT), kit.batch(again), Progress(6, 20)))
    assert made[6] | made[7] == fresh
    assert set(made[6]) == set(made[7]) ^ set(fresh)


def test_the_policy_that_drew_is_told_in_every_step():
    made = steps(Reuse(FromStudent(2, kit.SHORT), epochs=2), 2)
    told = []
    for batch in made:
        where = batch.targets != IGNORE
        rows = {
            (name, answer.tokens): batch.behaviour[i][where[i]].tolist()
            for i, (name, answer) in enumerate(zip(batch.ids, batch.answers, strict=False))
        }
        told.append(rows)
    assert told[0] == told[1] and all(len(v) == len(k[1]) for k, v in told[0].items())


def test_a_step_that_is_done_again_uses_the_same_answers():
    reuse = Reuse(FromStudent(2, kit.SHORT), epochs=2)
    first, again = (kit.roll(reuse, kit.batch(), Progress(0, 9)) for _ in range(2))
    assert kit.texts(first) == kit.texts(again)
    other = kit.roll(reuse, kit.batch(kit.examples(2)), Progress(1, 9))
    assert sorted(kit.texts(other).values()) == sorted(kit.texts(first).values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Reuse(epochs=0), "at least 1"),
        (lambda: Reuse(FromData()), "FromData does not say"),
        (lambda: Mixed(0.5, Reuse()).check(None), "Reuse goes around the whole rollout"),
        (lambda: kit.roll(Reuse(FromStudent(1, kit.SHORT), 1, 9), kit.batch(), Progress(0, 9)),
         "6 prompts were answered, too few for 9 minibatches"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(KDError, match=said):
        make()


# ---- in a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tiny_teacher, tmp_path_factory):
    """Four updates on one batch of answers: ratios, advantages and returns of each."""
    seen = []
    original = PolicyGradient._advantages
    judged = []
    scores = runs.Vowels.scores

    def advantages(self, batch, where, logp, fixed, values):
        found = original(self, batch, where, logp, fixed, values)
        seen[-1] |= {"A": found[0], "R": found[1], "V": values, "where": where}
        return found

    def sums(self, student, teacher, batch, watch=None):
        seen.append({"names": batch.ids, "answers": batch.answers})
        return kept(self, student, teacher, batch, watch)

    class Ratio(runs.ClippedRatio):
        def __call__(self, logp, old, advantages, where):
            ratio = torch.where(where, logp - old, 0.0).exp().detach()
            seen[-1] |= {"ratio": ratio}
            return super().__call__(logp, old, advantages, where)

    kept = PolicyGradient.sums
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyGradient, "_advantages", advantages)
        patch.setattr(PolicyGradient, "sums", sums)
        patch.setattr(runs.Vowels, "scores", lambda *a: judged.append(1) or scores(*a))
        patch.setattr(runs, "ClippedRatio", Ratio)
        patch.setitem(
            runs.CASES,
            "ppo",
            (runs.ppo, lambda: Reuse(FromStudent(n=2, sampling=kit.SHORT), 4, 1), runs.Vowels),
        )
        found = runs.run(tiny_teacher, tmp_path_factory.mktemp("ppo"), "ppo")
    return seen, len(judged), found


def by_answer(step, what):
    """The numbers of each answer's words."""
    rows = {}
    for i, (name, answer) in enumerate(zip(step["names"], step["answers"], strict=False)):
        rows.setdefault((name, answer.tokens), step[what][i][step["where"][i]])
    return rows


def test_the_first_update_has_ratio_one_and_later_ones_are_clipped(watched):
    seen, _, _ = watched
    away = [float((step["ratio"] - 1).abs().max()) for step in seen]
    assert len(away) == 4
    assert away[0] < 1e-4
    assert away[1] > 1e-2
    clipped = [
        int((((s["ratio"] > 1.2) & (s["A"] > 0)) | ((s["ratio"] < 0.8) & (s["A"] < 0))).sum())
        for s in seen
    ]
    assert clipped[0] == 0 and clipped[-1] > 0


def test_advantages_and_returns_are_those_of_the_moment_that_drew(watched):
    seen, judged, _ = watched
    assert judged == 1, "the judge is asked once for each batch of answers"
    for what in ("A", "R", "V"):
        first = by_answer(seen[0], what)
        for step in seen[1:]:
            for key, value in by_answer(step, what).items():
                torch.testing.assert_close(value, first[key], atol=1e-4, rtol=1e-4)
    assert by_answer(seen[0], "A").keys() == by_answer(seen[3], "A").keys()


def test_the_value_head_has_moved_meanwhile(tiny_teacher, tmp_path, monkeypatch):
    """So the values above are kept, not computed anew."""
    said = []
    original = runs.ValueHead.forward

    def forward(self, hidden):
        found = original(self, hidden)
        said.append(float(self.weight.abs().max()))
        return found

    monkeypatch.setattr(runs.ValueHead, "forward", forward)
    runs.run(tiny_teacher, tmp_path, "ppo")
    assert said[0] == 0 and said[-1] > 1e-3


def test_every_update_is_an_optimizer_step(tiny_teacher, tmp_path):
    whole = runs.run(tiny_teacher, tmp_path, "ppo")
    assert len(whole["losses"]) == runs.STEPS
    sizes = [sum(map(len, said.values())) for said in whole["said"]]
    assert sizes == [12, 6, 6, 6], "drawn at once, then learned from in halves"


# ---- what it is for ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_of_as_many_drawings_more_updates_make_more_and_a_random_reward_nothing(seed, tmp_path):
    """At one learning rate: one update at four times the rate does about as well here."""
    save_model(tmp_path / "start", width=32, layers=3, seed=seed)

    def last(*arm):
        found = reused.rewards(str(tmp_path / "start"), tmp_path / "run", *arm)
        assert len(found) == reused.DRAWINGS
        return found[0], sum(found[-4:]) / 4

    (start, once), (same, often), (_, noise) = last(1, seed), last(4, seed), last(4, seed, True)
    assert start == same, "the first answers are the start's"
    assert often > max(once, noise) + 0.02, (start, once, often, noise)
    assert once > start + 0.02, (start, once)
    assert noise - start < (often - start) / 3, (start, often, noise)
