"""A whole training step of a tiny pair with a real vocabulary: ours beside TRL's two trainers.

`python -m benchmarks.step` (in the peers' environment): teacher forward, student forward, loss,
backward and AdamW, on the same models and rows; the losses are checked to be the same first. Peak
memory is the growth of a fresh process in its second step. TRL's GKDTrainer takes 10 GB.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import OURS, Report, alone, growth, interleaved, median, parser
from kd_lightning.losses import ForwardKL, JensenShannon, ReverseKL
from kd_lightning.losses.base import Divergence
from kd_lightning.models.causal import CausalLM
from kd_lightning.types import IGNORE, Batch


def qwen3(vocab: int, width: int, layers: int, heads: int, groups: int, head: int, inner: int):
    """Fields of a Qwen3 with tied heads."""
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "intermediate_size": inner,
        "tie_word_embeddings": True,
        "use_cache": False,
    }


@dataclass(frozen=True)
class Size:
    """Models and rows."""

    vocab: int
    rows: int
    length: int
    student: dict[str, Any]
    teacher: dict[str, Any]


V = 151_936

SIZES = {
    "full": Size(V, 4, 256, qwen3(V, 128, 2, 2, 1, 64, 384), qwen3(V, 256, 4, 4, 2, 64, 768)),
    "wide": Size(V, 4, 256, qwen3(V, 256, 2, 4, 2, 64, 768), qwen3(V, 512, 4, 8, 4, 64, 1536)),
    "tiny": Size(131, 2, 16, qwen3(131, 32, 1, 2, 1, 16, 64), qwen3(131, 64, 1, 2, 1, 32, 128)),
}

TARGETS = {"TRL GKD": 4.0, "TRL distillation": 3.0}

GKD_BYTES = 14 * 2**30
"""What must be free before TRL's GKDTrainer is run at full size."""


@dataclass
class Setting:
    """Both models and the student's optimizer."""

    student: CausalLM
    teacher: CausalLM
    optimizer: torch.optim.Optimizer
    loss: Divergence
    mixed: bool = False
    """The student computes in bfloat16 on float32 weights."""


class AllIds:
    """A tokenizer that knows every row of the models, so that all libraries do the same work."""

    def __init__(self, vocab: int) -> None:
        """Nothing but a size."""
        self.vocab = vocab

    def get_vocab(self) -> dict[str, int]:
        """The last id is enough to know the size."""
        return {"last": self.vocab - 1}


def model(fields: dict[str, Any], dtype: torch.dtype = torch.float32, **more: Any) -> CausalLM:
    """A model with random weights; `more` goes to `CausalLM`."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**fields)
    made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    tokenizer: Any = AllIds(fields["vocab_size"])
    return CausalLM(made, tokenizer, **more)


def setting(size: Size) -> Setting:
    """The pair; random weights, the same in every process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = model(size.student).train()
    teacher = model(size.teacher).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    return Setting(student, teacher, optimizer, JensenShannon())


def rows(vocab: int, lengths: Sequence[int], device: str = "cpu") -> Batch:
    """Random words; every token but the first of a row is predicted."""
    width = max(lengths)
    ids = torch.randint(0, vocab, (len(lengths), width), device=device)
    there = torch.arange(width, device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = torch.where(there[:, 1:], ids[:, 1:], IGNORE)
    zero = torch.zeros(len(ids), dtype=torch.long, device=device)
    weights = (targets != IGNORE).float()
    return Batch(ids, there.long(), targets, weights, zero, zero)


def words(size: Size) -> Batch:
    """Rows without padding."""
    return rows(size.vocab, [size.length] * size.rows)


# ------------------------------------------------------------------ losses
def ours(on: Setting, batch: Batch) -> Tensor:
    """The Distiller's step: the loss inside the student's forward."""
    counts = on.loss.count(batch)
    with torch.inference_mode():
        teacher = on.teacher(batch)
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=on.mixed):
        return on.student(batch, lambda s: on.loss.objective(s, teacher, batch, counts)[0])


def beta(loss: Divergence) -> float:
    """What TRL calls our loss by."""
    return {ForwardKL: 0.0, ReverseKL: 1.0}.get(type(loss), 0.5)


def trl_gkd(on: Setting, batch: Batch) -> Tensor:
    """`GKDTrainer.compute_loss`, as it is."""
    from trl.experimental.gkd import GKDTrainer

    trainer: Any = SimpleNamespace(
        teacher_model=on.teacher.transformer,
        beta=beta(on.loss),
        generalized_jsd_loss=GKDTrainer.generalized_jsd_loss,
    )
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels[:, 1:] = batch.targets[:, :-1]
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": labels,
    }
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=on.mixed):
        return GKDTrainer.compute_loss(trainer, on.student.transformer, inputs)


def trl_distillation(on: Setting, batch: Batch) -> Tensor:
    """`DistillationTrainer._compute_loss`, as it is; the first token of a row is its prompt."""
    from trl.trainer.distillation_trainer import DistillationTrainer

    trainer: Any = SimpleNamespace(
        teacher_model=on.teacher.transformer,
        beta=beta(on.loss),
        temperature=1.0,
        model_kwarg_keys={"logits_to_keep"},
        _is_vlm=False,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        _forward_redirection=lambda wrapped, inner, method, *rest, **more: method(*rest, **more),
    )
    hidden = inspect.unwrap(DistillationTrainer._get_last_hidden_state)  # without its stop watch
    trainer._get_last_hidden_state = MethodType(hidden, trainer)
    ids, mask = batch.input_ids, batch.attention_mask
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": ids[:, 1:],
        "completion_mask": mask[:, 1:],
    }
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=on.mixed):
        return DistillationTrainer._compute_loss(trainer, on.student.transformer, inputs, None)[0]


Way = Callable[[Setting, Batch], Tensor]
WAYS: dict[str, Way] = {"ours": ours, "TRL GKD": trl_gkd, "TRL distillation": trl_distillation}


def installed() -> dict[str, Way]:
    """The ways that can be run here."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if importlib.util.find_spec("trl") is None:
        return {OURS: ours}
    warnings.filterwarnings("ignore", module="trl")
    return WAYS


def step(way: Way, on: Setting, batch: Batch) -> None:
    """Everything that a step does."""
    way(on, batch).backward()
    on.optimizer.step()
    on.optimizer.zero_grad()


def peak(way: str, preset: str) -> int:
    """Bytes by which a process grows in a step after the first; to be run in a fresh one."""
    size = SIZES[preset]
    on = setting(size)
    step(WAYS[way], on, rows(size.vocab, [8]))
    batch = words(size)
    return growth(lambda: step(WAYS[way], on, batch))


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--wide", action="store_true", help="models of twice the width")
    asked = options.parse_args(arguments)
    which = "wide" if asked.wide else asked.preset
    size = SIZES[which]
    report = Report(
        "step_wide" if asked.wide else "step",
        f"Whole training step (JSD): Qwen3 of width {size.teacher['hidden_size']} into "
        f"{size.student['hidden_size']}, {size.vocab:,} ids, {size.rows} x {size.length} tokens",
        preset=asked.preset,
    )
    found = dict(installed())
    if len(found) == 1:
        report.notes.append("trl is not installed (make bench-peers): left out")
    free = free_memory()
    if asked.preset == "full" and "TRL GKD" in found and free < GKD_BYTES:
        del found["TRL GKD"]
        report.notes.append(f"TRL GKD left out: {free / 2**30:.0f} GiB are free, it takes 10")
    on = setting(size)
    batch = words(size)
    values = {}
    for name, way in found.items():  # warms up, too
        on.optimizer.zero_grad()
        loss = way(on, batch)
        loss.backward()
        values[name] = float(loss.detach())
        del loss
    step(ours, on, batch)
    for name, value in values.items():
        if abs(value - values[OURS]) > 3e-5 * abs(values[OURS]):
            raise SystemExit(f"{name} computes {value:.9f}, ours {values[OURS]:.9f}")
    timed = {name: partial(step, way, on) for name, way in found.items()}
    seconds = interleaved(timed, lambda: words(size), asked.repeats, warm=True)
    middle = {name: median(rounds) for name, rounds in seconds.items()}
    del on
    grown = {name: alone(peak, name, which, preset=asked.preset) for name in found}
    for name in found:
        report.row(
            way=name,
            loss=f"{values[name]:.7f}",
            seconds=middle[name],
            ratio=middle[name] / middle[OURS],
            MB=round(grown[name] / 1e6),
            rounds=" ".join(f"{value:.2f}" for value in seconds[name]),
        )
    for name, limit in TARGETS.items():
        if name in middle:
            report.at_least(f"{name} / ours, CPU seconds", middle[name] / middle[OURS], limit)
    if "TRL GKD" in grown:
        share = grown[OURS] / max(1, grown["TRL GKD"])
        report.at_most("ours / TRL GKD, peak memory", share, 1 / 9)
    panels = {
        "CPU seconds a step": middle,
        "growth of memory, GB": {name: value / 1e9 for name, value in grown.items()},
    }
    report.finish(asked.out, panels, "less is better")
    return report


def free_memory() -> int:
    """Bytes that this machine can still give (Linux); a very large number elsewhere."""
    told = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", told.read_text()) if told.exists() else None
    return 1024 * int(found[1]) if found else 2**62


if __name__ == "__main__":
    main()
