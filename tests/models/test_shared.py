"""A prompt computed once for all its answers: the same losses and gradients, fewer tokens."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.losses.kl import ReverseKL
from kd_lightning.models import loading, shared
from kd_lightning.models.attention import choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.shared import Forest, common
from kd_lightning.rollouts.beside import Beside
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from tests.rollouts import kit
from tests.tiny import tokenizer


def answers(n=3):
    """Groups of answers, the data's among them; a filler behind."""
    rollout = Beside([FromData(), FromStudent(n=n, sampling=kit.SHORT)])
    return kit.roll(rollout, kit.batch(kit.examples(3), fillers=1))


def step(model, batch):
    """Loss and gradient of a divergence from a fixed teacher."""
    _, teacher = kit.pair()
    model.zero_grad()
    loss = ReverseKL()
    told = teacher.model(batch)
    total = model(batch, lambda out: loss(out, told, batch).terms[loss.name])
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("attention", ["per_sequence", "sdpa", "eager"])
def test_loss_and_gradient_are_those_of_rows_apart(attention):
    model = kit.model(kit.folders()[0], attention)
    batch = answers()
    assert model.shares(batch)
    apart = batch.replace(shared=())
    assert not model.shares(apart)
    (loss, gradient), (expected, plain) = step(model, batch), step(model, apart)
    assert gradient.abs().max() > 1e-3
    # the family's norms and rotations run in float32 whatever its weights are
    assert abs(loss - expected) < 1e-6 * expected
    assert (gradient - plain).norm() < 1e-6 * plain.norm()


@pytest.mark.parametrize("attention", ["per_sequence", "sdpa"])
def test_a_family_that_is_all_float64_is_exact(attention):
    tokens = tokenizer()
    fields = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 88}
    made = loading.new_config({"model_type": "gpt2", **fields})
    chosen = choose(attention, "auto", made, torch.device("cpu"), torch.float32, trained=False)
    torch.manual_seed(0)
    model = CausalLM(
        loading.new_model(made, "float32", chosen.name), tokens, attention=chosen
    ).double().eval()  # fmt: skip
    batch = answers()
    assert model.shares(batch)
    (loss, gradient), (expected, plain) = step(model, batch), step(model, batch.replace(shared=()))
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient, plain, atol=1e-9, rtol=0)


def test_what_would_go_wrong_is_seen():
    """The control: answers that see each other are other answers."""
    model = kit.model(kit.folders()[0], "per_sequence")
    batch = answers()
    right = Forest.of(batch)
    joined, first = [], 0
    for piece in right.pieces:
        begins = piece.seen[0] == piece.seen[1]
        first = piece.own[0] if begins else first
        joined.append(piece if begins else type(piece)((first, piece.own[0]), piece.own))
    expected, _ = step(model, batch)
    original = Forest.of
    try:
        Forest.of = lambda b: Forest(
            right.input_ids,
            right.position_ids,
            right.places,
            right.rows,
            tuple(joined),
            right.shape,
        )
        found, _ = step(model, batch)
    finally:
        Forest.of = original
    assert abs(float(found - expected)) > 1e-4


def test_tokens_are_counted_once():
    batch = answers()
    forest = Forest.of(batch)
    saved = sum(common(batch))
    prompts = [len(kit.batch(kit.examples(3)).input_ids[i]) for i in range(3)]
    assert saved > 0 and len(prompts) == 3
    assert forest.input_ids.shape[1] == sum(batch.lengths) - saved
    for i in range(3):  # three answers of the student's look at the prompt above the data's answer
        mine = [n for n, g in zip(common(batch), batch.group.tolist(), strict=True) if g == i]
        assert mine[0] == 0 and len(set(mine[1:])) == 1 and mine[1] > 0


def test_micro_batches_share_within_themselves():
    batch = answers()
    for micro in batch.split(rows=4):
        assert common(micro)[0] == 0
        model = kit.model(kit.folders()[0])
        real = micro.attention_mask.bool()
        found, apart = model(micro).hidden, model(micro.replace(shared=())).hidden
        torch.testing.assert_close(found[real], apart[real], atol=1e-9, rtol=0)


def test_what_cannot_share_says_so():
    model = kit.model(kit.folders()[0])
    assert shared.why_not("llama", model.attention) is None
    assert "bloom is not known" in shared.why_not("bloom", model.attention)
    flash = type(model.attention)("flash_attention_2", "")
    assert "write attention: per_sequence" in shared.why_not("llama", flash)
    assert not shared.worthwhile(answers(), "llama", model.attention, window=3)
