"""The pair of the on-policy benchmarks: a real teacher of 260,032 parameters, students of 75,504.

One common start for each seed (some steps of forward KL on the data), the training of a student
from it, and what is measured of one: on the held-back stories, and free-running.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from transformers import PreTrainedTokenizerBase

from kd_lightning.data.skills.plain_text import PlainText
from kd_lightning.distiller import Distiller
from kd_lightning.losses.base import Loss
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.metrics.agreement import STATISTICS, grouped_statistics
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.loading import load_tokenizer
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch, Progress, Sampling, Signal

SHARED = Path(os.environ.get("KD_SHARED", Path(__file__).parent.parent.parent / "shared"))
TEACHER = SHARED / "models/stories260k"
NEW: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""configs/student/stories_75k.yaml."""

ROWS = 8
"""Stories in a step."""
PROMPT = 16
"""Tokens of a story that are given, behind the one that begins it."""
OPTIMIZER = partial(torch.optim.AdamW, weight_decay=0.01, betas=(0.9, 0.95))
MEASURED = 4711
"""Seed of the answers that are measured: of no training run."""


class Stories(PlainText):
    """800 stories of the teacher's, a tenth of them held back."""

    def __init__(self, seed: int = 0, **more: Any) -> None:
        """`seed`: of the order; the held-back stories are the same for all."""
        path = SHARED / "data/lm_text/stories260k_samples.train.jsonl"
        settings = {"validation_share": 0.1, "end": "bos", "max_length": 256, "batch_size": ROWS}
        super().__init__(str(path), **{**settings, **more})
        self.seed = seed


def tokenizer(folder: str | Path = TEACHER) -> PreTrainedTokenizerBase:
    """The one of both models."""
    found = load_tokenizer(str(folder), None)
    assert found is not None
    return found


def teacher() -> LocalTeacher:
    """The teacher, loaded."""
    made = LocalTeacher(str(TEACHER))
    made.materialize(torch.device("cpu"))
    return made


def student(folder: Path, known: Teacher) -> CausalLM:
    """A saved student."""
    assert known.tokenizer is not None
    return build_student(StudentSpec(path=str(folder)), known.tokenizer)


def fit(
    spec: StudentSpec,
    loss: Loss,
    known: Teacher,
    seed: int,
    steps: int,
    lr: float,
    scheduler: Any,
    rollout: Rollout | None = None,
    callbacks: Sequence[Callback] = (),
    data: LightningDataModule | None = None,
) -> CausalLM:
    """A student after `steps` steps."""
    seed_everything(seed, verbose=False)
    module = Distiller(
        spec,
        loss,
        known,
        rollout=rollout,
        optimizer=partial(OPTIMIZER, lr=lr),
        scheduler=scheduler,
        gradient_clip_norm=1.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            use_distributed_sampler=False, default_root_dir=folder, callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(module, data or Stories(seed))
    return module.student.eval()


def start(folder: Path, seed: int, steps: int, known: Teacher) -> Path:
    """The common start of a seed: a new student after `steps` steps of forward KL on the data."""
    place = folder / f"start-{seed}-{steps}"
    if not (place / "model.safetensors").is_file():
        scheduler = partial(WarmupCosine, final=0.1)
        fit(StudentSpec(config=NEW), ForwardKL(), known, seed, steps, 6e-3, scheduler).save(place)
    return place


# ------------------------------------------------------------------ what is measured
def held_back(known: Teacher, limit: int | None = None) -> list[Batch]:
    """The stories that nobody learns from."""
    data = Stories(limit_validation=limit, eval_batch_size=40)
    assert known.tokenizer is not None
    data.tokenizer = known.tokenizer
    data.setup("validate")
    loader: Any = data.val_dataloader()
    return list(loader)


@torch.no_grad()
def forced(model: CausalLM, known: Teacher, rows: Sequence[Batch]) -> dict[str, float]:
    """Nats per token on the stories themselves."""
    sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
    for batch in rows:
        one = torch.zeros_like(batch.targets)[None]
        told = known.forward(batch, frozenset({Signal.LOGITS}))
        sums += grouped_statistics(model(batch), told, batch, one, 1)[0]
    return _means(sums)


@torch.no_grad()
def free_running(
    model: CausalLM, known: Teacher, rows: Sequence[Batch], answers: int, length: int, early: int
) -> dict[str, float]:
    """Nats per token on the model's own answers to the beginnings of the stories.

    Sums over the whole vocabulary at each token of every answer. `early`: the same of an answer's
    first so many tokens; `_se`: standard error, stories taken as independent.
    """
    sampling = Sampling(max_new_tokens=length, temperature=1.0)
    rollout = FromStudent(n=answers, sampling=sampling, document_prompt=PROMPT)
    found = []
    for batch in rows:
        made = rollout(batch, model, known, Progress(0, 0), MEASURED)
        assert made.group is not None
        first = torch.tensor([len(row) - len(a.tokens) for row, a in _rows(made)])[:, None]
        late = torch.arange(made.targets.shape[1])[None] >= first - 1 + early
        told = known.forward(made, frozenset({Signal.LOGITS}))
        groups = 2 * made.group[:, None] + late
        sums = grouped_statistics(model(made), told, made, groups[None], 2 * len(batch))
        found.append(sums.view(len(batch), 2, -1))
    sums = torch.cat(found)  # [stories, early or late, M]
    means = _means(sums.sum((0, 1)))
    each = sums.sum(1)
    means |= {f"{name}_se": _error(each, name) for name in ("kl", "reverse_kl")}
    return means | {f"early_{k}": v for k, v in _means(sums[:, 0].sum(0)).items()}


def _rows(batch: Batch) -> list[tuple[range, Any]]:
    """Each answer with the places of its row's tokens, the last one included."""
    return [(range(n + 1), a) for n, a in zip(batch.lengths, batch.answers, strict=False)]


def _means(sums: torch.Tensor) -> dict[str, float]:
    table = dict(zip(STATISTICS, sums.tolist(), strict=True))
    tokens = table.pop("tokens")
    kept = ("ce", "kl", "reverse_kl", "jsd", "entropy", "teacher_ce")
    return {**{name: table[name] / tokens for name in kept}, "tokens": tokens}


def _error(each: torch.Tensor, name: str) -> float:
    """Of a mean per token over stories `[S, M]`, as a ratio of two sums."""
    tokens, values = each[:, 0], each[:, STATISTICS.index(name)]
    mean = values.sum() / tokens.sum()
    rest = (values - mean * tokens).square().sum()
    return float((rest * len(each) / (len(each) - 1)).sqrt() / tokens.sum())
