"""A loss on some of the text, and two of them in a sum."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.on_source import OnSource
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.skew import SkewForwardKL, SkewReverseKL
from kd_lightning.types import IGNORE, Source
from tests.losses.kit import Toy, four_rows
from tests.losses.test_loss_configs import FILES, parse


def models():
    return Toy(0), Toy(1).requires_grad_(False)


def one_source(batch, *sources):
    keep = torch.isin(batch.source, torch.tensor(sources))[:, None]
    return batch.replace(targets=batch.targets.masked_fill(~keep, IGNORE))


def test_counts_where_the_text_is_whose_it_should_be():
    student, teacher = models()
    batch = four_rows()
    own = OnSource(ForwardKL(), ["student"])
    few = one_source(batch, Source.STUDENT)
    got = own(student(batch), teacher(batch), batch).terms["kl"]
    want = ForwardKL()(student(few), teacher(few), few).terms["kl"]
    torch.testing.assert_close(got, want)
    assert own.count(batch)["kl"] == ForwardKL().count(few)["kl"] > 0
    assert OnSource(CrossEntropy(), ["student"]).count(batch)["ce"] == 0  # as it is by itself


def test_the_contrast_of_both_texts_and_its_reverse():
    student, teacher = models()
    batch = four_rows()
    loss = parse(f"--loss={next(p for p in FILES if p.stem == 'distillm2_constant')}")[2]

    def value(given, own):
        mine = one_source(batch, *given), one_source(batch, *own)
        parts = [
            each(student(part), teacher(part), part).terms[each.name] / each.count(part)[each.name]
            for each, part in zip((SkewForwardKL(0.1), SkewReverseKL(0.1)), mine, strict=True)
        ]
        return sum(parts)

    got, _ = loss.objective(student(batch), teacher(batch), batch, loss.count(batch))
    texts = (Source.GOLD, Source.TEACHER), (Source.STUDENT,)
    torch.testing.assert_close(got, value(*texts))
    assert abs(got - value(*reversed(texts))) > 1e-3


def test_somebody_has_to_be_named():
    with pytest.raises(KDError, match="gold, teacher, student"):
        OnSource(ForwardKL(), [])
