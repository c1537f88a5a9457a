"""What each rollout says it does: coins, mixtures, drafts, buffers."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.rollouts.adaptive import OnValidation
from kd_lightning.rollouts.answers import asked
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.engines import Generate
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.from_teacher import FromTeacher
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.replay import Replay
from kd_lightning.rollouts.speculative import Speculative
from kd_lightning.rollouts.teacher_mixed import TeacherMixed
from kd_lightning.schedules import Linear
from kd_lightning.types import IGNORE, Batch, Progress, Sampling, Source
from tests.rollouts import kit


def logprobs(model, batch):
    """log p(target) `[B, T]` by a forward pass; 0 where there is none."""
    logits = model(batch).logits[..., : model.head.vocab].log_softmax(-1)
    picked = logits.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0]
    return torch.where(batch.targets != IGNORE, picked, 0.0).detach()


# ---- rows -------------------------------------------------------------------------------------


def test_the_prompt_is_what_stands_before_the_last_answer():
    rows = kit.batch()
    for row, told in zip(asked(rows), kit.examples(), strict=True):
        text = kit.pair()[0].tokenizer.decode(row.prompt)
        assert told.prompt[0].content in text and told.answer not in text
        assert row.given.ids[: len(row.prompt)] == row.prompt
        learned = [i for i, w in zip(row.given.ids, row.given.weights, strict=True) if w]
        assert list(row.given.completion.tokens) == learned


def test_the_datas_rows_go_through_unchanged():
    rows = kit.batch(fillers=1)
    assert kit.roll(FromData(), rows) is rows
    kept = kit.roll(Mixed(0.0), rows)
    for name in ("input_ids", "targets", "weights", "attention_mask", "source"):
        assert torch.equal(getattr(kept, name)[:-1], getattr(rows, name)[:-1]), name
    assert (kept.targets[-1] == IGNORE).all()


def test_of_a_document_the_first_tokens_are_given():
    rows = kit.documents()
    made = kit.roll(FromStudent(sampling=kit.SHORT, document_prompt=7), rows)
    start = made.targets.ne(IGNORE).int().argmax(1)
    assert start.tolist() == [7, 7, 7]  # bos and seven tokens
    assert torch.equal(made.input_ids[:, :8], rows.input_ids[:, :8])


# ---- the student ------------------------------------------------------------------------------


def test_behaviour_is_what_a_forward_pass_says():
    student, _ = kit.pair()
    made = kit.roll(FromStudent(n=2, sampling=kit.SHORT), kit.batch())
    assert made.behaviour is not None
    torch.testing.assert_close(made.behaviour.double(), logprobs(student, made), atol=2e-5, rtol=0)
    assert len(set(map(tuple, kit.texts(made)["row-0"]))) == 2, "answers of one prompt are alike"


def test_words_come_from_the_students_distribution():
    """Frequencies of the first word over many steps, against the softmax."""
    student, _ = kit.pair()
    rows = kit.batch(kit.examples(1))
    one = FromStudent(n=500, sampling=Sampling(max_new_tokens=1, temperature=1.0))
    made = kit.roll(one, rows)
    first = torch.tensor([answer.tokens[0] for answer in made.answers])
    found = torch.bincount(first, minlength=student.head.vocab).double() / len(first)
    place = made.targets[0].ne(IGNORE).int().argmax()
    expected = student(made).logits[0, place, : student.head.vocab].softmax(-1).detach()
    assert 0.5 * (found - expected).abs().sum() < 0.5 * 2 * (88 / 500) ** 0.5
    assert (found - expected).abs().max() < 0.08


def test_gkd_with_fraction_one_and_greedy_is_done_by_hand():
    student, teacher = kit.pair()
    rows = kit.batch()
    made = kit.roll(Mixed(1.0, FromStudent(sampling=kit.GREEDY)), rows)
    loss = JensenShannon(beta=0.5)
    found = loss(student(made), teacher.model(made), made).terms[loss.name]
    total = torch.zeros((), dtype=torch.float64)
    for row in asked(rows):
        ids = list(row.prompt)
        while len(ids) < len(row.prompt) + kit.GREEDY.max_new_tokens and ids[-1] != 2:
            logits = student.transformer(torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
        start, given = len(row.prompt) - 1, torch.tensor([ids])
        q, p = (
            m.transformer(given).logits[0, start:-1].softmax(-1) for m in (student, teacher.model)
        )
        m = 0.5 * (p + q)
        total = total.detach() + 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
    assert float(found.detach()) == pytest.approx(float(total), rel=1e-5)
    assert (made.source == Source.STUDENT).all()


def test_an_answer_without_an_end_is_flagged_and_may_be_left_out():
    cut = Sampling(max_new_tokens=2, temperature=1.0)
    plain, masked = (
        kit.roll(FromStudent(n=3, sampling=cut, mask_truncated=m), kit.batch()) for m in (0, 1)
    )
    assert [a.tokens for a in plain.answers] == [a.tokens for a in masked.answers]
    open = torch.tensor([not a.finished for a in plain.answers])
    assert open.any() and (plain.weights[open].sum(1) > 0).all()
    assert masked.weights[open].sum() == 0
    assert torch.equal(masked.weights[~open].sum(), plain.weights[~open].sum())


def test_memory_that_runs_out_halves_the_batch_once(monkeypatch):
    from kd_lightning.models import drawing

    original, sizes = drawing.draw, []

    def draw(model, draws, *more):
        sizes.append(len(draws))
        if len(draws) > 3:
            raise torch.OutOfMemoryError
        return original(model, draws, *more)

    whole = kit.texts(kit.roll(FromStudent(sampling=kit.SHORT), kit.batch()))
    monkeypatch.setattr(drawing, "draw", draw)
    with pytest.warns(UserWarning, match="6 answers at once do not fit into memory: 3 from now on"):
        found = kit.texts(kit.roll(FromStudent(sampling=kit.SHORT), kit.batch()))
    assert found == whole and sizes == [6, 3, 3]
    with pytest.raises(torch.OutOfMemoryError):
        small = FromStudent(sampling=kit.SHORT, engine=Generate(rows=6))
        monkeypatch.setattr(
            drawing, "draw", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError)
        )
        kit.roll(small, kit.batch())


# ---- the coin ---------------------------------------------------------------------------------


def coins(mixed, rows, step=3, seed=5):
    student, teacher = kit.pair()
    moment = Moment(student, teacher, Progress(step, 100), seed)
    return [mixed.own(row, moment) for row in asked(rows)]


def test_the_coin_has_the_right_mean_and_forgets_nothing():
    rows = kit.batch()
    thrown = [coins(Mixed(0.3), rows, step) for step in range(400)]
    share = sum(map(sum, thrown)) / (400 * 6)
    assert share == pytest.approx(0.3, abs=0.03)
    assert thrown == [coins(Mixed(0.3), rows, step) for step in range(400)]
    assert thrown != [coins(Mixed(0.3), rows, step, seed=6) for step in range(400)]
    columns = list(zip(*thrown, strict=True))
    assert len(set(columns)) == 6, "rows share a coin"


def test_the_coin_of_a_row_is_the_same_wherever_the_row_is():
    chosen = kit.examples()
    whole = coins(Mixed(0.5), kit.batch(chosen))
    backwards = coins(Mixed(0.5), kit.batch(chosen[::-1], fillers=2))
    assert whole == backwards[::-1] and len(set(whole)) == 2


def test_one_coin_for_a_step():
    thrown = [coins(Mixed(0.5, per="step"), kit.batch(), step) for step in range(50)]
    assert all(len(set(each)) == 1 for each in thrown)
    assert 10 < sum(each[0] for each in thrown) < 40


def test_the_fraction_follows_a_schedule():
    mixed = Mixed(Linear(0.0, 1.0))
    shares = [sum(sum(coins(mixed, kit.batch(), s)) for s in span) / 120
              for span in (range(20), range(80, 100))]  # fmt: skip
    assert shares[0] < 0.25 and shares[1] > 0.75


def test_the_fraction_rises_when_validation_gets_worse():
    rises = OnValidation(start=0.2, by=0.3, margin=0.1)
    mixed = Mixed(rises)
    values = []
    for loss in (1.0, 1.05, 1.2, 1.25, 2.0, 3.0, 4.0):
        mixed.end_validation(loss)
        values.append(rises(Progress(0, 1)))
    assert values == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.8, 1.0, 1.0])
    other = Mixed(OnValidation(start=0.2, by=0.3, margin=0.1))
    other.load_state_dict(mixed.state_dict())
    assert other.student_fraction(Progress(0, 1)) == 1.0


# ---- both models ------------------------------------------------------------------------------


def test_the_teachers_words_are_the_teachers():
    _, teacher = kit.pair()
    made = kit.roll(FromTeacher(sampling=kit.GREEDY), kit.batch())
    assert (made.source == Source.TEACHER).all()
    logits = teacher.model(made).logits[..., : teacher.model.head.vocab]
    where = made.targets != IGNORE
    assert torch.equal(logits.argmax(-1)[where], made.targets[where])


def test_the_mixture_is_drawn_from_and_told():
    student, teacher = kit.pair()
    made = kit.roll(TeacherMixed(0.3, n=2, sampling=kit.SHORT), kit.batch())
    p, q = logprobs(teacher.model, made).exp(), logprobs(student, made).exp()
    where = made.targets != IGNORE
    assert made.behaviour is not None
    expected = (0.3 * p + 0.7 * q)[where].log()
    torch.testing.assert_close(made.behaviour[where].double(), expected, atol=2e-5, rtol=0)
    assert (expected - q[where].log()).abs().max() > 0.1


def test_importance_weights_make_the_mixture_right():
    """E of w f over the mixture is E of f over the student; f is a word's log p of the teacher."""
    student, teacher = kit.pair()
    rows = kit.batch(kit.examples(1))
    one = Sampling(max_new_tokens=1, temperature=1.0)
    mixed = kit.roll(TeacherMixed(0.5, n=800, sampling=one), rows)
    where = mixed.targets != IGNORE
    f = logprobs(teacher.model, mixed)[where]
    w = (logprobs(student, mixed)[where] - mixed.behaviour.double()[where]).exp()
    place = mixed.targets[0].ne(IGNORE).int().argmax()
    q, p = (
        m(mixed).logits[0, place, : m.head.vocab].log_softmax(-1) for m in (student, teacher.model)
    )
    true = float((q.exp() * p).sum())
    spread = float((w * f).std() / len(f) ** 0.5)
    assert abs(float((w * f).mean()) - true) < 4 * spread
    assert abs(float(f.mean()) - true) > 4 * spread, "without weights it is another number"


@pytest.mark.parametrize("block", [1, 4, 16])
def test_drafts_are_corrected(block):
    student, teacher = kit.pair()
    made = kit.roll(Speculative(top=5, block=block, n=2, sampling=kit.SHORT), kit.batch())
    logits = teacher.model(made).logits[..., : teacher.model.head.vocab]
    where = made.targets != IGNORE
    rank = (logits > logits.gather(-1, made.targets.clamp_min(0)[..., None])).sum(-1)
    assert rank[where].max() < 5
    own = kit.roll(FromStudent(n=2, sampling=kit.SHORT), kit.batch())
    logits = teacher.model(own).logits[..., : teacher.model.head.vocab]
    rank = (logits > logits.gather(-1, own.targets.clamp_min(0)[..., None])).sum(-1)
    assert rank[own.targets != IGNORE].max() >= 5, "nothing was to be corrected"


def test_drafts_at_both_ends_are_the_teachers_and_the_students():
    rows = kit.batch()
    strict = kit.roll(Speculative(top=1, sampling=kit.SHORT), rows)
    assert kit.texts(strict) == kit.texts(kit.roll(FromTeacher(sampling=kit.GREEDY), rows))
    free = kit.roll(Speculative(top=88, sampling=kit.GREEDY, block=3), rows)
    assert kit.texts(free) == kit.texts(kit.roll(FromStudent(sampling=kit.GREEDY), rows))


# ---- the buffer -------------------------------------------------------------------------------


def test_replayed_answers_are_those_of_earlier_steps():
    replay = Replay(FromStudent(sampling=kit.SHORT), capacity=9, reuse=0.6)
    chosen = kit.examples()
    seen: set[tuple[str, tuple[int, ...]]] = set()
    again = 0
    for step in range(12):
        some = [chosen[(step + i) % 6] for i in range(3)]
        made = kit.roll(replay, kit.batch(some), Progress(step, 20))
        fresh = kit.roll(FromStudent(sampling=kit.SHORT), kit.batch(some), Progress(step, 20))
        for example, answer in zip(made.examples, made.answers, strict=True):
            words = (example.id, answer.tokens)
            if answer.tokens in kit.texts(fresh).get(example.id, []):
                seen.add(words)
            else:
                again += 1
                assert words in seen
        assert len(replay._held) <= 9
    assert 8 < again < 32


def test_the_buffer_does_not_depend_on_who_drew(monkeypatch):
    chosen = kit.examples()
    whole = Replay(FromStudent(sampling=kit.SHORT))
    for step in range(3):
        kit.roll(whole, kit.batch(chosen), Progress(step, 10))
    split = [Replay(FromStudent(sampling=kit.SHORT)) for _ in range(2)]
    for step in range(3):
        drawn = []
        for rank, replay in enumerate(split):
            monkeypatch.setattr(replay, "_keep", drawn.extend)
            kit.roll(replay, kit.batch(chosen[rank::2]), Progress(step, 10))
            monkeypatch.undo()
        for replay in split:
            replay._keep(drawn)
    assert split[0].state() == split[1].state() == whole.state()


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FromStudent(n=0), "n must be at least 1"),
        (lambda: FromStudent(sampling=Sampling(stop=("x",))), "leave sampling.stop out"),
        (lambda: Mixed(1.5), "within 0 to 1"),
        (lambda: TeacherMixed(1.0), "FromStudent and FromTeacher"),
        (lambda: TeacherMixed(0.2, sampling=kit.GREEDY), "temperature 1 from all tokens"),
        (lambda: Replay(reuse=1.0), "who would draw"),
        (lambda: Speculative(top=0), "top and block"),
        (lambda: FromTeacher().check(None), "write model.teacher"),
        (lambda: Mixed(0.5, TeacherMixed()).check(None), "TeacherMixed needs a teacher"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(KDError, match=said):
        make()


def test_a_batch_keeps_groups_together():
    made = kit.roll(FromStudent(n=3, sampling=kit.SHORT), kit.batch())
    pieces = made.split(rows=4)
    assert [len(p) for p in pieces] == [3] * 6
    assert all(isinstance(p, Batch) and len(p.answers) == 3 for p in pieces)
    assert [a.tokens for p in pieces for a in p.answers] == [a.tokens for a in made.answers]
