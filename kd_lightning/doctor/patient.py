"""What the checks look at: the parts of a run, each made once, however many checks ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kd_lightning.data.groups import units
from kd_lightning.doctor.findings import MissingError
from kd_lightning.doctor.machine import Machine, shown
from kd_lightning.doctor.memory import Estimate, Shape, estimate
from kd_lightning.doctor.sample import Sample
from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.data.base import KDDataModule
    from kd_lightning.distiller import Distiller
    from kd_lightning.trainer import KDTrainer

T = TypeVar("T")

SPEED = 2e10
"""Operations per second that a processor makes: an assumption on the low side."""

PATIENCE = 6.0
"""Seconds that trying a batch may take on a processor."""


class Patient:
    """A run that has not begun."""

    def __init__(
        self, distiller: Distiller, data: KDDataModule, trainer: KDTrainer, machine: Machine
    ) -> None:
        """Nothing is loaded yet.

        Args:
            distiller: As configured.
            data: As configured.
            trainer: Of this process; its device is the one that things are tried on.
            machine: What the run is meant for.
        """
        self.distiller = distiller
        self.data = data
        self.trainer = trainer
        self.machine = machine
        self.folder = Path(trainer.default_root_dir)
        self.device: torch.device = trainer.strategy.root_device
        self._made: dict[str, Any] = {}
        self._broken: set[str] = set()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The part of this name; whoever asks first for one that cannot be made is told why."""
        if name in self._broken:
            raise MissingError(f"it needs the {name}")
        if name not in self._made:
            self._broken.add(name)
            self._made[name] = make()
            self._broken.discard(name)
        made: T = self._made[name]
        return made

    def known(self, name: str) -> Any:
        """The part of this name where a check has made it; else None."""
        return self._made.get(name)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; 0 where unknown."""
        told, sample = self.trainer, self.known("training rows")
        if told.max_steps > 0:
            return int(told.max_steps)
        if sample is None or not sample.whole or not told.max_epochs or told.max_epochs < 0:
            return 0
        return int(told.max_epochs * -(-sample.rows // (self.data.batch_size * self.machine.ranks)))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's."""
        return self.once("student's tokenizer", lambda: self.distiller.tokenizer)

    @property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teacher's; None where it has none."""
        teacher = self.distiller.teacher
        if teacher is None:
            return None
        return self.once("teacher's tokenizer", lambda: teacher.tokenizer)

    @property
    def sample(self) -> Sample:
        """Training rows, rendered and encoded."""

        def make() -> Sample:
            if self.data.tokenizer_path is None:
                self.data.tokenizer = self.tokenizer
            return Sample.of(self.data)

        return self.once("training rows", make)

    @property
    def estimate(self) -> Estimate:
        """Memory of a step."""

        def make() -> Estimate:
            return estimate(self.distiller, self.shape, self.machine, self.known_tokenizer)

        return self.once("memory estimate", make)

    @property
    def known_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The student's, where its number of ids is the size of a new student's vocabulary."""
        config = self.distiller.spec.config
        new = config is not None and "vocab_size" not in config
        return self.tokenizer if new else None

    @property
    def shape(self) -> Shape:
        """The largest micro-batch; by the longest row where rows could be read."""
        sample: Sample | None = self._made.get("training rows")
        limit = max(part.max_length for part in parts(self.data))
        longest = min(limit, max(sample.lengths)) if sample and sample.lengths else limit
        return Shape.of(self.distiller, self.data.batch_size, longest)

    @property
    def student(self) -> CausalLM:
        """Built, on the device."""

        def make() -> CausalLM:
            self._affordable()
            built = build_student(
                self.distiller.spec,
                self.tokenizer,
                device=self.device,
                half="16" in str(self.trainer.precision),
            )
            return built.to(self.device)

        return self.once("student", make)

    @property
    def teacher(self) -> Teacher:
        """Loaded, on the device."""
        teacher = self.distiller.teacher
        assert teacher is not None

        def make() -> Teacher:
            self._affordable()
            teacher.attach(self.student)
            teacher.materialize(self.device)
            return teacher

        return self.once("teacher", make)

    @property
    def asked(self) -> bool:
        """Whether the loss asks the teacher for anything while training."""
        teacher = self.distiller.teacher
        return teacher is not None and bool(self.distiller.loss.needs)

    @property
    def batch(self) -> Batch:
        """Rows to try things on: those of a step, or as many as this machine has patience for."""

        def make() -> Batch:
            rows = self.sample.kept
            if not rows:
                raise MissingError("it needs training rows that are learned from")
            steps = units(rows)[: self.data.batch_size]
            wanted = steps[-1].stop
            if self.device.type == "cpu":
                allowed = PATIENCE * SPEED / max(1, self._operations())
                tokens = 0
                for unit in steps:
                    tokens += sum(len(rows[i]) for i in unit)
                    if tokens > allowed and unit.start:
                        wanted = unit.start
                        break
            return self.data.collate()(rows[:wanted]).to(self.device)

        return self.once("batch", make)

    @property
    def offers_logits(self) -> bool:
        """Whether the teacher's distribution can be asked for."""
        teacher = self.distiller.teacher
        return teacher is not None and Signal.LOGITS in teacher.offers

    def _operations(self) -> int:
        """Of one token in one step: forward of the teacher, forward and backward of the student."""
        counted = self.estimate
        return 2 * counted.teacher_parameters + 6 * counted.student_parameters

    def _affordable(self) -> None:
        """Refuse to load what would bring this machine to its knees."""
        if self.device.type != "cpu":
            return
        machine = Machine.of(_Cpu)
        weights = self.estimate.weights
        if machine.memory is not None and weights > 0.6 * machine.memory:
            raise MissingError(
                f"the weights take {shown(weights)} and this machine has {shown(machine.memory)} "
                "free; try it where the run will be"
            )
        if 64 * self._operations() > 4 * PATIENCE * SPEED:
            raise MissingError(
                "models of this size are too slow for this machine's processor; try it where the "
                "run will be"
            )


class _Cpu:
    """The `trainer` of a machine without accelerators."""

    accelerator, devices, num_nodes, precision, strategy = "cpu", 1, 1, "32-true", "auto"


def parts(data: KDDataModule) -> list[KDDataModule]:
    """The data modules of a mixture; the data module itself where it is none."""
    mixed = getattr(data, "parts", None)
    return [data] if mixed is None else [part.data for part in mixed.values()]


def refusal(error: KDError) -> str:
    """A refusal as one line."""
    return " ".join(str(error).split())
