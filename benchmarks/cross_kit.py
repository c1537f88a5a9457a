"""TRL's trainers beside our losses: one model, one batch, one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Report
from kd_lightning.losses.answers import AnswerLoss
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput

TOKENIZER = Path(__file__).parents[1] / "kd_lightning/assets/demo_teacher"
PROMPTS = [f"add {i} and {i + 1}" for i in range(4)]
EQUAL, EQUAL_GRADIENT = 5e-5, 1e-5
"""Largest relative differences of float32 losses that are the same; values are sums that cancel."""


def tiny(tokenizer: Any, seed: int) -> Any:
    """A model of some thousand parameters that is sure of nothing in particular."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def output(model: Any, batch: Batch) -> ModelOutput:
    """What our losses take, from a model of transformers."""
    states = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    head = LinearHead(model.lm_head, model.lm_head.out_features)
    return ModelOutput(states.last_hidden_state, head)


def batch_of(ids: Tensor, there: Tensor, answer: Tensor, **known: Tensor) -> Batch:
    """Rows padded on either side as ours: on the right, targets moved by one."""
    rows = [(i[t.bool()], a[t.bool()]) for i, t, a in zip(ids, there, answer, strict=True)]
    width = max(len(i) for i, _ in rows) - 1
    made = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
        "targets": torch.full((len(rows), width), IGNORE),
    }
    for k, (i, a) in enumerate(rows):
        made["input_ids"][k, : len(i) - 1] = i[:-1]
        made["attention_mask"][k, : len(i) - 1] = 1
        made["targets"][k, : len(i) - 1] = torch.where(a[1:].bool(), i[1:], IGNORE)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    weights = (made["targets"] != IGNORE).float()
    return Batch(**made, weights=weights, source=zeros, skill=zeros, **known)


def ours(
    loss: AnswerLoss, model: Any, reference: Any, batch: Batch, **split: int
) -> tuple[float, Tensor]:
    """Our loss and its gradient by the model, flat."""
    counts, total = loss.count(batch), 0.0
    model.zero_grad()
    for part in batch.split(**split):
        with torch.no_grad():
            fixed = output(reference, part)
        value, _ = loss.objective(output(model, part), fixed, part, counts)
        value.backward()
        total += float(value.detach())
    return total, flat(model)


def flat(model: Any) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def theirs(trainer: Any, model: Any, inputs: Mapping[str, Any]) -> tuple[float, Tensor]:
    """TRL's loss and its gradient by the model, flat."""
    model.zero_grad()
    loss = trainer.loss_of(model, dict(inputs))
    loss.backward()
    return float(loss.detach()), flat(model)


def apart(a: Tensor | float, b: Tensor | float) -> float:
    """Relative difference, in the 2-norm."""
    left, right = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float((left - right).norm() / right.norm().clamp_min(1e-30))


def trained(
    trainer: type, config: type, folder: str, check: Callable[..., None], **more: Any
) -> None:
    """Let one of TRL's trainers make a batch; `check` is called with it in place of a step."""
    settings = {
        "output_dir": folder,
        "max_steps": 1,
        "learning_rate": 0.0,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        **more.pop("settings"),
    }

    class Watched(trainer):  # type: ignore[misc]
        def loss_of(self, model: Any, inputs: Any) -> Tensor:
            value: Tensor = super().compute_loss(model, inputs)
            return value

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
            check(self, model, inputs)
            return self.loss_of(model, inputs)

    made = Watched(args=config(**settings), **more)
    with torch.no_grad():  # away from the reference, which may be a copy
        for p in made.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    made.train()


def line(
    report: Report, what: str, mine: tuple[float, Tensor], other: tuple[float, Tensor]
) -> None:
    """A row that is held against equality."""
    value, gradient = apart(mine[0], other[0]), apart(mine[1], other[1])
    report.row(what=what, ours=mine[0], trl=other[0], value=value, gradient=gradient)
    report.at_most(f"{what}: value", value, EQUAL)
    report.at_most(f"{what}: gradient", gradient, EQUAL_GRADIENT)


def named(report: Report, what: str, mine: float, other: float, why: str) -> None:
    """A row of a difference that is meant."""
    report.row(what=what, ours=mine, trl=other, value=apart(mine, other))
    report.notes.append(f"{what}: {why}")
