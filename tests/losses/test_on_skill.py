"""Losses on the rows of one skill: what counts, and the two terms of distilling step-by-step."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.on_skill import OnSkill
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import IGNORE, Source
from tests.losses.kit import Toy, four_rows


def rows():
    """Two of each skill, all of them given."""
    return four_rows().replace(source=torch.full((4,), Source.GOLD))


def test_only_rows_of_the_skill_count_and_rows_that_fill_the_batch_never():
    batch = rows()
    loss = OnSkill(CrossEntropy(), "rationale")
    assert loss.count(batch)["ce"] == batch.weights[1::2].sum() > 0
    fewer = batch.replace(examples=batch.examples[:3])
    assert loss.count(fewer)["ce"] == batch.weights[1].sum()
    assert OnSkill(CrossEntropy(), "other").count(batch)["ce"] == 0


def test_the_loss_within_keeps_what_it_does_not_count():
    batch = rows().replace(source=torch.tensor([Source.GOLD, Source.STUDENT] * 2))
    assert OnSkill(CrossEntropy(), "rationale").count(batch)["ce"] == 0


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_each_task_has_its_own_weight_and_its_own_number_of_tokens(alpha):
    student, batch = Toy(0), rows()
    loss = Weighted(
        {
            "label": Term(OnSkill(CrossEntropy(), "label"), alpha),
            "rationale": Term(OnSkill(CrossEntropy(), "rationale"), 1 - alpha),
        }
    )
    value, output = loss.objective(student(batch), None, batch, loss.count(batch))
    logits = student.head(student(batch).hidden)
    nll = -logits.log_softmax(-1).gather(-1, batch.targets.clamp_min(0)[..., None]).squeeze(-1)
    weights = batch.weights * (batch.targets != IGNORE)
    means = [(weights[i::2] * nll[i::2]).sum() / weights[i::2].sum() for i in (0, 1)]
    torch.testing.assert_close(value, alpha * means[0] + (1 - alpha) * means[1])
    pooled = (weights * nll).sum() / weights.sum()
    assert abs(value - pooled) > 1e-3  # one mean over all tokens is another loss
    assert set(output.terms) == {"label", "rationale"}


def test_a_skill_must_be_named():
    with pytest.raises(KDError, match="name the part"):
        OnSkill(CrossEntropy(), "")
