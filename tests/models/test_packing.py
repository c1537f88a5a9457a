"""A batch without its padding: the same states and gradients, and no sequence sees another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kd_lightning.data.skills.demo import Demo
from kd_lightning.distiller import Distiller
from kd_lightning.losses import CrossEntropy, ForwardKL, Weighted
from kd_lightning.losses.weighted import Term
from kd_lightning.models import attention, varlen
from kd_lightning.models.attention import PACKS
from kd_lightning.models.causal import build_student
from kd_lightning.models.packing import Packed
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import IGNORE, Sampling
from tests import steps
from tests.models.packs import CPU, MORE, family, gradient, ragged, unpacked
from tests.tiny import config, tokenizer

TIGHT = dict(atol=2e-5, rtol=2e-4)  # norms and softmax of some families compute in float32


def objective(model, batch):
    """Something that every real state has a share in, and no padding."""
    states = model(batch).hidden
    weights = torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)
    return ((states * weights).tanh().sum(-1) * batch.attention_mask).sum()


@pytest.mark.parametrize("kind", sorted(PACKS))
def test_packed_is_padded(kind):
    batch = ragged()
    padded, packed = unpacked(kind), family(kind, "per_sequence", True)
    assert packed.packs and not padded.packs
    real = batch.attention_mask.bool()
    torch.testing.assert_close(packed(batch).hidden[real], padded(batch).hidden[real], **TIGHT)
    found = gradient(packed, objective(packed, batch))
    torch.testing.assert_close(found, gradient(padded, objective(padded, batch)), **TIGHT)


def test_every_packed_family_is_tested():
    assert set(MORE) == set(PACKS)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral", "opt", "qwen3"])
def test_no_sequence_sees_another(kind):
    model = family(kind, "per_sequence", True)
    batch = ragged((6, 9, 4))
    other = batch.replace(input_ids=batch.input_ids.clone())
    other.input_ids[0] = (other.input_ids[0] + 17) % 80 + 4
    before, after = model(batch).hidden, model(other).hidden
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])
    # nor does a gradient arrive there
    embedding = model.transformer.get_input_embeddings()
    caught: list[torch.Tensor] = []

    def watch(module, args, output):
        output.retain_grad()
        caught.append(output)

    embedding.register_forward_hook(watch)
    model(batch).hidden[1].square().sum().backward()
    owner = torch.tensor([0] * 6 + [1] * 9 + [2] * 4)
    touched = caught[0].grad[0].abs().sum(-1) > 0
    assert torch.equal(touched, owner == 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_block_mask_is_the_general_way(kind, attention):
    if (kind, attention) == ("gemma2", "sdpa"):
        pytest.skip("sdpa has no soft cap: choose refuses it")
    batch = ragged()
    padded, packed = unpacked(kind), family(kind, attention, True)
    assert packed.attention.borders == "mask"
    real = batch.attention_mask.bool()
    torch.testing.assert_close(packed(batch).hidden[real], padded(batch).hidden[real], **TIGHT)


# ------------------------------------------------------------------ the kernel's twin
def reference(query, key, value, cuts, cuts_k, longest, longest_k, *, scale, window_size, **how):
    """What `varlen_attn` computes, by its documentation, pair of tokens by pair of tokens."""
    assert query.ndim == key.ndim == value.ndim == 3 and cuts.dtype == torch.int32
    assert torch.equal(cuts, cuts_k) and longest == longest_k >= int(cuts.diff().max())
    assert cuts[0] == 0 and cuts[-1] == len(query) and (cuts.diff() > 0).all()
    groups = query.shape[1] // key.shape[1]
    assert how == {"enable_gqa": groups > 1}, "GQA has to be asked for"
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    owner = torch.repeat_interleave(cuts.diff().long())
    place = torch.arange(len(query))
    back = place[:, None] - place[None]
    left, right = window_size
    assert right == 0, "causal"
    seen = (owner[:, None] == owner[None]) & (back >= 0) & ((left < 0) | (back <= left))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", shares, value)


@pytest.fixture
def twin(monkeypatch):
    """The wrapper of the CUDA kernel, with the reference in the kernel's place."""
    function = partial(varlen.torch_varlen, varlen=reference)
    monkeypatch.setitem(varlen.IMPLEMENTATIONS, "torch_varlen", function)
    monkeypatch.setattr(attention, "_lack", lambda *args: None)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mistral", "qwen2", "gemma3_text"])
def test_the_kernels_wrapper_gives_the_padded_states(kind, twin):
    batch = ragged((9, 3, 12, 1, 0))
    padded, packed = unpacked(kind), family(kind, "torch_varlen", True)
    assert packed.attention.borders == "borders"
    real = batch.attention_mask.bool()
    torch.testing.assert_close(packed(batch).hidden[real], padded(batch).hidden[real], **TIGHT)
    found = gradient(packed, objective(packed, batch))
    torch.testing.assert_close(found, gradient(padded, objective(padded, batch)), **TIGHT)


def test_the_kernel_gets_one_type_under_autocast():
    seen = []

    def kernel(query, key, value, *args, **how):
        seen.append({x.dtype for x in (query, key, value)})
        return query

    q, k, v = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
    cuts = torch.tensor([0, 3], dtype=torch.int32)
    how = dict(cu_seq_lens_q=cuts, max_length_q=3, varlen=kernel)
    varlen.torch_varlen(torch.nn.Identity(), q, k, v.bfloat16(), None, **how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        varlen.torch_varlen(torch.nn.Identity(), q, k, v, None, **how)
    assert seen == [{torch.bfloat16}, {torch.bfloat16}]
    varlen.torch_varlen(torch.nn.Identity(), q, k, v, None, scaling=0.3, **how)
    assert len(seen) == 2  # float32 outside autocast goes sequence by sequence


# ------------------------------------------------------------------ odd batches
@pytest.mark.parametrize("lengths", [(5, 0, 3), (0, 0), (0, 4), (7,), (1, 1, 1), (4, 4, 4)])
def test_rows_of_any_length(lengths):
    batch = ragged(lengths)
    padded, packed = unpacked("llama"), family("llama", "per_sequence", True)
    real = batch.attention_mask.bool()
    found = packed(batch).hidden
    assert found.shape == padded(batch).hidden.shape and found.isfinite().all()
    torch.testing.assert_close(found[real], padded(batch).hidden[real], **TIGHT)
    value = objective(packed, batch)
    value.backward()  # a graph exists, also where no row has a token
    assert float(value) == pytest.approx(float(objective(padded, batch)), abs=1e-5)


@pytest.mark.parametrize(
    ("packing", "lengths", "worthwhile"),
    [
        (True, (5, 4), True),
        (True, (5, 5), False),
        ("auto", (30, 11), False),
        ("auto", (30, 10), True),
        (False, (30, 1), False),
    ],
)
def test_little_padding_stays(packing, lengths, worthwhile):
    model = family("llama", "auto", packing)
    seen = []
    model.transformer.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    assert model(ragged(lengths)).hidden.shape[:2] == (2, max(lengths))
    assert seen == [(1, sum(lengths)) if worthwhile else (2, max(lengths))]


def test_packing_and_unpacking_are_inverse():
    batch = ragged((3, 0, 5, 2))
    packed = Packed.of(batch)
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]]
    assert packed.borders(CPU).tolist() == [0, 3, 8, 10]
    states = F.one_hot(packed.input_ids, 100).double().requires_grad_()
    back = packed.unpacked(states)
    real = batch.attention_mask.bool()
    assert torch.equal(back.argmax(-1)[real], batch.input_ids[real])
    assert not back[~real].any()
    back[0].sum().backward()
    assert states.grad[0].any(-1).tolist() == [True] * 3 + [False] * 7


# ------------------------------------------------------------------ losses, training
def hard_and_soft():
    return Weighted({"ce": Term(CrossEntropy(), 0.3), "kl": Term(ForwardKL(2.0, True), 0.7)})


LOSSES = {"hard": CrossEntropy, "soft": ForwardKL, "both": hard_and_soft}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("learned", [True, False])
def test_losses_and_their_gradients(loss, kind, learned):
    batch = ragged(learned=learned)
    made = LOSSES[loss]()
    values, gradients = [], []
    packed = partial(family, kind, "per_sequence", True)
    for build_one in (partial(unpacked, kind), packed):
        student, teacher = build_one(), build_one(num_hidden_layers=1)
        with torch.no_grad():
            taught = teacher(batch) if made.needs else None
        counts = made.count(batch)
        value, _ = student(batch, lambda out: made.objective(out, taught, batch, counts))  # noqa: B023
        values.append(value)
        gradients.append(gradient(student, value))
    torch.testing.assert_close(*values, **TIGHT)
    torch.testing.assert_close(*gradients, **TIGHT)
    assert learned or not gradients[0].any()


def build(**how):
    torch.manual_seed(2)
    spec = StudentSpec(config=config(initializer_range=0.3), **how)
    return build_student(spec, tokenizer()).double()


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_checkpointing": True},
        {"lora": LoraSpec(rank=2)},
        {"gradient_checkpointing": True, "lora": LoraSpec(rank=2)},
    ],
    ids=["checkpointing", "lora", "both"],
)
def test_checkpointing_and_adapters(how):
    batch = ragged()
    padded, packed = build(attention="sdpa", packing=False, **how), build(packing=True, **how)
    assert packed.packs
    for model in (padded, packed):
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    one, two = (gradient(m, objective(m, batch)) for m in (padded, packed))
    torch.testing.assert_close(one, two, **TIGHT)


@pytest.mark.slow
def test_compiled():
    padded = build(attention="sdpa", packing=False)
    packed = build(packing=True, compile=True)
    for lengths in ((9, 3, 12), (4, 7), (5, 5, 2, 8)):
        batch = ragged(lengths)
        one, two = (gradient(m, objective(m, batch)) for m in (padded, packed))
        torch.testing.assert_close(one, two, **TIGHT)


def test_generation_is_as_before():
    prompts = [[5, 6, 7, 8], [9, 10], list(range(4, 24))]
    for kind in ("llama", "gemma2", "mistral"):
        texts = [
            model.eval().complete(prompts, Sampling(max_new_tokens=8))
            for model in (unpacked(kind), family(kind, "per_sequence", True))
        ]
        assert texts[0] == texts[1]


def test_a_run_of_the_demo_pair_is_the_same(tmp_path):
    """Steps of so many tokens, in micro-batches."""
    fields = {**config(width=32), "max_position_embeddings": 1024, "initializer_range": 0.1}
    found = {}
    for name in ("padded", "packed"):
        how = {"attention": "sdpa", "packing": False} if name == "padded" else {"packing": True}
        model = Distiller(
            StudentSpec(config=fields, tokenizer="demo", **how),
            hard_and_soft(),
            LocalTeacher("demo", dtype="float32", **how),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3),
            micro_batch_tokens=200,
        )
        data = Demo(train_rows=60, validation_rows=10, batch_tokens=600, seed=1)
        fit = steps.trainer(tmp_path / name, max_steps=4)
        torch.manual_seed(0)
        fit.fit(model, data)
        found[name] = [p.detach().clone() for p in model.student.parameters()]
        found[name] += [torch.tensor(float(fit.callback_metrics["train/loss"]))]
        assert model.student.packs == model.teacher.packs == (name == "packed")
    for one, two in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)


# ------------------------------------------------------------------ micro-batches, hosts
def test_micro_batches_count_what_is_computed():
    batch = ragged((12, 2, 2, 2, 6, 12))
    sizes = lambda padded: [len(b) for b in batch.split(tokens=24, padded=padded)]  # noqa: E731
    assert sizes(True) == [2, 3, 1] and sizes(False) == [5, 1]
    for part in batch.split(tokens=24, padded=False):
        assert sum(part.lengths) <= 24
    assert [len(b) for b in batch.split(tokens=1, padded=False)] == [1] * 6


def test_lengths_follow_the_mask():
    batch = ragged((5, 3, 0))
    assert batch.lengths == (5, 3, 0)
    assert batch.rows(1, 3).lengths == (3, 0) and batch.rows(1, 3).input_ids.shape == (2, 3)
    assert batch.to("meta").lengths == (5, 3, 0)  # known on the host, whatever the device
    changed = batch.replace(attention_mask=batch.attention_mask.flip(0))
    assert changed.lengths == (0, 3, 5)
    assert batch.masked().lengths == (5,) and (batch.masked().targets == IGNORE).all()
