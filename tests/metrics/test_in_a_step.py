"""A step that logs projects as much as one that does not, and learns the same."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning import losses
from kd_lightning.losses.base import Loss
from kd_lightning.losses.weighted import Term
from kd_lightning.metrics.agreement import token_statistics
from kd_lightning.types import LossOutput
from tests import steps


class Length(Loss):
    """Not on tokens."""

    def count(self, batch):
        return {"length": torch.tensor(1.0)}

    def forward(self, student, teacher, batch):
        return LossOutput({"length": student.hidden.square().sum()})


def ready(teacher, loss, folder):
    model = steps.distiller(teacher, loss)
    trainer = steps.trainer(folder)
    trainer.strategy.connect(model)
    model.trainer = trainer
    model.configure_model()
    return model


def run(model, batch, measured, teach=False):
    counts = model.loss.count(batch)
    with FlopCounterMode(display=False) as counter:
        objective, output, sums = model.run(batch, counts, measured, teach)
        objective.backward()
    slopes = [p.grad.clone() for p in model.student.parameters()]
    model.student.zero_grad()
    return counter.get_total_flops(), sums, [objective, *output.terms.values(), *slopes]


@pytest.mark.parametrize("name", ["ForwardKL", "DecoupledKD", "Weighted"])
def test_logging_projects_nothing_again(tiny_teacher, tmp_path, name):
    model, batch = ready(tiny_teacher, steps.named_losses()[name], tmp_path), steps.global_batch()
    plain, nothing, want = run(model, batch, measured=False)
    logged, sums, got = run(model, batch, measured=True)
    assert logged == plain > 0
    assert nothing is None
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        teacher = model.teacher.forward(batch, frozenset())
        alone = token_statistics(model.student(batch), teacher, batch, 1)
    torch.testing.assert_close(sums, alone, rtol=1e-5, atol=1e-5)
    assert sums[0, 0] == (batch.targets >= 0).sum()


def test_a_teacher_that_only_the_statistics_ask(tiny_teacher, tmp_path):
    """Validation of a loss on words: its teacher's head goes along, once."""
    model, batch = ready(tiny_teacher, losses.CrossEntropy(), tmp_path), steps.global_batch()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        output = model.teacher.forward(batch, frozenset())
        layers = counter.get_total_flops()
        output.head(output.hidden[batch.targets >= 0])
        teacher = counter.get_total_flops()
    assert teacher > layers
    batch.source[:] = 0  # else what counts for the loss is less than what has a target
    plain, _, _ = run(model, batch, measured=False)
    logged, sums, _ = run(model, batch, measured=True, teach=True)
    assert logged == plain + teacher
    assert sums[0, 2] > 0


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_that_are_not_on_tokens(tiny_teacher, tmp_path, mixed):
    terms = {"a": Term(Length(), 1e-3), "b": Term(Length(), 1e-3)}
    loss = losses.Weighted(terms) if mixed else Length()
    model, batch = ready(tiny_teacher, loss, tmp_path), steps.global_batch()
    _, sums, _ = run(model, batch, measured=True, teach=True)
    with torch.no_grad():
        teacher = model.teacher.forward(batch, frozenset())
        alone = token_statistics(model.student(batch), teacher, batch, 1)
    torch.testing.assert_close(sums, alone)
