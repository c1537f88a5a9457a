"""Which attention is chosen where, and why; impossible ones end in a sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from kd_lightning.errors import KDError
from kd_lightning.models import attention, loading, varlen
from kd_lightning.models.attention import TABLE, choose
from kd_lightning.models.causal import build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from tests.models.packs import MORE, SMALL
from tests.tiny import config, tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a given capability, and what is installed beside it."""

    def set_up(capability=(9, 0), installed=("torch_varlen",)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        for name, needs in TABLE.items():
            if needs.gpu is not None:
                here = attention.Implementation(
                    **{**vars(needs), "installed": lambda n=name: n in installed}
                )
                monkeypatch.setitem(TABLE, name, here)

    set_up()
    return set_up


def made(kind, **more):
    wide = {"head_dim": 8, "hidden_size": 32}
    return loading.new_config({"model_type": kind, **SMALL, **wide, **MORE.get(kind, {}), **more})


def best(kind="llama", device=CUDA, dtype=BF16, trained=True, packing="auto", **more):
    return choose("auto", packing, made(kind, **more), device, dtype, trained)


def test_on_a_gpu_the_best_that_is_installed(gpu):
    assert (best().name, best().packs) == ("torch_varlen", True)
    assert "flash-attn-3 is not installed" in best().why
    gpu(installed=("torch_varlen", "flash_attention_2"))
    assert best().name == "flash_attention_2"
    gpu(installed=("torch_varlen", "flash_attention_2", "flash_attention_3"))
    assert best().name == "flash_attention_3"
    gpu(capability=(8, 6), installed=("torch_varlen", "flash_attention_2", "flash_attention_3"))
    assert best().name == "flash_attention_2"
    gpu(capability=(7, 5), installed=("torch_varlen", "flash_attention_2"))
    assert (best().name, best().packs) == ("sdpa", False)


def test_what_a_model_has_decides_too(gpu):
    assert (best(dtype=FP32).name, best(dtype=FP32).packs) == ("sdpa", False)
    assert best(dtype=FP32, packing=True).name == "per_sequence"  # exact, without a mask
    assert best(packing=False).name == "sdpa"  # nothing to gain from borders
    assert best("gemma2").name == "eager"  # a soft cap in the attention
    gpu(installed=("torch_varlen", "flash_attention_2", "flash_attention_3"))
    assert best(attention_dropout=0.1).name == "flash_attention_2"
    gpu()
    assert best(attention_dropout=0.1).name == "sdpa"
    assert best(attention_dropout=0.1, trained=False).name == "torch_varlen"
    assert best(head_dim=4).name == "sdpa" and best(head_dim=512).name == "sdpa"
    stranger = loading.new_config({"model_type": "bloom"})
    assert choose("auto", "auto", stranger, CUDA, BF16, True).name == "auto"
    gpu(installed=("torch_varlen", "flash_attention_2"))
    mixed = choose("auto", "auto", made("llama"), CUDA, BF16, True, mixed=True)
    assert mixed.name == "torch_varlen"  # flash attention has no float32 outside autocast


def test_on_a_cpu_sequence_by_sequence():
    found = best(device=CPU, dtype=FP32)
    assert (found.name, found.packs) == ("per_sequence", True)
    assert str(found) == "per_sequence (the best on cpu), packed"
    assert best(device=CPU, packing=False).name == "sdpa"
    assert best("gemma2", device=CPU, packing=False).name == "eager"


@pytest.mark.parametrize("name", ["torch_varlen", "flash_attention_2", "flash_attention_3"])
def test_what_cannot_be_is_said(name, gpu):
    with pytest.raises(KDError, match=rf"{name} cannot be used, it needs a CUDA device"):
        choose(name, "auto", made("llama"), CPU, BF16, True)
    with pytest.raises(KDError, match="computes in bfloat16 or float16"):
        choose(name, "auto", made("llama"), CUDA, FP32, True)
    gpu(installed=())
    with pytest.raises(KDError, match="not installed"):
        choose(name, "auto", made("llama"), CUDA, BF16, True)


def test_the_extra_is_named(gpu):
    with pytest.raises(KDError, match=r"flash-attn is not installed .*kd-lightning\[flash\]"):
        choose("flash_attention_2", "auto", made("llama"), CUDA, BF16, True)


def test_packing_by_force():
    assert choose("sdpa", True, made("llama"), CPU, FP32, True).packs  # by a mask
    assert not choose("sdpa", "auto", made("llama"), CPU, FP32, True).packs
    with pytest.raises(KDError, match="not known to be exact for bloom"):
        choose("auto", True, loading.new_config({"model_type": "bloom"}), CPU, FP32, True)
    with pytest.raises(KDError, match="opt makes no mask"):
        choose("eager", True, made("opt"), CPU, FP32, True)
    with pytest.raises(KDError, match="gemma2 caps its attention"):
        choose("sdpa", True, made("gemma2"), CPU, FP32, True)


def test_other_names_are_handed_on():
    found = choose("kernels-community/some", "auto", made("llama"), CPU, FP32, True)
    assert (found.name, found.packs) == ("kernels-community/some", False)
    with pytest.raises(KDError, match="kernels-community/some"):
        choose("kernels-community/some", True, made("llama"), CPU, FP32, True)


def test_set_up_says_which(tiny_teacher, caplog):
    with caplog.at_level("INFO"):
        build_student(StudentSpec(config=config()), tokenizer())
        LocalTeacher(str(tiny_teacher), attention="sdpa").materialize(CPU)
    said = [r.message for r in caplog.records]
    assert "student's attention: per_sequence (the best on cpu), packed" in said
    assert "teacher's attention: sdpa (as configured), padded" in said


def test_transformers_knows_ours():
    choose("auto", "auto", made("llama"), CPU, FP32, True)
    for name in varlen.IMPLEMENTATIONS:
        assert name in AttentionInterface() and name in AttentionMaskInterface()
        assert not any(word in name for word in ("sdpa", "flash", "flex", "paged"))


def test_torch_has_what_the_wrapper_calls():
    """Fails where a new torch changes the kernel's arguments."""
    assert attention._torch_varlen()


# ------------------------------------------------------------------ sequence by sequence
def attend(lengths, softcap=None, window=None, groups=2):
    torch.manual_seed(0)
    total = sum(lengths)
    q = torch.randn(1, 4, total, 8, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(1, 4 // groups, total, 8, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    cuts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    output, _ = varlen.per_sequence(
        torch.nn.Identity(), q, k, v, None, scaling=0.3, softcap=softcap,
        sliding_window=window, cu_seq_lens_q=cuts,
    )  # fmt: skip
    return output, (q, k, v)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_against_the_formula(softcap, window, groups):
    lengths = [5, 1, 7]
    output, inputs = attend(lengths, softcap, window, groups)
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    keys, values = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, keys) * 0.3
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    owner = torch.repeat_interleave(torch.tensor(lengths))
    back = torch.arange(13)[:, None] - torch.arange(13)[None]
    seen = (owner[:, None] == owner) & (back >= 0) & (back < (window or 99))
    shares = F.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    expected = torch.einsum("bhqk,bhkd->bqhd", shares, values)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((output * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    torch.testing.assert_close(found, wanted)
