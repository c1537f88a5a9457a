"""Adapters on weights in 4 bits: their gradient is that of the same weights in full."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.models import loading
from kd_lightning.models.causal import build_student
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.types import Sampling
from tests.parallel import few_bits
from tests.parallel.runs import global_batch
from tests.tiny import tokenizer

pytest.importorskip("bitsandbytes")


def student(folder, bits="nf4"):
    torch.manual_seed(1)
    spec = StudentSpec(path=str(folder / "wide"), lora=LoraSpec(rank=4), quantization=bits)
    with few_bits.float32():
        built = build_student(spec, tokenizer())
    for name, parameter in built.named_parameters():
        if "lora_B" in name:  # 0 at first: nothing would reach lora_A
            torch.nn.init.normal_(parameter, std=0.05)
    return built


def in_full(built):
    """Each layer of few bits replaced by a linear one with the same numbers."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in list(built.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, (Linear4bit, Linear8bitLt)):
                continue
            weight = child.weight.data
            if isinstance(child, Linear4bit):
                weight = dequantize_4bit(weight, child.weight.quant_state).float()
            else:
                weight = weight.float() * child.weight.SCB[:, None] / 127
            whole = torch.nn.Linear(child.in_features, child.out_features, bias=False)
            whole.weight = torch.nn.Parameter(weight, requires_grad=False)
            setattr(module, name, whole)
    return built


def gradient(built):
    built.train().zero_grad()
    built(global_batch(0), lambda output: output.logits).logsumexp(-1).sum().backward()
    found = {n: p.grad.clone() for n, p in built.named_parameters() if p.grad is not None}
    assert found
    return found


def used(built):
    """What a validation or a rollout does."""
    built.eval().complete([[5, 6, 7], [8]], Sampling(max_new_tokens=2))
    with torch.no_grad():
        built(global_batch(1))
    return built


@pytest.mark.parametrize("before", [lambda built: built, used], ids=["fresh", "used"])
def test_the_gradient_is_that_of_the_same_weights_in_full(tmp_path, before):
    few_bits.wide(tmp_path)
    found, expected = gradient(before(student(tmp_path))), gradient(in_full(student(tmp_path)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("before", [lambda built: built, used], ids=["fresh", "used"])
def test_of_8_bits_it_is_near(tmp_path, before):
    """What is multiplied is rounded to 8 bits too, the derivative is not."""
    few_bits.wide(tmp_path)
    found = gradient(before(student(tmp_path, "int8")))
    expected = gradient(in_full(student(tmp_path, "int8")))
    assert found.keys() == expected.keys()
    apart = [float((found[n] - v).norm() / v.norm()) for n, v in expected.items()]
    assert 0 < max(apart) < 0.1, max(apart)


def test_bitsandbytes_alone_loses_it(tmp_path, monkeypatch):
    """The control: why `keep_derivatives` is there."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("only processors with AVX512-BF16 are affected")
    few_bits.wide(tmp_path)
    monkeypatch.setattr(loading, "keep_derivatives", lambda model: None)
    found, expected = gradient(used(student(tmp_path))), gradient(in_full(student(tmp_path)))
    apart = [float((found[n] - v).norm() / v.norm()) for n, v in expected.items() if n in found]
    assert len(found) < len(expected) or max(apart) > 0.1
