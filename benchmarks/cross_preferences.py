"""DPO and KTO beside TRL's trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.cross_kit import PROMPTS, batch_of, line, named, ours, theirs, tiny, trained
from benchmarks.harness import Report
from kd_lightning.losses import Ranking
from kd_lightning.losses.comparators import Hinge, Logistic, Square
from kd_lightning.losses.listwise import PointwiseSigmoid
from kd_lightning.losses.scores import LogRatio
from kd_lightning.types import Batch


def dpo(report: Report, tokenizer: Any, folder: str) -> None:
    """DPO's losses: the ones that both have."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": p, "chosen": " it is " + "x" * i, "rejected": " nobody knows " + "y" * (5 - i)}
        for i, p in enumerate(PROMPTS)
    ]
    reference = tiny(tokenizer, 1)
    average = LogRatio(average=True)
    kinds: dict[str, tuple[float, Ranking]] = {
        "sigmoid": (0.0, Ranking(LogRatio(), Logistic(), beta=0.1)),
        "robust": (0.1, Ranking(LogRatio(), Logistic(0.1, unbiased=True), beta=0.1)),
        "hinge": (0.0, Ranking(LogRatio(), Hinge(margin=1.0), beta=0.1)),
        "ipo": (0.0, Ranking(average, Square(margin=1 / 0.2))),
        "sigmoid_norm": (0.0, Ranking(average, Logistic(), beta=0.1)),
    }

    def check(trainer: Any, model: Any, inputs: Any) -> None:
        half = len(inputs["input_ids"]) // 2
        order = torch.arange(2 * half).view(2, half).T.flatten()  # a pair side by side
        known = {
            "group": torch.arange(half).repeat_interleave(2),
            "reward": torch.tensor([1.0, 0.0]).repeat(half),
        }
        names = ("input_ids", "attention_mask", "completion_mask")
        batch = batch_of(*(inputs[name][order] for name in names), **known)
        for kind, (smoothing, loss) in kinds.items():
            trainer.loss_types, trainer.loss_weights = [kind], [1.0]
            trainer.label_smoothing = smoothing
            other = theirs(trainer, model, inputs)
            line(report, f"DPO {kind}", ours(loss, model, reference, batch), other)
            if kind == "ipo":
                sums = ours(Ranking(LogRatio(), Square(margin=5.0)), model, reference, batch)
                why = "the paper's equation 17 has log-ratios of answers (sums), TRL their averages"
                named(report, "IPO as published", sums[0], other[0], why)
        trainer.loss_types = ["sigmoid"]

    trained(
        DPOTrainer, DPOConfig, folder, check,
        model=tiny(tokenizer, 0), ref_model=reference, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows), settings={"per_device_train_batch_size": 4},
    )  # fmt: skip


def kto(report: Report, tokenizer: Any, folder: str) -> None:
    """KTO, whole and in two halves."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": p, "completion": " it is " + "x" * (i % 3) * 2, "label": i % 3 != 0}
        for i, p in enumerate([*PROMPTS, "say", "count"])
    ]
    reference = tiny(tokenizer, 1)
    loss = Ranking(LogRatio(), PointwiseSigmoid(desirable=1.5, undesirable=0.7), beta=0.1)

    def check(trainer: Any, model: Any, inputs: Any) -> None:
        batch = kto_batch(inputs)
        mine, other = ours(loss, model, reference, batch), theirs(trainer, model, inputs)
        line(report, "KTO", mine, other)
        number = len(inputs["label"])
        parts = [
            {k: v[a:b] for k, v in inputs.items()} for a, b in ((0, 2), (2, number))
        ]  # as two micro-batches
        halves = [theirs(trainer, model, part)[0] for part in parts]
        why = (
            "micro-batches of 2 and 4: TRL takes z0 and the mean over each, so the loss depends on "
            "the split; ours takes both over the group, which is not split"
        )
        named(report, "KTO split", ours(loss, model, reference, batch, rows=2)[0],
              sum(halves) / 2, why)  # fmt: skip

    trained(
        KTOTrainer, KTOConfig, folder, check,
        model=tiny(tokenizer, 0), ref_model=reference, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        settings={
            "per_device_train_batch_size": 6, "desirable_weight": 1.5, "undesirable_weight": 0.7,
        },
    )  # fmt: skip


def kto_batch(inputs: Mapping[str, Any]) -> Batch:
    """Judged answers, then answers put to other prompts; one group."""
    number = len(inputs["label"])
    judged = [1.0 if good else -1.0 for good in inputs["label"]]
    rows = []
    for prefix in ("", "KL_"):
        names = ("input_ids", "attention_mask", "completion_mask")
        rows += list(zip(*(inputs[prefix + name] for name in names), strict=True))
    width = max(len(row[0]) for row in rows)
    padded = [
        torch.stack([nn.functional.pad(row[i], (0, width - len(row[i]))) for row in rows])
        for i in range(3)
    ]
    return batch_of(
        *padded,
        group=torch.zeros(2 * number, dtype=torch.long),
        reward=torch.tensor(judged + [float("nan")] * number),
    )
