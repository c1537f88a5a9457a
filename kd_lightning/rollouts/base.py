"""Where the words come from that a step learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import KDError
from kd_lightning.rollouts.answers import Answer, Asked, asked, together
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Progress

if TYPE_CHECKING:
    from kd_lightning.models.causal import CausalLM


@dataclass(frozen=True)
class Moment:
    """Who is there when a step's answers are made."""

    student: CausalLM
    """As it is before the step."""
    teacher: Teacher | None
    """Who knows, if anybody."""
    progress: Progress
    """Where the run stands."""
    seed: int
    """The run's."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step


class Rollout(ABC):
    """From the rows of one rank's step to the answers that the step learns from.

    What is drawn for a row is a function of the run's seed, the step, the row and the answer's
    number: how rows are spread over ranks and batches does not change it. A call is collective:
    every rank makes it once a step, whatever rows it has.
    """

    needs_teacher = False
    """Whether a teacher has to speak or judge."""
    knows_behaviour = False
    """Whether every answer comes with the log-probabilities of the policy that drew it."""
    outermost = False
    """Whether it chooses what a step learns from itself: then it is no part of another rollout."""

    @property
    def makes_text(self) -> bool:
        """Whether answers may be others than the data's."""
        return True

    @property
    def parts(self) -> tuple[Rollout, ...]:
        """Other rollouts that it is made of."""
        return ()

    @abstractmethod
    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        """For each row its answers, at least one; a collective call."""

    def __call__(
        self,
        batch: Batch,
        student: CausalLM,
        teacher: Teacher | None,
        progress: Progress,
        seed: int,
    ) -> Batch:
        """The batch with the answers in place of the data's.

        Args:
            batch: What this rank contributes to the step.
            student: As it is before the step.
            teacher: Who knows, if anybody.
            progress: Where the run stands; the same on all ranks.
            seed: The run's.
        """
        rows = asked(batch)
        moment = Moment(student, teacher, progress, seed)
        asking = [i for i, row in enumerate(rows) if row.prompt]
        made = [[row.given] for row in rows]
        for i, found in zip(asking, self.answers([rows[i] for i in asking], moment), strict=True):
            made[i] = found
        return together(batch, made, padding(student), self.knows_behaviour)

    @property
    def judged(self) -> bool:
        """Whether the answers of the last call were judged in an earlier step."""
        return False

    def settle(self, batch: Batch, fix: Callable[[Batch], Batch]) -> Batch:
        """What the step learns from, out of the judged answers of the last call; collective.

        Args:
            batch: They, with their rewards.
            fix: Adds what a loss fixes of answers before the first step that they serve.
        """
        return batch

    def check(self, teacher: Teacher | None) -> None:
        """Refuse at set-up what could only fail later."""
        if self.needs_teacher and teacher is None:
            raise KDError(
                f"{type(self).__name__} needs a teacher that speaks: write model.teacher, or "
                "--model.rollout=FromStudent"
            )
        for part in self.parts:
            if part.outermost:
                raise KDError(
                    f"{type(part).__name__} goes around the whole rollout, not into "
                    f"{type(self).__name__}: write model.rollout={type(part).__name__} and the "
                    "other as its inner"
                )
            part.check(teacher)

    def end_validation(self, loss: float) -> None:
        """Told of the loss of each validation, the same on all ranks."""
        for part in self.parts:
            part.end_validation(loss)

    def state(self) -> dict[str, Any]:
        """What it remembers itself: plain data, the same on all ranks."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most remember nothing)
        """Take `state` back."""

    def state_dict(self) -> dict[str, Any]:
        """What it and its parts remember, for a checkpoint."""
        return {"own": self.state(), "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint remembers."""
        if len(state["parts"]) != len(self.parts):
            raise KDError(
                f"the checkpoint's rollout has {len(state['parts'])} parts and "
                f"{type(self).__name__} {len(self.parts)}: go on with the rollout of the run"
            )
        self.restore(state["own"])
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def padding(student: CausalLM) -> int:
    """The id behind a row's end."""
    known = student.tokenizer
    pads = (known.pad_token_id, known.eos_token_id, 0)
    return next(value for value in pads if isinstance(value, int))
