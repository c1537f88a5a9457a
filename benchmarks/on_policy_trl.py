"""TRL's on-policy trainers on the models and rows of `on_policy_peers`, with its settings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.on_policy_run import Job, Ran, documents


def gkd(job: Job, recompute: bool) -> Ran:
    """`GKDTrainer`, each row answered by the student."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    how = _arguments(job, recompute)
    config = GKDConfig(
        **how, lmbda=1.0, beta=job.beta, temperature=1.0, max_new_tokens=job.drawn, max_length=512,
        train_sampling_strategy="sequential",
    )  # fmt: skip

    class Counted(GKDTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            tokens.append(int((inputs["labels"][:, 1:] != -100).sum()))
            return super().compute_loss(model, inputs, *more, **named)

    tokens: list[int] = []
    rows = [
        {
            "prompt": text,
            "input_ids": ids,
            "completion_mask": [0] * given + [1] * (len(ids) - given),
        }
        for text, ids, given in documents(job)
    ]
    return _train(Counted, config, rows, job, tokens)


def distillation(job: Job, recompute: bool) -> Ran:
    """`DistillationTrainer`, which knows nothing but the student's answers."""
    from trl import DistillationConfig, DistillationTrainer

    how = _arguments(job, recompute)
    config = DistillationConfig(
        **how, beta=job.beta, temperature=1.0, max_completion_length=job.drawn,
        shuffle_dataset=False,
    )  # fmt: skip

    class Counted(DistillationTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            tokens.append(int(inputs["completion_mask"].sum()))
            return super().compute_loss(model, inputs, *more, **named)

    tokens: list[int] = []
    rows = [{"prompt": text} for text, _, _ in documents(job)]
    return _train(Counted, config, rows, job, tokens)


def _arguments(job: Job, recompute: bool) -> dict[str, Any]:
    """Of both: ours, in float32, and nothing beside the training."""
    return {
        "output_dir": str(Path(job.folder) / "trl"),
        "per_device_train_batch_size": job.rows,
        "max_steps": job.steps,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": recompute,
        "seed": job.seed,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _train(kind: Any, config: Any, rows: Any, job: Job, tokens: list[int]) -> Ran:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.append((time.process_time(), time.perf_counter()))

    clock: list[tuple[float, float]] = []
    load = AutoModelForCausalLM.from_pretrained
    trainer = kind(
        model=load(job.start, dtype="float32"),
        teacher_model=load(job.teacher, dtype="float32"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.teacher, padding_side="left"),
        callbacks=[Clock()],
    )
    trainer.train()
    place = Path(job.folder) / "student"
    trainer.model.save_pretrained(place)
    return Ran.of(clock, tokens, job.warm, place)
