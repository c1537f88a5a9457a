"""Models with plain heads, batches, and what a step by step computation gives."""

import torch
from torch import nn

from kd_lightning.losses.base import Divergence, TokenLoss
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput, Source
from tests.losses.kit import TOKEN_LOSSES, build

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 2.5},
    "everything": {"bias": True, "scale": 1.7, "softcap": 3.0},
    "padded": {"bias": True, "rows": 11, "vocab": 9, "softcap": 3.0},
}
"""Names of the ways that a head may be."""


class Squares(Divergence):
    """States nothing but its value."""

    name = "squares"

    def per_token(self, log_s, log_t):
        return (log_s.exp() - log_t.exp()).square().sum(-1)


class Label(TokenLoss):
    """Not a divergence, and nothing but its value: how far the label's logit is from 1."""

    name = "label"

    def per_row(self, tokens):
        return (tokens.student.gather(-1, tokens.targets[:, None]).squeeze(-1) - 1).square()


class Changed(ForwardKL):
    """A value of its own, the slope of another one by inheritance."""

    name = "changed"

    def per_token(self, log_s, log_t):
        return super().per_token(log_s, log_t).square()


class ChangedRow(CrossEntropy):
    name = "changed_row"

    def per_row(self, tokens):
        return 2 * tokens.nll()


OF_ROWS = ("OnSkill", "RewardWeighted")
"""They ask the batch for more than tokens: tests/losses."""
OURS = [build(cls) for cls in TOKEN_LOSSES if cls.__name__ not in OF_ROWS]
EVERY = [*OURS, Squares(1.5, True), Label(), Changed(), ChangedRow()]
"""Every loss on tokens that there is, and some that only state their value."""


def even(losses):
    """Factors and counts of 1."""
    return dict.fromkeys(losses, 1.0), dict.fromkeys(losses, torch.ones(()))


def head(width, rows=11, seed=0, vocab=11, bias=False, dtype=torch.float64, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(width, rows, bias=bias, dtype=torch.float64)
        nn.init.normal_(linear.weight)
    return LinearHead(linear.to(dtype), vocab, **more)


def models(dtype=torch.float64, **how):
    """A student of width 4 and a teacher of width 6 with more padding, on `batch()`."""
    generator = torch.Generator().manual_seed(3)
    shape = batch().targets.shape
    hidden = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    other = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
    vocab = how.get("vocab", 11)
    mine = head(4, seed=1, dtype=dtype, **{"rows": vocab, **how})
    student = ModelOutput(hidden.to(dtype).requires_grad_(), mine)
    teacher = head(6, vocab + 2, seed=2, dtype=dtype, vocab=vocab, softcap=how.get("softcap"))
    with torch.inference_mode():
        return student, ModelOutput(other.to(dtype) * 1, teacher)


def batch():
    """Three rows of which 13 positions count, in unlike ways; the last of the student's words."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 9, (3, 6), generator=generator)
    targets = torch.randint(0, 9, (3, 6), generator=generator)
    weights = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (3, 6), generator=generator)]
    ignored = torch.zeros(3, 6, dtype=torch.bool)
    ignored[0, :2] = ignored[1, 4:] = ignored[2, 2] = True
    return Batch(
        ids,
        torch.ones_like(ids),
        targets.masked_fill(ignored, IGNORE),
        weights.masked_fill(ignored, 0.0),
        torch.tensor([Source.GOLD, Source.TEACHER, Source.STUDENT]),
        torch.zeros(3, dtype=torch.long),
    )


COUNTED = 13


def leaves(student):
    """What has a gradient."""
    found = [student.hidden, student.head.linear.weight, student.head.linear.bias]
    return [x for x in found if x is not None and x.requires_grad]


def by_hand(losses, student, teacher, rows):
    """Each loss's sum over all tokens at once, through autograd: no chunk, no kernel."""
    return TokenSum(losses, student, teacher, rows, chunk=10**9).step_by_step()


def fused(losses, student, teacher, rows, chunk=None):
    """Each loss's sum, `[K]`; fails where the kernel does not run."""
    made = TokenSum(losses, student, teacher, rows, chunk)
    assert made.job()[0] is not None
    return torch.stack(list(made.terms().values()))


def gradients(total, student):
    return torch.autograd.grad(total, leaves(student))


def close(got, want, tolerance=1e-9):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
