"""The accelerator's way, on tensors that hold no numbers: types, products, and no look at a value.

A tensor without numbers raises where the host would wait for one (`item`, `bool`, `tolist`).
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.kernels import projection
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import Batch, ModelOutput
from tests.kernels.kit import EVERY, even

NUMBER, WIDTH, OTHER, VOCAB = 64, 16, 32, 1000


def addmm_flops(_, a, b, *more, out_shape=None, **named):
    return 2 * a[0] * a[1] * b[1]


ADDMM = {torch.ops.aten.addmm: addmm_flops}
"""torch's own formula takes the argument `out_dtype` for a shape."""


def models(dtype, requires_grad=True):
    def side(width, learns):
        linear = nn.Linear(width, VOCAB, dtype=dtype).requires_grad_(learns)
        states = torch.empty(1, NUMBER, width, dtype=dtype, requires_grad=learns)
        return ModelOutput(states, LinearHead(linear, VOCAB - 3, scale=2.0, softcap=5.0))

    ids = torch.empty(1, NUMBER, dtype=torch.long)
    weights, row = torch.empty(1, NUMBER), torch.empty(1)
    batch = Batch(ids, ids, ids, weights, row.long(), row.long())
    return side(WIDTH, requires_grad), side(OTHER, False), batch


def every_position(self):
    """Which tokens count is the one thing that the host has to know."""
    return torch.arange(self.numel(), device=self.device)[:, None]


CASES = [(x, torch.bfloat16) for x in EVERY if x.name != "taid"]
"""TAID's share of the teacher lies on the host here, with numbers."""


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [*CASES, (ReverseKL(), torch.float16), (ReverseKL(), torch.float32)],
    ids=lambda x: str(x) if isinstance(x, torch.dtype) else type(x).__name__,
)
def test_products_are_mixed_and_the_host_never_waits(loss, dtype, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "nonzero", every_position)
    losses = {"x": loss, "kl": ForwardKL(2.0)}
    monkeypatch.setattr(projection, "MIXED", {"cpu"})
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=ADDMM) as counter:
        student, teacher, batch = models(dtype)
        made = TokenSum(losses, student, teacher, batch, 20)
        job, _ = made.job()
        assert job.student.mixed == job.teacher.mixed == (dtype != torch.float32)
        total, terms = made.total(*even(losses))
        assert total.dtype == terms["x"].dtype == torch.float32
        assert counter.get_total_flops() == 2 * NUMBER * VOCAB * (3 * WIDTH + OTHER)
        total.backward()
        sum(made.terms().values()).backward()
        for leaf in (student.hidden, *student.head.linear.parameters()):
            assert leaf.grad.dtype == dtype and leaf.grad.shape == leaf.shape
