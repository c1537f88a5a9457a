"""Head and loss as other libraries do it, behind one signature.

A way takes a `Pair` and returns the mean loss per counted token, whose gradient reaches the
student's hidden states and head. What is not installed is named with the reason.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses import ForwardKL, JensenShannon, ReverseKL
from kd_lightning.losses.base import Divergence
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput

BETA = {"forward KL": 0.0, "reverse KL": 1.0, "JSD": 0.5}
"""The divergences that all compute, by the beta that TRL and Liger call them by."""


@dataclass
class Pair:
    """Hidden states and heads of both models, and which tokens count."""

    hidden: Tensor  # [N, D_s], learns
    head: nn.Linear  # [V, D_s], learns
    hidden_t: Tensor  # [N, D_t]
    head_t: nn.Linear  # [V_t, D_t]
    labels: Tensor  # [N], IGNORE where nothing counts


Way = Callable[[Pair], Tensor]


def divergence(name: str) -> Divergence:
    """Our loss of that name."""
    return {"forward KL": ForwardKL, "reverse KL": ReverseKL, "JSD": JensenShannon}[name]()


# ------------------------------------------------------------------ ours
def ours(pair: Pair, name: str) -> Tensor:
    """What a training step runs."""
    loss = divergence(name)
    labels = pair.labels[None]
    zero = torch.zeros(1, dtype=torch.long, device=labels.device)
    counted = (labels != IGNORE).float()
    batch = Batch(labels, torch.ones_like(labels), labels, counted, zero, zero)
    vocab = min(pair.head.out_features, pair.head_t.out_features)
    student = ModelOutput(pair.hidden[None], LinearHead(pair.head, vocab))
    teacher = ModelOutput(pair.hidden_t[None], LinearHead(pair.head_t, vocab))
    return loss.objective(student, teacher, batch, loss.count(batch))[0]


# ------------------------------------------------------------------ the peers
def logits(pair: Pair) -> tuple[Tensor, Tensor]:
    """All of them at once, as a model's forward gives them."""
    with torch.no_grad():
        teacher = pair.head_t(pair.hidden_t)
    return pair.head(pair.hidden), teacher


def trl_gkd(pair: Pair, beta: float) -> Tensor:
    """TRL's GKDTrainer: its loss on both models' whole logits."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(pair)
    labels = pair.labels[None]
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels, beta=beta)


def trl_kernel(pair: Pair, beta: float) -> Tensor:
    """TRL's DistillationTrainer: its kernel on the counted rows (as on GPUs; its CPU path asks
    for all rows).
    """
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    rows = (pair.labels != IGNORE).nonzero().squeeze(-1)
    values, _ = ChunkedDivergenceFunction.apply(
        pair.hidden[rows],
        pair.head.weight,
        None,
        pair.hidden_t[rows],
        pair.head_t.weight,
        None,
        beta,
    )
    return values.sum() / len(rows)


def liger(pair: Pair, beta: float, compiled: bool) -> Tensor:
    """Liger's chunked loss, soft part alone."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled
    )
    heads = pair.head.weight, pair.head_t.weight
    return loss(pair.hidden, heads[0], pair.hidden_t, heads[1], pair.labels)


def liger_triton(pair: Pair, beta: float) -> Tensor:
    """Liger's other path, in Triton: GPUs only."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    heads = pair.head.weight, pair.head_t.weight
    return LigerFusedLinearJSD(beta)(pair.hidden, heads[0], pair.hidden_t, heads[1], pair.labels)


def torchtune(pair: Pair, beta: float, chunks: int = 8) -> Tensor:
    """Torchtune's chunked KL; its forward direction is the cross-entropy, KL + H(teacher)."""
    name = {0.0: "ForwardKLWithChunkedOutputLoss", 1.0: "ReverseKLWithChunkedOutputLoss"}[beta]
    loss = getattr(_torchtune_losses(), name)(chunks, IGNORE)
    with torch.no_grad():
        teacher = [pair.head_t(part) for part in pair.hidden_t[None].chunk(chunks, dim=1)]
    student = [pair.head(part) for part in pair.hidden[None].chunk(chunks, dim=1)]
    return loss(student, teacher, pair.labels[None])


_LOADED: dict[str, Any] = {}


def _torchtune_losses() -> Any:
    """The file itself: importing the package asks for a torchao that torch 2.13 has left behind."""
    if "torchtune" not in _LOADED:
        package = importlib.util.find_spec("torchtune")
        assert package is not None and package.origin is not None
        file = Path(package.origin).parent / "modules/loss/kd_losses.py"
        spec = importlib.util.spec_from_file_location("torchtune_kd_losses", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _LOADED["torchtune"] = module
    return _LOADED["torchtune"]


def distillkit(pair: Pair, beta: float) -> Tensor:
    """DistillKit's dense losses, written from its formulas: float32 log-softmax of all logits."""
    student, teacher = logits(pair)
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if beta == 0.0:
        each = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    else:
        log_m = torch.logaddexp(log_s, log_t) - math.log(2)
        of_student = (log_s.exp() * (log_s - log_m)).sum(-1)
        each = 0.5 * (of_student + (log_t.exp() * (log_t - log_m)).sum(-1))
    counted = (pair.labels != IGNORE).float()
    return (each * counted).sum() / counted.sum()


def teacher_entropy(pair: Pair) -> float:
    """Mean over the counted tokens: what torchtune's forward direction has on top."""
    rows = (pair.labels != IGNORE).nonzero().squeeze(-1)
    total = 0.0
    with torch.no_grad():
        for part in rows.split(256):
            log_t = pair.head_t(pair.hidden_t[part]).float().log_softmax(-1)
            total -= float((log_t.exp() * log_t).sum())
    return total / max(1, len(rows))


# ------------------------------------------------------------------ what there is
def ways(name: str, device: str = "cpu") -> tuple[dict[str, Way], list[str]]:
    """Ours and every peer that computes this divergence here; and why others are missing."""
    beta, notes = BETA[name], []
    found: dict[str, Way] = {"ours": partial(ours, name=name)}
    if _there("trl", notes):
        found["TRL GKD"] = partial(trl_gkd, beta=beta)
        found["TRL 1.16 kernel"] = partial(trl_kernel, beta=beta)
    if _there("liger_kernel", notes):
        found["Liger compiled"] = partial(liger, beta=beta, compiled=True)
        found["Liger"] = partial(liger, beta=beta, compiled=False)
        if device == "cuda":
            found["Liger Triton"] = partial(liger_triton, beta=beta)
        else:
            notes.append("Liger's fused_linear_jsd is Triton only: not timed on a CPU")
    if beta != 0.5 and _there("torchtune", notes):
        found["torchtune chunked"] = partial(torchtune, beta=beta)
    if beta != 1.0:
        found["DistillKit formulas"] = partial(distillkit, beta=beta)
        notes.append("DistillKit is not on the package index: its dense formulas, written out")
    return found, notes


def _there(package: str, notes: list[str]) -> bool:
    if importlib.util.find_spec(package) is None:
        notes.append(f"{package} is not installed (make bench-peers): left out")
        return False
    warnings.filterwarnings("ignore", module=package)
    return True
