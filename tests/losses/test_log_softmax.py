"""Log-probabilities of long rows: as near to float64 as float32 allows, wherever the mass is."""

import pytest
import torch

from kd_lightning.losses.distributions import log_softmax


@pytest.mark.parametrize("vocab", [32_000, 50_257, 151_669])
@pytest.mark.parametrize("scale", [0.01, 4.0, 1e4])
def test_no_bias_at_long_rows(vocab, scale):
    logits = scale * torch.randn(16, vocab, generator=torch.Generator().manual_seed(0))
    right = logits.double().log_softmax(-1)
    off = log_softmax(logits).double() - right
    likely = right > right.amax(-1, keepdim=True) - 10
    assert off[likely].mean().abs() < 5e-7  # torch's own: 2e-6 and more
    assert off[likely].abs().max() < 2e-5


def test_a_row_that_is_cut_is_no_copy_of_its_end():
    logits = torch.randn(3, 5000)
    found = log_softmax(logits[:, :4800])
    torch.testing.assert_close(found, logits[:, :4800].log_softmax(-1), atol=1e-5, rtol=0)
    assert found.shape == (3, 4800)


def test_what_is_differentiated_is_torch_own():
    logits = torch.randn(3, 4800, requires_grad=True)
    weights = torch.randn(3, 4800)
    (found,) = torch.autograd.grad((weights * log_softmax(logits)).sum(), logits)
    (right,) = torch.autograd.grad((weights * logits.log_softmax(-1)).sum(), logits)
    torch.testing.assert_close(found, right)
