"""What preferences teach: answers scored by rules, each ranking loss, and preferences at random.

`python benchmarks/preference_task.py` prints the table; the test takes the same arms. A tiny model
learns from a careless author, who keeps each of four rules more often than not (supervised
learning: the start and the frozen reference). Its own answers, four to a prompt, are ranked by how
many rules they keep, and each loss goes on from the start with the ranks. An arm's score is that
of its last look before the divergence from the start, KL(student || start) of a whole answer, is
over the budget: rewards that are bought by leaving the start do not count. In the control
(`shuffled`) the ranks are drawn at random, balanced so that they lean to no rule, nor to length or
likelihood; `--plain` leaves the balance out.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import random_ranks
from kd_lightning.losses.base import Loss
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput, Progress

CONFIGS = Path(__file__).parents[1] / "configs" / "loss"
PAD, BOS, EOS, UNSAFE, FIRST, VOCAB = 0, 1, 2, 3, 4, 12
PROMPT, LONGEST, GOOD_LENGTH, RULES = 2, 8, 4, 4
METHODS = ("dpo", "kto", "simpo", "orpo", "rrhf", "pro")
Data = tuple[Tensor, Tensor, Tensor]
RATES = {"orpo": 2e-3}
"""Learning rates other than the usual one: ORPO's comparison has the weight 0.1."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    start_steps: int = 300
    steps: int = 120
    every: int = 8
    rows: int = 32
    answers: int = 4
    prompts: int = 1024
    judged: int = 1024
    budget: float = 2.0


@dataclass(frozen=True)
class Look:
    """An arm at some step."""

    step: int
    score: float
    divergence: float


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


def begun(seed: int, size: Size) -> Student:
    """The start: supervised learning on the careless author's answers."""
    torch.manual_seed(seed)
    student, drawn = Student(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(size.start_steps):
        prompts = prompts_of(64, drawn)
        batch = batch_of(prompts, careless(prompts, drawn))
        loss = -student.logprob(batch).sum() / (batch.targets != IGNORE).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


def judged(start: Student, seed: int, size: Size) -> Data:
    """Prompts `[P, 2]`, the start's answers to each `[P, K, T]`, rules kept `[P, K]`."""
    drawn = torch.Generator().manual_seed(1000 + seed)
    prompts = prompts_of(size.prompts, drawn)
    each = prompts.repeat_interleave(size.answers, 0)
    answers = start.draw(each, drawn)
    shape = (size.prompts, size.answers)
    return prompts, answers.view(*shape, LONGEST), oracle(each, answers).view(shape)


@torch.no_grad()
def at_random(start: Student, data: Data, seed: int, balance: bool = True) -> Data:
    """The same answers with random ranks."""
    prompts, answers, scores = data
    drawn = torch.Generator().manual_seed(4000 + seed)
    if not balance:
        return prompts, answers, random_ranks.at_random(scores, drawn)
    each, flat = prompts.repeat_interleave(answers.shape[1], 0), answers.flatten(0, 1)
    likely = start.logprob(batch_of(each, flat))[:, None]
    length = (flat != PAD).sum(1, keepdim=True)
    facts = torch.cat([rules(each, flat), length, likely], 1)
    facts = facts.view(*scores.shape, -1)
    return prompts, answers, random_ranks.balanced(scores, facts, drawn)


def ranked(method: str, prompts: Tensor, answers: Tensor, scores: Tensor) -> Batch:
    """What a method learns from: all answers, the best and the worst, or KTO's single ones."""
    rows = torch.arange(len(prompts))
    if method in ("rrhf", "pro"):
        chosen = torch.arange(answers.shape[1]).expand(len(prompts), -1)
        reward = scores
    else:
        chosen = torch.stack([scores.argmax(1), scores.argmin(1)], 1)
        apart = scores.amax(1) > scores.amin(1)  # without: nobody is better
        reward = torch.tensor([1.0, 0.0]).expand(len(prompts), 2)
        reward = torch.where(apart[:, None], reward, torch.nan)
    count = chosen.shape[1]
    taken = answers[rows[:, None], chosen].flatten(0, 1)
    each = prompts.repeat_interleave(count, 0)
    if method != "kto":
        return batch_of(each, taken, rows.repeat_interleave(count), reward.flatten())
    others = taken.roll(count, 0)  # put to another prompt: where the reference point comes from
    point = torch.cat([reward.flatten(), torch.full((len(each),), torch.nan)])
    both = torch.cat([each, each]), torch.cat([taken, others])
    return batch_of(*both, torch.zeros(len(point), dtype=torch.long), point)


def look(step: int, student: Student, start: Student, seed: int, size: Size) -> Look:
    """Rules kept by the student's own answers, and how far it is from the start."""
    drawn = torch.Generator().manual_seed(2000 + seed)
    prompts = prompts_of(size.judged, drawn)
    answers = student.draw(prompts, drawn)
    batch = batch_of(prompts, answers)
    with torch.no_grad():
        apart = (student.logprob(batch) - start.logprob(batch)).mean()
    return Look(step, float(oracle(prompts, answers).mean()), float(apart))


def loss_of(method: str) -> Loss:
    """The loss of configs/loss, as a run would build it."""
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(Loss, "loss", required=True)
    made = parser.parse_args([f"--loss={CONFIGS / f'{method}.yaml'}"])
    loss = parser.instantiate(made).loss
    assert isinstance(loss, Loss)
    return loss


def arm(method: str, start: Student, data: Data, seed: int, size: Size) -> list[Look]:
    """Looks at a student that goes on from the start, until it is over the budget."""
    prompts, answers, scores = data
    drawn = torch.Generator().manual_seed(3000 + seed)
    student, loss = copy.deepcopy(start).train(), loss_of(method)
    rate = RATES.get(method, 5e-4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.0)
    looks = []
    for step in range(1, size.steps + 1):
        rows = torch.randperm(len(prompts), generator=drawn)[: size.rows]
        batch = ranked(method, prompts[rows], answers[rows], scores[rows])
        loss.begin_step(Progress(step - 1, size.steps))
        teacher = None
        if loss.needs:
            with torch.no_grad():
                teacher = start(batch.input_ids)
        counts = loss.count(batch)
        objective, _ = loss.objective(student(batch.input_ids), teacher, batch, counts)
        optimizer.zero_grad()
        objective.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % size.every == 0:
            looks.append(look(step, student, start, seed, size))
            if looks[-1].divergence > size.budget:
                break
    return looks


def within(looks: list[Look], first: Look, budget: float) -> Look:
    """The last look that is within the budget."""
    return [first, *(each for each in looks if each.divergence <= budget)][-1]


def measure(
    seed: int, methods: tuple[str, ...], size: Size, balance: bool = True
) -> dict[str, Look]:
    """All arms of a seed; `shuffled <method>` are the controls."""
    start = begun(seed, size)
    data = judged(start, seed, size)
    control = at_random(start, data, seed, balance)
    first = look(0, start, start, seed, size)
    found = {"start": first}
    for method in methods:
        for name, learned in ((method, data), (f"shuffled {method}", control)):
            found[name] = within(arm(method, start, learned, seed, size), first, size.budget)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--plain", action="store_true", help="random ranks without balance")
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods, balance = tuple(given.methods), not given.plain
    every = [measure(seed, methods, Size(), balance) for seed in range(given.seeds)]
    print(f"| arm | rules kept of {RULES} (each seed) | KL from the start | step |")
    print("|---|---|---|---|")
    for name in every[0]:
        each = [found[name] for found in every]
        scores = " ".join(f"{x.score:.2f}" for x in each)
        apart = " ".join(f"{x.divergence:.2f}" for x in each)
        print(f"| {name} | {scores} | {apart} | {' '.join(str(x.step) for x in each)} |")


if __name__ == "__main__":
    main()
