"""One training step: frozen teacher, trainable student, everything that varies injected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels import backends
from kd_lightning.losses.base import Loss, stated
from kd_lightning.metrics.agreement import STATISTICS, Statistics, by_skill
from kd_lightning.metrics.grades import graded_answers
from kd_lightning.metrics.running import Running, step_table
from kd_lightning.models import loading
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import configured
from kd_lightning.parallel.learned import learned_only, refuse_unless_same
from kd_lightning.parallel.place import place, same_randomness
from kd_lightning.parallel.step import anywhere, clip, evened, summed, synchronised
from kd_lightning.reliability.always import always
from kd_lightning.reliability.finite import FiniteGuard, NotFinite
from kd_lightning.rewards.base import Reward
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.step import Answering
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.pair import check_pair
from kd_lightning.types import Batch, LossOutput, ModelOutput, Progress, Sampling, Signal, iterate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGITS = frozenset({Signal.LOGITS})


class Distiller(LightningModule):
    """A student that learns from a teacher by a loss.

    A batch of the loader is what one rank contributes to one optimizer step; it is split into
    micro-batches here (manual optimization), every term of the loss is divided by what it counts
    over all micro-batches and ranks, and gradients are synchronised on the last micro-batch only.
    """

    def __init__(
        self,
        student: StudentSpec,
        loss: Loss,
        teacher: Teacher | None = None,
        rollout: Rollout | None = None,
        reward: Reward | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        micro_batch_rows: int | None = None,
        micro_batch_tokens: int | None = None,
        gradient_clip_norm: float | None = None,
        graded_rows: int = 0,
        answers: Sampling = Sampling(),  # noqa: B008 (frozen)
        not_finite: NotFinite = NotFinite(),  # noqa: B008 (frozen)
        kernel: backends.Kernel = "auto",
        terms_override: str | None = None,
    ) -> None:
        """The parts of a distillation.

        Args:
            student: the model that is trained.
            loss: what a step minimises.
            teacher: who knows; None for losses that need words only.
            rollout: whose words a step learns from; None: the data's (FromData).
            reward: how good these words are, for losses that ask; None: nobody judges.
            optimizer: from the student's trainable parameters to an optimizer.
            scheduler: from the optimizer to a learning-rate schedule, moved once a step.
            micro_batch_rows: rows at once on the device; None: the whole batch.
            micro_batch_tokens: tokens at once on the device, with their padding where models are
                not packed; None: no limit.
            gradient_clip_norm: scale the gradient down to this 2-norm; None: never.
            graded_rows: rows of each validation that the student answers and the skill grades.
            answers: how answers are drawn in validation, test and predict.
            not_finite: what happens when a loss or a gradient is not a finite number.
            kernel: what computes losses on tokens (triton: on CUDA); auto: what is fastest.
            terms_override: why training is allowed where a licence says no-train; for the card.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # frozen weights are not saved; names are checked here
        self.spec = student
        self.loss = loss
        self.teacher = teacher
        self.answering = Answering(rollout, reward, teacher, loss, terms_override)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.micro_batch_rows = micro_batch_rows
        self.micro_batch_tokens = micro_batch_tokens
        self.gradient_clip_norm = gradient_clip_norm
        self.graded_rows = graded_rows
        self.answers = answers
        self.guard = FiniteGuard(not_finite)
        self.kernel = kernel
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # ---- set-up -------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer: its own, or the teacher's for a student that has none."""
        if self._tokenizer is None:
            name = self.spec.tokenizer or self.spec.path
            own = loading.load_tokenizer(name, self.spec.revision) if name else None
            found = own or (self.teacher and self.teacher.tokenizer)
            if not found:
                raise KDError("a new student has no tokenizer: write model.student.tokenizer=...")
            self._tokenizer = found
        return self._tokenizer

    def configure_model(self) -> None:
        """Build the student, check the pair, place the teacher; once."""
        if hasattr(self, "student"):
            return
        data = getattr(self.trainer, "datamodule", None)
        self.answering.allowed(self.trainer.state.fn is TrainerFn.FITTING)
        check_pair(self.loss, self.teacher, lambda: self.tokenizer, data)
        self.answering.check(self.loss, data)
        device, half = self.trainer.strategy.root_device, "16" in str(self.trainer.precision)
        backends.refuse(self.kernel, device.type, stated(self.loss))
        same_randomness(self.trainer.strategy)
        self.student: CausalLM = build_student(self.spec, self.tokenizer, device=device, half=half)
        place(self.trainer.strategy, self.student, self.teacher, self.loss)
        self.answering.begin(self.student, device)
        teacher = "no teacher" if self.teacher is None else f"teacher {self.teacher.name}"
        rank_zero_info(f"{self.student.size}, {teacher}, {type(self.loss).__name__}")

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.parameters() if p.requires_grad]
        make = (self.make_optimizer, self.make_scheduler)
        return configured(trainable, *make, lambda: self.progress.total)

    def configure_callbacks(self) -> list[Callback]:
        return always()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = learned_only(self, checkpoint["state_dict"])
        checkpoint["answering"] = self.answering.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # a sharding strategy has loaded it by now
            refuse_unless_same(self, checkpoint["state_dict"], "given")
        self.answering.load_state_dict(checkpoint.get("answering", {}))

    # ---- training -----------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """Optimizer steps done and planned."""
        total = self.trainer.estimated_stepping_batches
        return Progress(self.trainer.global_step, int(total) if 0 < total < float("inf") else 0)

    def on_train_start(self) -> None:
        self.student.train()  # transformers loads models in evaluation mode, Lightning keeps it

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.loss.begin_step(self.progress)
        batch = self.answering(batch, self.student, self.trainer, self.progress, self.micro_batches)
        counts = self.over_ranks(self.loss.count(batch))
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = (self.trainer.global_step + 1) % every == 0
        terms = {name: torch.zeros_like(value) for name, value in counts.items()}
        statistics = self.no_statistics() if logged else None
        for micro, last in iterate(self.micro_batches(batch)):
            with synchronised(self.trainer.strategy, last):
                objective, output, sums = self.run(micro, counts, logged)
                # data-parallel wrappers average gradients over ranks; the sum is meant
                self.manual_backward(objective * self.trainer.world_size)
            for name, value in output.terms.items():
                terms[name] += value.detach()
            if statistics is not None and sums is not None:
                statistics += sums
        values = {k: v / counts[k].clamp_min(1e-9) for k, v in self.over_ranks(terms).items()}
        trained = (p for group in optimizer.param_groups for p in group["params"])
        norm = clip(trained, self.gradient_clip_norm)
        if not self.guard.passes(self.trainer, values, norm, batch):
            return
        optimizer.step()
        optimizer.zero_grad()
        self.loss.end_step(values)
        self.answering.end_step(self.trainer.global_step)
        if statistics is not None:
            self.log_step(values, norm, statistics, optimizer.param_groups[0]["lr"])
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()

    def run(
        self, batch: Batch, counts: Mapping[str, Tensor], measured: bool, teach: bool = False
    ) -> tuple[Tensor, LossOutput, Tensor | None]:
        """The objective over one micro-batch, the loss's sums, the statistics `[S, M]` if asked."""
        teacher: ModelOutput | None = None
        if self.teacher is not None and (self.loss.needs or teach):
            teacher = self.teacher.forward(batch, self.loss.needs | (LOGITS if teach else set()))

        def then(student: ModelOutput) -> tuple[Tensor, LossOutput, Tensor | None]:
            watch = Statistics.by_skill(batch, len(self.skills)) if measured else None
            with backends.kernel(self.kernel):
                objective, output = self.loss.objective(
                    student, teacher, batch, counts, watch=watch
                )
            return objective, output, None if watch is None else watch.sums

        made: tuple[Tensor, LossOutput, Tensor | None] = self.student(batch, then)
        return made

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch in pieces, as many on every rank."""
        packed = self.student.packs and (self.teacher is None or self.teacher.packs)
        pieces = batch.split(self.micro_batch_rows, self.micro_batch_tokens, padded=not packed)
        return evened(pieces, self.device)

    def over_ranks(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all ranks, in one exchange."""
        return summed(values, self.device)

    # ---- what is logged -----------------------------------------------------------------------

    @property
    def skills(self) -> tuple[str, ...]:
        """Names that `Batch.skill` points to."""
        return getattr(getattr(self.trainer, "datamodule", None), "skills", None) or ("data",)

    def no_statistics(self) -> Tensor:
        """Zeros `[S, M]`."""
        shape = (len(self.skills), len(STATISTICS))
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def log_step(
        self, values: Mapping[str, Tensor], norm: Tensor, statistics: Tensor, lr: float
    ) -> None:
        """One exchange and one write for everything that a step shows."""
        sums = self.over_ranks({"sums": statistics})["sums"]
        table = by_skill(sums, self.skills, "train", bool(self.loss.needs))
        table |= step_table(values, norm, lr) | self.answering.table(self.over_ranks)
        self.log("train/loss", table["train/loss"], prog_bar=True, logger=False, batch_size=1)
        for logger in self.loggers:
            logger.log_metrics(table, self.trainer.global_step)

    # ---- validation, test, predict --------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.running = Running(self.no_statistics())

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(batch, self.graded_rows - self.running.graded)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(batch, len(batch))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        return self.answer(batch, len(batch))

    def measure(self, batch: Batch, graded: int) -> None:
        """Add a batch to the sums; let the student answer the first `graded` rows."""
        for micro in self.micro_batches(batch):
            counts = self.loss.count(micro)
            _, output, statistics = self.run(micro, counts, measured=True, teach=True)
            assert statistics is not None
            self.running.add(output.terms, counts, statistics)
        for answer in self.answer(batch, graded):
            self.running.grade(answer["skill"], answer["grades"])

    def answer(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """The student's answers to the first rows that ask for one, graded by their skill."""
        data: Any = getattr(self.trainer, "datamodule", None)
        asked = [e for e in batch.examples[: max(0, rows)] if not e.plain]
        wanted = data and anywhere(len(asked), self.student)
        return graded_answers(self.student, data, asked, self.answers) if wanted else []

    def on_validation_epoch_end(self) -> None:
        self.report("val")

    def on_test_epoch_end(self) -> None:
        self.report("test")

    def report(self, prefix: str) -> None:
        """Log what the epoch's sums say, the same on all ranks."""
        has_teacher = self.teacher is not None
        table = self.running.table(prefix, self.over_ranks, self.skills, has_teacher)
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(table, batch_size=1, logger=not fitting)
        if fitting and not self.trainer.sanity_checking:  # Lightning would write the step before
            self.answering.end_validation(table[f"{prefix}/loss"])
            for logger in self.loggers:
                logger.log_metrics(table, self.trainer.global_step)
