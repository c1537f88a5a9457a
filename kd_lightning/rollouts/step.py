"""What a step does before its loss: answers are made, looked at and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.shared import why_not
from kd_lightning.reliability.randomness import StepRandomness
from kd_lightning.rewards.base import Around, Reward, judges
from kd_lightning.rollouts import watch
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.judged import Judging
from kd_lightning.rollouts.preflight import check_parts, check_tokens
from kd_lightning.rollouts.remembered import remembered
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Generator
from kd_lightning.teachers.rights import refuse_no_train
from kd_lightning.types import Asking, Batch, Progress


class Answering:
    """Answers in place of the data's, for every step of a run."""

    def __init__(
        self,
        rollout: Rollout | None,
        reward: Reward | None,
        teacher: Teacher | None,
        loss: Loss,
        terms_override: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            rollout: Whose words a step learns from; None: the data's.
            reward: How good they are; None: nobody judges.
            teacher: Who knows, if anybody.
            loss: What the steps minimise.
            terms_override: Why training is allowed where terms of use forbid it.
        """
        self.loss = loss
        self.rollout = rollout or FromData()
        self.judging = None if reward is None else Judging(reward)
        self.teacher = teacher
        self.terms_override = terms_override
        self._watch = watch.LengthWatch()
        self._sums = torch.zeros(len(watch.SUMS), dtype=torch.float64)
        self._said = False

    def rights(self) -> dict[str, Any]:
        """What the card must say of the terms of those who teach and judge, or a refusal."""
        asked: dict[str, Generator] = {}
        if self.teacher is not None:
            asked[f"teacher {self.teacher.name}"] = self.teacher
        reward = None if self.judging is None else self.judging.reward
        asked |= {f"judge {judge.name}": judge for judge in judges(reward)}
        return refuse_no_train(asked, self.terms_override)

    def allowed(self, trained: bool) -> None:
        """Refuse, before anything is asked, to train where terms of use forbid it."""
        if trained:
            self.rights()

    def check(self, loss: Asking, data: Any) -> None:
        """Refuse, before anything is loaded, what could only fail later."""
        check_parts(self.rollout, self.teacher, loss)
        if self.judging is not None:
            self.judging.reward.check(Around(self.teacher, data))

    def begin(self, student: CausalLM, device: torch.device) -> None:
        """Load what judges; compare the models before their first answer."""
        if self.judging is not None:
            self.judging.reward.materialize(device)
        if self.rollout.makes_text:
            check_tokens(student, self.teacher)

    def __call__(
        self,
        batch: Batch,
        student: CausalLM,
        trainer: Trainer,
        progress: Progress,
        split: Callable[[Batch], list[Batch]],
    ) -> Batch:
        """The batch that the step learns from; a collective call.

        Args:
            batch: Of the loader.
            student: As it is before the step.
            trainer: Of the run.
            progress: Where the run stands.
            split: Into micro-batches, as many on every rank.
        """
        made = batch
        if self.rollout.makes_text:
            made = self.rollout(batch, student, self.teacher, progress, seed_of(trainer))
            self._sums = watch.measured(made, student.shares(made))
            self._watch(made, batch, student)
            self._say_of_sharing(made, student)
        if self.judging is not None and not self.rollout.judged:
            made = self.judging(made)
        return self.rollout.settle(made, partial(remembered, student, self.loss, split))

    def _say_of_sharing(self, made: Batch, student: CausalLM) -> None:
        """Once, where prompts are computed again for each of their answers."""
        if any(made.shared) and not self._said and student.attention is not None:
            kind = student.transformer.config.get_text_config().model_type
            if (reason := why_not(kind, student.attention)) is not None:
                rank_zero_info(reason)
            self._said = True

    def table(
        self, over_ranks: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, float]:
        """What is logged of the last step's answers, the same on all ranks; a collective call."""
        table = {} if self.judging is None else self.judging.table(over_ranks)
        if self.rollout.makes_text:
            table |= watch.table(over_ranks({"answers": self._sums})["answers"])
        if seen := self.loss.measured():
            for name, (value, number) in over_ranks(seen).items():
                table[f"train/{name}"] = float(value / number.clamp_min(1))
        return table

    def end_step(self, step: int) -> None:
        """Told after each optimizer step, with their number."""
        if self.teacher is not None:
            self.teacher.follow(step)

    def end_validation(self, loss: float) -> None:
        """Told of the loss of each validation, the same on all ranks."""
        self.rollout.end_validation(loss)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside what is learned."""
        teacher = {} if self.teacher is None else self.teacher.state_dict()
        return {"rollout": self.rollout.state_dict(), "teacher": teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint holds; one of an older run holds nothing."""
        if "rollout" in state:
            self.rollout.load_state_dict(state["rollout"])
        if self.teacher is not None and state.get("teacher"):
            self.teacher.load_state_dict(state["teacher"])


def seed_of(trainer: Trainer) -> int:
    """The run's seed: that of its step randomness, which checkpoints hold."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    found = next((c.seed for c in callbacks if isinstance(c, StepRandomness)), None)
    return torch.initial_seed() if found is None else found
