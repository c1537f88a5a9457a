"""What preferences teach: answers scored by rules, each ranking loss, and preferences at random.

`python benchmarks/preference_task.py` prints the table; the test takes the same arms. A tiny model
learns from a careless author, who keeps each of four rules more often than not (supervised
learning: the start and the frozen reference). Its own answers, four to a prompt, are ranked by how
many rules they keep, and each loss goes on from the start with the ranks. An arm's score is that
of its last look before the divergence from the start, KL(student || start) of a whole answer, is
over the budget: rewards that are bought by leaving the start do not count.

In the control (`shuffled`) the ranks are drawn at random, balanced so that they lean to no rule,
nor to length or likelihood; `--plain` leaves the balance out. Even so a single control ends some
tenths above or below the start: its score goes wherever the noise of a hundred steps takes the
answers' length. So each is run a second time with every group's order reversed (`reversed`), which
takes most of that back, and what is asked is the mean change over seeds, beside its standard error.
`--leak` tells the controls the right ranks of some groups: what is asked must notice.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from benchmarks import random_ranks
from benchmarks.four_rules import (
    LONGEST,
    PAD,
    RULES,
    Student,
    batch_of,
    careless,
    oracle,
    prompts_of,
    rules,
)
from kd_lightning.losses.base import Loss
from kd_lightning.types import IGNORE, Batch, Progress

CONFIGS = Path(__file__).parents[1] / "configs" / "loss"
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


@dataclass(frozen=True)
class Change:
    """Mean over seeds, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} +- {self.error:.2f}"


@cache
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
    judged = apart.repeat_interleave(count)
    point = torch.cat([reward.flatten()[judged], torch.full((len(each),), torch.nan)])
    both = torch.cat([each[judged], each]), torch.cat([taken[judged], others])
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
    seed: int, methods: tuple[str, ...], size: Size, balance: bool = True, leak: float = 0.0
) -> dict[str, Look]:
    """All arms of a seed; `shuffled <method>` and `reversed <method>` are the controls."""
    start = begun(seed, size)
    data = judged(start, seed, size)
    random = at_random(start, data, seed, balance)[2]
    drawn = torch.Generator().manual_seed(5000 + seed)
    right = torch.rand(len(random), 1, generator=drawn) < leak
    orders = {
        "": data[2],
        "shuffled ": torch.where(right, data[2], random),
        "reversed ": torch.where(right, data[2], random_ranks.turned(random)),
    }
    first = look(0, start, start, seed, size)
    found = {"start": first}
    for method in methods:
        for name, scores in orders.items():
            looks = arm(method, start, (*data[:2], scores), seed, size)
            found[name + method] = within(looks, first, size.budget)
    return found


def change(every: list[dict[str, Look]], *names: str) -> Change:
    """From the start to the mean of some arms of a seed."""
    each = torch.tensor(
        [[found[name].score - found["start"].score for name in names] for found in every]
    ).mean(1)
    return Change(float(each.mean()), float(each.std() / len(each) ** 0.5))


def tables(every: list[dict[str, Look]], methods: tuple[str, ...]) -> str:
    """Every arm, and what the methods and their controls changed."""
    lines = [f"| arm | rules kept of {RULES} (each seed) | KL from the start | step |"]
    lines.append("|---|---|---|---|")
    for name in every[0]:
        each = [found[name] for found in every]
        scores = " ".join(f"{x.score:.2f}" for x in each)
        apart = " ".join(f"{x.divergence:.2f}" for x in each)
        lines.append(f"| {name} | {scores} | {apart} | {' '.join(str(x.step) for x in each)} |")
    lines += ["", f"| method | change, {len(every)} seeds | random ranks, both orders | shuffled |"]
    lines[-1] += " reversed |"
    lines.append("|---|---|---|---|---|")
    for method in methods:
        controls = f"shuffled {method}", f"reversed {method}"
        said = [change(every, *arms) for arms in ((method,), controls, *((x,) for x in controls))]
        lines.append(f"| {method} | {' | '.join(map(str, said))} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--plain", action="store_true", help="random ranks without balance")
    parser.add_argument("--leak", type=float, default=0.0, help="share of right ranks in controls")
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods, balance = tuple(given.methods), not given.plain
    seeds = range(given.seeds)
    print(tables([measure(x, methods, Size(), balance, given.leak) for x in seeds], methods))


if __name__ == "__main__":
    main()
