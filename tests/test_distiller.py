"""One step is one step: however it is split, what is counted, what is logged, when it stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer

import kd_lightning.losses as losses
from kd_lightning.errors import KDError
from kd_lightning.losses.weighted import Term
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.teachers.local import LocalTeacher
from tests import steps
from tests.conftest import ROOT
from tests.tiny import config


@pytest.mark.parametrize("name", steps.named_losses())
def test_micro_batches_do_not_change_the_step(name, tiny_teacher, tmp_path):
    made = [
        steps.step(tiny_teacher, steps.named_losses()[name], tmp_path, **how)
        for how in (
            {},
            {"micro_batch_rows": 1},
            {"micro_batch_rows": 2},
            {"micro_batch_rows": 3},
            {"micro_batch_tokens": 15},
        )
    ]
    whole = torch.tensor(made[0]["gradient"])
    assert whole.abs().max() > 1e-4
    for split in made[1:]:
        assert split["loss"] == pytest.approx(made[0]["loss"], abs=1e-6)
        assert (torch.tensor(split["gradient"]) - whole).abs().max() < 1e-9


def test_mean_of_means_would_differ(tiny_teacher, tmp_path):
    """The wrong normaliser: averaging micro-batch means, as if each counted alike."""
    batch = steps.global_batch()
    loss = losses.CrossEntropy()
    model = steps.distiller(tiny_teacher, loss)
    fit = steps.trainer(tmp_path)
    fit.strategy.connect(model)
    model.trainer = fit
    model.configure_model()
    means = []
    for row in (0, 3):
        micro = batch.rows(row, row + 1)
        total = model.student(micro, lambda out, m=micro: loss(out, None, m)).terms["ce"]
        means.append(float(total.detach() / loss.count(micro)["ce"]))
    true = steps.step(tiny_teacher, losses.CrossEntropy(), tmp_path)["loss"]
    assert abs(sum(means) / 2 - true) > 1e-3


def test_two_processes_make_the_same_step(tiny_teacher, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.steps", tiny_teacher, str(tmp_path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "steps.json").read_text())
    assert set(found) == set(steps.named_losses())
    for name, loss in steps.named_losses().items():
        alone = steps.step(tiny_teacher, loss, tmp_path)
        assert found[name]["loss"] == pytest.approx(alone["loss"], abs=1e-6), name
        off = torch.tensor(found[name]["gradient"]) - torch.tensor(alone["gradient"])
        assert off.abs().max() < 1e-9, name


def fitted(tiny_teacher, tmp_path, loss, number=3, **more):
    model = steps.distiller(tiny_teacher, loss, **more)
    trainer = steps.trainer(tmp_path, max_steps=number)
    trainer.fit(model, steps.Steps(number))
    return model, trainer


def test_teacher_is_never_trained_saved_or_counted(tiny_teacher, tmp_path):
    model, trainer = fitted(tiny_teacher, tmp_path, losses.ForwardKL())
    again = LocalTeacher(tiny_teacher)
    again.materialize(torch.device("cpu"))
    for a, b in zip(model.teacher.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad and a.grad is None
    assert not model.teacher.model.training
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert all(name.startswith("student.") for name in state["state_dict"])
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.student.parameters()}


def test_global_step_counts_optimizer_steps_and_clipping_holds(tiny_teacher, tmp_path):
    model, trainer = fitted(
        tiny_teacher, tmp_path, losses.ForwardKL(), micro_batch_rows=1, gradient_clip_norm=1e-3
    )
    assert trainer.global_step == 3
    free, _ = fitted(tiny_teacher, tmp_path, losses.ForwardKL(), number=1)
    held, _ = fitted(tiny_teacher, tmp_path, losses.ForwardKL(), number=1, gradient_clip_norm=1e-3)
    start = steps.distiller(tiny_teacher, losses.ForwardKL())
    start.trainer = trainer
    start.configure_model()

    def moved(model):
        pairs = zip(model.student.parameters(), start.student.parameters(), strict=True)
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt().item()

    assert moved(held) == pytest.approx(1e-3, rel=1e-3) and moved(free) > 1e-2


def test_warm_up_and_cosine_follow_the_length_of_the_run(tiny_teacher, tmp_path):
    model = steps.distiller(
        tiny_teacher,
        losses.CrossEntropy(),
        scheduler=lambda o: WarmupCosine(o, warmup=0.2, final=0.1),
    )
    trainer = steps.trainer(tmp_path, max_steps=10)
    rates = []
    original = model.log_step
    model.log_step = lambda v, n, s, lr: (rates.append(lr), original(v, n, s, lr))[1]
    trainer.fit(model, steps.Steps(10))
    assert rates[0] == pytest.approx(0.5) and rates[1] == rates[2] == pytest.approx(1.0)
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0.1)


def test_a_loss_without_its_teacher_is_refused_at_set_up(tmp_path, tiny_teacher):
    model = steps.distiller(tiny_teacher, losses.ForwardKL())
    model.teacher = None
    with pytest.raises(KDError, match="ForwardKL needs a teacher"):
        steps.trainer(tmp_path).fit(model, steps.Steps())


def test_a_teacher_that_cannot_serve_the_loss_is_refused(tmp_path, tiny_teacher):
    model = steps.distiller(tiny_teacher, losses.ForwardKL())
    model.teacher.offers = frozenset()
    with pytest.raises(KDError, match="ForwardKL needs logits of the teacher, and LocalTeacher"):
        steps.trainer(tmp_path).fit(model, steps.Steps())


def test_a_differing_tokenizer_is_refused(tmp_path, tiny_teacher, stories):
    model = steps.distiller(tiny_teacher, losses.ForwardKL())
    model.teacher = LocalTeacher(stories)
    with pytest.raises(KDError, match="first at id 0"):
        steps.trainer(tmp_path).fit(model, steps.Steps())


def test_a_new_student_without_any_tokenizer_is_refused(tmp_path):
    from kd_lightning.distiller import Distiller

    model = Distiller(StudentSpec(config=config()), losses.CrossEntropy())
    with pytest.raises(KDError, match=r"model\.student\.tokenizer"):
        steps.trainer(tmp_path).fit(model, steps.Steps())


class Poisoned(losses.CrossEntropy):
    """Not a number in the second step."""

    step = 0

    def per_row(self, tokens):
        return super().per_row(tokens) * (float("nan") if self.step == 1 else 1.0)

    def begin_step(self, progress):
        self.step = progress.step


def test_a_loss_that_is_not_a_number_stops_before_the_optimizer_moves(tiny_teacher, tmp_path):
    try:
        good, _ = fitted(tiny_teacher, tmp_path, losses.CrossEntropy(), number=1)
        model = steps.distiller(tiny_teacher, Poisoned())
        with pytest.raises(KDError, match=r"at step 1: stopped .*row-0, row-1, row-2, row-3"):
            steps.trainer(tmp_path, max_steps=3).fit(model, steps.Steps(3))
        for a, b in zip(model.student.parameters(), good.student.parameters(), strict=True):
            assert torch.equal(a, b)
        state = torch.load(tmp_path / "not_finite" / "step-1.ckpt", weights_only=True)
        saved = state["state_dict"]["student.model.model.norm.weight"]
        assert torch.equal(saved, good.student.model.model.norm.weight)
        rows = json.loads((tmp_path / "not_finite" / "step-1-rank-0.json").read_text())
        assert rows["ids"] == ["row-0", "row-1", "row-2", "row-3"]
    finally:
        Poisoned.__abstractmethods__ = frozenset({"per_row"})  # out of every family's contract


def test_validation_reports_losses_and_agreement(tiny_teacher, tmp_path):
    terms = {
        "ce": Term(losses.CrossEntropy(), 0.5),
        "kl": Term(losses.ForwardKL(), 0.5),
    }
    model = steps.distiller(tiny_teacher, losses.Weighted(terms))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    found = trainer.validate(model, steps.Steps(), verbose=False)[0]
    seen = []
    forward = model.teacher.forward
    model.teacher.forward = lambda batch, needs: (seen.append(len(batch)), forward(batch, needs))[1]
    model.micro_batch_rows = 3
    split = trainer.validate(model, steps.Steps(), verbose=False)[0]
    assert seen == [3, 1]  # no more rows at once than in training
    assert split == pytest.approx(found, rel=1e-5, abs=1e-6)
    batch = steps.global_batch()
    student = model.student(batch).logits.log_softmax(-1)
    with torch.inference_mode():
        teacher = model.teacher.forward(batch, frozenset()).logits.log_softmax(-1)
    counted = batch.targets >= 0
    p, lp, lq = teacher.exp()[counted], teacher[counted], student[counted]
    assert found["val/kl"] == pytest.approx(float((p * (lp - lq)).sum(-1).mean().detach()), 1e-4)
    assert found["val/tokens"] == int(counted.sum())
    assert found["val/agreement"] == float((lp.argmax(-1) == lq.argmax(-1)).float().mean())
    gold = batch.targets[counted][:, None]
    assert found["val/teacher_ce"] == pytest.approx(float(-lp.gather(-1, gold).mean()), 1e-4)
    both = found["val/loss/ce"] + found["val/loss/kl"]
    assert found["val/loss"] == pytest.approx(both, 1e-5)


def test_padded_vocabularies_of_one_tokenizer(tmp_path):
    """Same tokenizer, different numbers of rows: padding rows neither count nor learn."""
    from kd_lightning.distiller import Distiller
    from tests.tiny import save_model

    save_model(tmp_path / "t", width=32, vocab_size=128, tie_word_embeddings=False)
    loss = losses.ForwardKL()
    padded = config(vocab_size=96, tie_word_embeddings=False, initializer_range=0.3)
    model = Distiller(
        StudentSpec(config=padded),
        loss,
        LocalTeacher(str(tmp_path / "t")),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )
    fit = steps.trainer(tmp_path)
    fit.strategy.connect(model)
    model.trainer = fit
    model.configure_model()
    batch = steps.global_batch()
    student = model.student(batch).logits
    teacher = model.teacher.forward(batch, frozenset()).logits.clone()
    assert student.shape[-1] == 96 and teacher.shape[-1] == 128
    counted = batch.weights > 0
    lp = teacher[counted][:, :88].log_softmax(-1)
    lq = student[counted][:, :88].log_softmax(-1)
    each = (lp.exp() * (lp - lq)).sum(-1) * batch.weights[counted]
    before = model.student.transformer.lm_head.weight.detach().clone()
    fit.fit(model, steps.Steps())
    expected = float((each.sum() / batch.weights.sum()).detach())
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-5)
    moved = (model.student.transformer.lm_head.weight - before).detach()
    assert moved[:88].abs().max() > 1e-4 and moved[88:].abs().max() == 0
    assert moved.sum(0).abs().max() < 1e-5  # gradient rows sum to 0
