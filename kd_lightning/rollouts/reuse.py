"""One batch of answers for several optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.rollouts.answers import Answer, Asked, asked, placed, together
from kd_lightning.rollouts.base import Moment, Rollout, padding
from kd_lightning.rollouts.chance import number
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.kept import as_plain, from_all_ranks, from_plain
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Progress


@dataclass(frozen=True)
class Held:
    """A prompt's answers with what was known of them when they were drawn."""

    name: str
    """The prompt's."""
    answers: list[Answer]
    rewards: list[float] | None
    """One for each; None: nobody judges."""
    values: list[list[float]] | None
    """What a value head expected before each word; None: there is none."""


class Reuse(Rollout):
    r"""Answers are drawn once in `times = epochs * minibatches` steps, and learned from in each.

    The step :math:`s` uses the answers of step :math:`s_0 = s - s \bmod \text{times}`. In each
    epoch they are put into an order of its own and dealt out to `minibatches` steps; answers to one
    prompt stay together. Rewards, the drawing policy's log-probabilities (`behaviour`) and what a
    value head expected are those of step s_0, so a clipped ratio clips (PPO, GRPO with several
    updates). `data.batch_size` is the number of prompts that are answered; the rows that the loader
    brings in the steps between are passed over.

    All is the same on all ranks, whoever drew it, and is in the checkpoint.

    Source: Schulman et al. 2017 (PPO), arXiv 1707.06347, algorithm 1 (K epochs, minibatch size M).
    """

    outermost = True
    knows_behaviour = True

    def __init__(self, inner: Rollout | None = None, epochs: int = 4, minibatches: int = 1) -> None:
        """Store the settings.

        Args:
            inner: How prompts are answered; null: FromStudent.
            epochs: How often each answer is learned from [K].
            minibatches: Steps of an epoch.
        """
        if epochs < 1 or minibatches < 1:
            raise KDError(
                f"epochs and minibatches must be at least 1, not {epochs} and {minibatches}"
            )
        self.inner = inner
        self.epochs = epochs
        self.minibatches = minibatches
        self._inner = inner or FromStudent()
        if not self._inner.knows_behaviour:
            raise KDError(
                "Reuse needs to know how likely the answers were, which "
                f"{type(self._inner).__name__} does not say: write FromStudent or TeacherMixed as "
                "its inner"
            )
        self._begun = -1  # the step that drew what is held
        self._held: list[Held] = []
        self._drawn: list[tuple[str, list[Answer]]] = []
        self._now: tuple[Moment, Batch] | None = None
        self._fresh = False

    @property
    def parts(self) -> tuple[Rollout, ...]:
        return (self._inner,)

    @property
    def times(self) -> int:
        """Steps that a batch of answers serves."""
        return self.epochs * self.minibatches

    @property
    def judged(self) -> bool:
        return not self._fresh

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        raise AssertionError("Reuse chooses the rows of a step itself")

    def __call__(
        self,
        batch: Batch,
        student: CausalLM,
        teacher: Teacher | None,
        progress: Progress,
        seed: int,
    ) -> Batch:
        moment = Moment(student, teacher, progress, seed)
        self._now = moment, batch
        self._fresh = self._begun != moment.step - moment.step % self.times
        if not self._fresh:
            return self._portion()
        rows = [row for row in asked(batch) if row.prompt]
        drawn = self._inner.answers(rows, moment)
        self._drawn = [(row.name, each) for row, each in zip(rows, drawn, strict=True)]
        return self._batch(drawn)

    def settle(self, batch: Batch, fix: Callable[[Batch], Batch]) -> Batch:
        if not self._fresh:
            return batch
        assert self._now is not None
        here, row, mine = fix(batch).to("cpu"), 0, []
        for name, answers in self._drawn:
            there = range(row, row + len(answers))
            row += len(answers)
            mine.append(Held(name, answers, _rewards(here, there), _values(here, there, answers)))
        step = self._now[0].step
        self._begun = step - step % self.times
        self._held = sorted(from_all_ranks(mine), key=lambda held: held.name)
        if 0 < len(self._held) < self.minibatches:
            raise KDError(
                f"{len(self._held)} prompts were answered, too few for {self.minibatches} "
                "minibatches: raise data.batch_size, or lower rollout.init_args.minibatches"
            )
        return self._portion()

    def _portion(self) -> Batch:
        """This rank's share of the answers that the step learns from."""
        assert self._now is not None
        moment, batch = self._now
        epoch, place = divmod(moment.step - self._begun, self.minibatches)
        told = (moment.seed, self._begun, epoch, "order")
        order = sorted(self._held, key=lambda held: number(*told, held.name))
        chosen = order[place :: self.minibatches]
        alone = not (dist.is_available() and dist.is_initialized())
        mine = chosen if alone else chosen[dist.get_rank() :: dist.get_world_size()]
        made = self._batch([held.answers for held in mine])
        rewards = [reward for held in mine for reward in held.rewards or ()]
        values = [each for held in mine for each in held.values or ()]
        starts = [answer.start for held in mine for answer in held.answers]
        if any(held.rewards is not None for held in self._held):
            settled = torch.full((len(made),), torch.nan)
            settled[: len(rewards)] = torch.tensor(rewards)
            made = made.replace(reward=settled.to(batch.input_ids.device))
        if any(held.values is not None for held in self._held):
            before = placed(made, list(zip(starts, values, strict=True)))
            made = made.replace(values=before.to(batch.input_ids.device))
        return made

    def _batch(self, answers: Sequence[Sequence[Answer]]) -> Batch:
        assert self._now is not None
        moment, batch = self._now
        fillers = len(batch) - len(batch.examples or range(len(batch)))
        rows = batch.rows(0, min(len(batch), max(1, len(answers) + fillers)))
        made = rows.replace(ids=())
        return together(made, answers, padding(moment.student), with_behaviour=True)

    def state(self) -> dict[str, Any]:
        return {
            "begun": self._begun,
            "held": [
                {
                    "name": held.name,
                    "answers": [as_plain(answer) for answer in held.answers],
                    "rewards": held.rewards,
                    "values": held.values,
                }
                for held in self._held
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begun = state["begun"]
        self._held = [
            Held(
                told["name"],
                [from_plain(answer) for answer in told["answers"]],
                told["rewards"],
                told["values"],
            )
            for told in state["held"]
        ]


def _rewards(batch: Batch, rows: range) -> list[float] | None:
    if batch.reward is None:
        return None
    found: list[float] = batch.reward[rows.start : rows.stop].tolist()
    return found


def _values(batch: Batch, rows: range, answers: Sequence[Answer]) -> list[list[float]] | None:
    if batch.values is None:
        return None
    found = []
    for row, answer in zip(rows, answers, strict=True):
        first = answer.start - 1
        found.append(batch.values[row, first : first + len(answer.completion.tokens)].tolist())
    return found
