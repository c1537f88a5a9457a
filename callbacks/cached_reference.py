"""The frozen reference's log-probabilities, computed once instead of at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.cache import digests, plan
from kd_lightning.cache.sums import Sums
from kd_lightning.data.base import KDDataModule
from kd_lightning.data.encoding import Encoded
from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.losses.answers import reference_logprobs
from kd_lightning.losses.ranking import Ranking
from kd_lightning.types import Batch, Signal


class CachedReference(Callback):
    """Gives every row of the data its answer's log-probability under the teacher, for losses with
    `reference: cached` (DPO and its relatives).

    Before training, each row of the training and validation data goes through the teacher once;
    the numbers stand in `<run>/reference` by the digest of the row's tokens. A run that goes on
    computes only what is missing. The teacher then no longer works at training steps.
    """

    def __init__(self, folder: str = "reference", batch_tokens: int = 8192) -> None:
        """Store the settings.

        Args:
            folder: Below the run's.
            batch_tokens: Tokens with padding that go through the teacher at once.
        """
        self.folder = folder
        self.batch_tokens = batch_tokens
        self._known: dict[bytes, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, Distiller) or not isinstance(data, KDDataModule):
            raise KDError("CachedReference needs a Distiller and a data module")
        self._check(pl_module, data)
        sums = Sums(Path(trainer.default_root_dir) / self.folder)
        if trainer.is_global_zero:
            sums.claim(self._owner(pl_module))
        trainer.strategy.barrier("reference")
        sums.mend(trainer.global_rank)
        trainer.strategy.barrier("reference mended")
        known = sums.read()
        wanted = plan.unique(data.encoded(split) for split in ("train", "validation"))
        missing = [row for row in wanted if row.key not in known]
        trainer.strategy.barrier("reference read")
        self._compute(trainer, pl_module, data, missing, sums)
        trainer.strategy.barrier("reference written")
        self._known = sums.read()
        rank_zero_info(
            f"reference log-probabilities of {len(wanted)} rows, {len(missing)} of them new"
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._give(batch)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._known:
            self._give(batch)

    def _check(self, module: Distiller, data: KDDataModule) -> None:
        losses = [x for x in module.loss.modules() if isinstance(x, Ranking)]
        if not any(loss.reference == "cached" for loss in losses):
            raise KDError(
                "CachedReference serves a loss that reads cached log-probabilities: write "
                "--model.loss.init_args.reference=cached, or leave the callback out"
            )
        if module.teacher is None or Signal.LOGITS not in module.teacher.offers:
            raise KDError("CachedReference needs the frozen reference model as model.teacher")
        if data.streaming:
            raise KDError("CachedReference needs rows that are known: --data.streaming=false")
        if module.answering.rollout.makes_text:
            raise KDError("CachedReference knows the data's answers only: leave model.rollout out")

    def _owner(self, module: Distiller) -> dict[str, str]:
        assert module.teacher is not None
        told = {"teacher": module.teacher.identity}
        if module.teacher.tokenizer is not None:
            told["tokenizer"] = digests.tokenizer_digest(module.teacher.tokenizer)
        return told

    def _compute(
        self,
        trainer: Trainer,
        module: Distiller,
        data: KDDataModule,
        rows: list[Encoded],
        sums: Sums,
    ) -> None:
        """This rank's share; every rank makes as many forwards, which may be collective."""
        assert module.teacher is not None
        collate = data.collate()
        every = plan.batches(rows, self.batch_tokens)
        rounds = -(-len(every) // trainer.world_size)
        for number in range(rounds):
            place = number * trainer.world_size + trainer.global_rank
            chosen = [rows[i] for i in every[min(place, len(every) - 1)]]
            batch = collate(chosen).to(module.device)
            with torch.no_grad():
                output = module.teacher.forward(batch, frozenset({Signal.LOGITS}))
                values = reference_logprobs("teacher", output, batch).double().sum(1)
            if place < len(every):
                sums.add(trainer.global_rank, batch.keys, values.tolist())

    def _give(self, batch: Batch) -> None:
        try:
            values = [self._known[key] if key else 0.0 for key in batch.keys]
        except KeyError:
            raise KDError(
                "a row of the batch has no cached reference: its words are not the data's; write "
                "--model.loss.init_args.reference=teacher"
            ) from None
        batch.reference = torch.tensor(values, device=batch.input_ids.device)
