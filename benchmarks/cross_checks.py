"""Losses on answers beside TRL's trainers, on the same models and tensors: values and gradients.

`python -m benchmarks.cross_checks` (in the peers' environment) lets TRL's trainers make their
batches and losses, gives ours the same, and lists the relative differences; where they are meant
to differ, the note says why.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cross_kit import TOKENIZER, line
from benchmarks.cross_policy import policy
from benchmarks.cross_preferences import dpo, kto
from benchmarks.harness import Report, parser
from benchmarks.peers import Pair
from kd_lightning.losses import ForwardKL, JensenShannon, ReverseKL
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.comparators import Comparator, Logistic
from kd_lightning.losses.ranks import Ranks
from kd_lightning.losses.scores import LogOdds, LogProbability, Said, Score
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, ModelOutput


def reference_free(report: Report) -> None:
    """CPO, SimPO and ORPO on log-probabilities of answers."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    logp = (-9 * torch.rand(6, generator=generator) - 1).double().requires_grad_()
    length = torch.tensor([3, 5, 4, 9, 2, 6])
    pairs = torch.arange(3).repeat_interleave(2)
    ranks = Ranks(pairs, torch.tensor([1.0, 0.0] * 3), torch.ones(6).bool(), torch.zeros(6).bool())
    here = SimpleNamespace(device=torch.device("cpu"))

    def mine(score: Score, comparator: Comparator, beta: float) -> tuple[float, Tensor]:
        said = Said(logp, None, length, logp[:, None])
        value = comparator(beta * score(said), ranks) / 3
        return float(value.detach()), torch.autograd.grad(value, logp)[0]

    def other(trainer: Any, function: Any, average: bool, sign: float, **more: Any) -> Any:
        s = logp / length if average else logp
        made = function(SimpleNamespace(accelerator=here, **more), s[0::2], s[1::2])[0]
        value = sign * made.mean()
        return float(value.detach()), torch.autograd.grad(value, logp)[0]

    base = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 1.0}
    cpo = CPOTrainer.cpo_loss
    line(report, "CPO", mine(LogProbability(), Logistic(), 0.1),
         other(CPOTrainer, cpo, False, 1.0, beta=0.1, loss_type="sigmoid", **base))  # fmt: skip
    line(report, "SimPO", mine(LogProbability(average=True), Logistic(margin=1.0), 2.0),
         other(CPOTrainer, cpo, True, 1.0, beta=2.0, loss_type="simpo", **base))  # fmt: skip
    odds = ORPOTrainer.odds_ratio_loss
    value, gradient = mine(LogOdds(), Logistic(), 1.0)
    line(report, "ORPO odds ratio", (0.1 * value, 0.1 * gradient),
         other(ORPOTrainer, odds, True, -1.0, beta=0.1))  # fmt: skip


# ------------------------------------------------------------------ GKD
def gkd(report: Report) -> None:
    """The generalised Jensen-Shannon divergence, its ends included."""
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    head, head_t = (nn.Linear(8, 50, bias=False) for _ in range(2))
    for module in (head, head_t):
        nn.init.normal_(module.weight, generator=generator)
    hidden = torch.randn(12, 8, generator=generator)
    labels = torch.randint(0, 50, (12,), generator=generator)
    labels[::4] = IGNORE
    for temperature in (1.0, 2.0):
        losses: dict[float, Divergence] = {
            0.0: ForwardKL(temperature),
            1.0: ReverseKL(temperature),
            **{b: JensenShannon(b, temperature) for b in (0.1, 0.5, 0.9)},
        }
        for beta in sorted(losses):
            pair = Pair(hidden.clone().requires_grad_(), head, hidden.flip(1), head_t, labels)
            mine = _grad(pair, divergence_of(pair, losses[beta]))
            student, teacher = pair.head(pair.hidden), pair.head_t(pair.hidden_t).detach()
            value = GKDTrainer.generalized_jsd_loss(
                student[None], teacher[None], labels[None], beta=beta, temperature=temperature
            )
            line(report, f"GKD beta {beta:g}, T {temperature:g}", mine, _grad(pair, value))


def divergence_of(pair: Pair, loss: Divergence) -> Tensor:
    """A divergence of ours on a pair, per counted token."""
    labels = pair.labels[None]
    zero = torch.zeros(1, dtype=torch.long)
    counted = (labels != IGNORE).float()
    batch = Batch(labels.clamp_min(0), torch.ones_like(labels), labels, counted, zero, zero)
    student = ModelOutput(pair.hidden[None], LinearHead(pair.head, 50))
    teacher = ModelOutput(pair.hidden_t[None], LinearHead(pair.head_t, 50))
    return loss.objective(student, teacher, batch, loss.count(batch))[0]


def _grad(pair: Pair, value: Tensor) -> tuple[float, Tensor]:
    both = torch.autograd.grad(value, [pair.hidden, pair.head.weight])
    return float(value.detach()), torch.cat([g.flatten() for g in both])


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    asked = parser(__doc__).parse_args(arguments)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report("cross_checks", "Losses on answers: relative difference from TRL", asked.preset)
    if importlib.util.find_spec("trl") is None:
        report.notes.append("trl is not installed: make bench-peers")
        return report
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    gkd(report)
    reference_free(report)
    for check in (dpo, kto, policy):
        with tempfile.TemporaryDirectory() as folder:
            check(report, tokenizer, folder)
    report.finish(asked.out, {}, "")
    return report


if __name__ == "__main__":
    main()
