"""An author who keeps each of four rules more often than not, and a model small enough to learn it.

What preferences are to teach (`preference_task`): the rules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput

PAD, BOS, EOS, UNSAFE, FIRST, VOCAB = 0, 1, 2, 3, 4, 12
PROMPT, LONGEST, GOOD_LENGTH, RULES = 2, 8, 4, 4


class Student(nn.Module):
    """A Llama of two layers as the losses see it."""

    def __init__(self) -> None:
        super().__init__()
        shape = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
            tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        )  # fmt: skip
        self.model = LlamaForCausalLM(shape)

    def forward(self, ids: Tensor) -> ModelOutput:
        """Right-padded rows: causal attention needs no mask."""
        states = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return ModelOutput(states, LinearHead(self.model.lm_head, VOCAB))

    @torch.no_grad()
    def draw(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """`[B, LONGEST]` answers at temperature 1; padding behind the end token."""
        rows, done = prompts, torch.zeros(len(prompts), dtype=torch.bool)
        for _ in range(LONGEST):
            chances = self(rows).logits[:, -1].softmax(-1)
            token = torch.multinomial(chances, 1, generator=generator)[:, 0]
            token = torch.where(done, PAD, token)
            done = done | (token == EOS)
            rows = torch.cat([rows, token[:, None]], 1)
        return rows[:, PROMPT:]

    def logprob(self, batch: Batch) -> Tensor:
        """Log p of each row's answer."""
        each = self(batch.input_ids).logits.log_softmax(-1)
        picked = each.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0]
        return torch.where(batch.targets != IGNORE, picked, 0.0).sum(1)


def prompts_of(count: int, generator: torch.Generator) -> Tensor:
    """A word that the answer has to hold, `[count, 2]`."""
    wanted = torch.randint(FIRST, VOCAB, (count, 1), generator=generator)
    return torch.cat([torch.full_like(wanted, BOS), wanted], 1)


def rules(prompts: Tensor, answers: Tensor) -> Tensor:
    """Which are kept, `[B, RULES]`: holds the word, is short, holds no unsafe word, ends."""
    length = (answers != PAD).sum(1)
    kept = [
        (answers == prompts[:, 1:2]).any(1),
        length <= GOOD_LENGTH,
        (answers != UNSAFE).all(1),
        (answers == EOS).any(1),
    ]
    return torch.stack(kept, 1).float()


def oracle(prompts: Tensor, answers: Tensor) -> Tensor:
    """How many rules are kept."""
    return rules(prompts, answers).sum(1)


def careless(prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Answers of an author who keeps each rule more often than not."""
    count = len(prompts)

    def chance(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    answers = torch.randint(FIRST, VOCAB, (count, LONGEST), generator=generator)
    length = torch.where(
        chance(0.6),
        torch.randint(1, GOOD_LENGTH, (count,), generator=generator),
        torch.randint(GOOD_LENGTH, LONGEST, (count,), generator=generator),
    )
    place = (torch.rand(count, generator=generator) * length).long()
    rows = torch.arange(count)
    answers[rows, place] = torch.where(chance(0.6), prompts[:, 1], answers[rows, place])
    spot = (torch.rand(count, generator=generator) * length).long()
    answers[rows, spot] = torch.where(chance(0.4), UNSAFE, answers[rows, spot])
    at = torch.arange(LONGEST)[None, :]
    answers = torch.where(at == length[:, None], EOS, answers)
    endless = ~chance(0.9)
    answers[endless] = torch.where(answers[endless] == EOS, FIRST, answers[endless])
    return torch.where((at > length[:, None]) & ~endless[:, None], PAD, answers)


def batch_of(
    prompts: Tensor, answers: Tensor, group: Tensor | None = None, reward: Tensor | None = None
) -> Batch:
    """Rows as the data modules make them."""
    rows = torch.cat([prompts, answers], 1)
    targets = rows[:, 1:].clone()
    targets[:, : PROMPT - 1] = IGNORE
    targets[targets == PAD] = IGNORE
    zero = torch.zeros(len(rows), dtype=torch.long)
    return Batch(
        rows[:, :-1], (rows[:, :-1] != PAD).long(), targets, (targets != IGNORE).float(), zero,
        zero, group=group, reward=reward,
    )  # fmt: skip
