"""How far loss and gradients are from float64 when hidden states and heads are bfloat16.

`python -m benchmarks.accuracy` (in the peers' environment) gives every way the same rounded inputs
and compares with plain formulas in float64; then two identical models, of which one has a padded
vocabulary, whose divergence must be 0.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Report, parser
from benchmarks.loss import Size
from benchmarks.peers import BETA, Pair, liger, ours, teacher_entropy, ways
from kd_lightning.types import IGNORE

SIZES = {"full": Size(1024, 32_000, 256), "tiny": Size(24, 64, 16)}

LOGITS = 4.0
"""Standard deviation of the logits: what decides how much a rounded logit costs."""

PADDING = 128
"""Rows that a padded head has more."""


def pair(size: Size) -> Pair:
    """Two models that are near each other; a quarter of the tokens does not count."""
    kind = torch.bfloat16
    head, head_t = (nn.Linear(size.width, size.vocab, bias=False) for _ in range(2))
    head_t.requires_grad_(False)
    scale = LOGITS / size.width**0.5
    with torch.no_grad():
        head.weight.normal_().mul_(scale)
        head_t.weight.copy_(head.weight + 0.2 * scale * torch.randn_like(head.weight))
    hidden = torch.randn(size.tokens, size.width)
    near = (hidden + 0.2 * torch.randn_like(hidden)).to(kind)
    labels = torch.randint(0, size.vocab, (size.tokens,))
    labels[::4] = IGNORE
    hidden = hidden.to(kind).requires_grad_()
    return Pair(hidden, head.to(kind), near, head_t.to(kind), labels)


def reference(both: Pair, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient by the hidden states, gradient by the head: autograd in float64."""
    hidden = both.hidden.detach().double().requires_grad_()
    weight = both.head.weight.detach().double().requires_grad_()
    rows = (both.labels != IGNORE).nonzero().squeeze(-1)
    total = torch.zeros((), dtype=torch.float64)
    for part in rows.split(128):
        log_q = (hidden[part] @ weight.T).log_softmax(-1)
        log_p = (both.hidden_t[part].double() @ both.head_t.weight.double().T).log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        if name == "forward KL":
            each = p * (log_p - log_q)
        elif name == "reverse KL":
            each = q * (log_q - log_p)
        else:
            log_m = ((p + q) / 2).log()
            each = 0.5 * p * (log_p - log_m) + 0.5 * q * (log_q - log_m)
        value = each.sum() / len(rows)
        value.backward()
        total += value.detach()
    assert hidden.grad is not None and weight.grad is not None
    return total, hidden.grad, weight.grad


def off(found: Tensor, right: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((found.double() - right).norm() / right.norm())


def compare(report: Report, name: str, both: Pair) -> None:
    """One row for each way."""
    right = reference(both, name)
    found, notes = ways(name)
    report.notes += [note for note in notes if note not in report.notes]
    for way, run in found.items():
        both.hidden.grad = both.head.weight.grad = None
        loss = run(both)
        loss.backward()
        value = loss.detach().double()
        if way.startswith("torchtune") and name == "forward KL":
            value = value - teacher_entropy(both)
        assert both.hidden.grad is not None and both.head.weight.grad is not None
        report.row(
            divergence=name,
            way=way,
            loss=off(value, right[0]),
            hidden=off(both.hidden.grad, right[1]),
            head=off(both.head.weight.grad, right[2]),
        )


def identical(size: Size, mean: float, padded: bool = True) -> Pair:
    """One model twice, the teacher's head with rows that no token has; logits around `mean`."""
    head = nn.Linear(size.width, size.vocab, bias=False)
    head_t = nn.Linear(size.width, size.vocab + PADDING * padded, bias=False).requires_grad_(False)
    hidden = torch.randn(size.tokens, size.width)
    hidden[:, 0] = 1.0
    with torch.no_grad():
        for linear in (head_t, head):
            linear.weight.normal_().mul_(0.1 / size.width**0.5)
            linear.weight[:, 0] = mean
        head_t.weight[: size.vocab] = head.weight
    labels = torch.zeros(size.tokens, dtype=torch.long)
    return Pair(hidden.clone().requires_grad_(), head, hidden, head_t, labels)


def main(arguments: list[str] | None = None) -> Report:
    """Print the tables."""
    asked = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = SIZES[asked.preset]
    report = Report(
        "accuracy",
        f"Relative error against float64, bfloat16 inputs: {size.tokens:,} tokens, {size.vocab:,} "
        f"ids, width {size.width}, logits of standard deviation {LOGITS:g}",
        preset=asked.preset,
    )
    both = pair(size)
    for name in BETA:
        compare(report, name, both)
    panels: dict[str, dict[str, float]] = {}
    for row in report.rows:
        panels.setdefault(row["divergence"], {})[row["way"]] = 100 * row["head"]
    mine = [row for row in report.rows if row["way"] == OURS]
    worst = max(max(row["hidden"], row["head"]) for row in mine)
    report.at_most("ours: gradient error", worst, 0.003)
    report.at_most("ours: loss error", max(row["loss"] for row in mine), 1e-6)
    padded = {"ours": partial(ours, name="forward KL")}
    if any(row["way"] == "Liger" for row in report.rows):
        padded["Liger"] = partial(liger, beta=0.0, compiled=False)
    for mean in (0.0, -5.0, -10.0):
        twins = identical(size, mean)
        for way, run in padded.items():
            value = float(run(twins).detach())
            what = f"identical models, logits around {mean:g}: {way}, nats"
            if way == OURS:
                report.at_most(what, abs(value), 0.0)
            report.notes.append(f"KL of {what}: {value:.4g}")
    report.notes.append(f"identical models: the teacher's head has {PADDING} padding rows more")
    assert all(math.isfinite(row["head"]) for row in report.rows)
    report.finish(asked.out, panels, "error of the head's gradient, % (less is better)")
    return report


if __name__ == "__main__":
    main()
