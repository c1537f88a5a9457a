"""Head and loss, forward and backward: ours beside the peers, in CPU seconds.

`python -m benchmarks.loss` (in the peers' environment, see `make bench-peers`) times the cases that
have targets, `--all` every divergence with and without masked tokens. Every peer's value is checked
against ours before it is timed, so the same work is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.harness import OURS, Report, interleaved, median, parser
from benchmarks.peers import Pair, Way, teacher_entropy, ways
from kd_lightning.types import IGNORE


@dataclass(frozen=True)
class Size:
    """How much work."""

    tokens: int
    vocab: int
    width: int


SIZES = {"full": Size(2048, 32_000, 512), "tiny": Size(40, 97, 16)}

TARGETS = {
    ("JSD", 0.0): {"TRL GKD": 2.7, "TRL 1.16 kernel": 3.0, "Liger compiled": 1.0},
    ("JSD", 0.6): {"Liger compiled": 1.8},
    ("forward KL", 0.0): {"TRL GKD": 1.5, "TRL 1.16 kernel": 2.5, "Liger compiled": 1.0},
}
"""Least ratios, peer over ours."""

ALL = [(name, masked) for name in ("forward KL", "reverse KL", "JSD") for masked in (0.0, 0.6)]


def heads(size: Size, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    """A student's head to train and a teacher's near it."""
    student, teacher = (nn.Linear(size.width, size.vocab, bias=False) for _ in range(2))
    with torch.no_grad():
        noise = 0.3 * torch.randn_like(student.weight) / size.width**0.5
        teacher.weight.copy_(student.weight + noise)
    return student.to(dtype), teacher.to(dtype).requires_grad_(False)


def fresh(size: Size, both: tuple[nn.Linear, nn.Linear], masked: float) -> Pair:
    """States that nobody has seen; the given share of the tokens does not count."""
    dtype = both[0].weight.dtype
    hidden = torch.randn(size.tokens, size.width, dtype=dtype)
    near = hidden + 0.3 * torch.randn_like(hidden)
    labels = torch.randint(0, size.vocab, (size.tokens,))
    labels[torch.rand(size.tokens) < masked] = IGNORE
    labels[-1] = 0
    both[0].weight.grad = None
    return Pair(hidden.requires_grad_(), both[0], near, both[1], labels)


def same_work(found: dict[str, Way], pair: Pair, name: str) -> None:
    """Raise if a way computes another value than ours; warms all of them up."""
    values = {}
    for way, function in found.items():
        loss = function(pair)
        loss.backward()
        values[way] = float(loss.detach())
        if way.startswith("torchtune") and name == "forward KL":
            values[way] -= teacher_entropy(pair)
    for way, value in values.items():
        if abs(value - values[OURS]) > 1e-4 * abs(values[OURS]) + 1e-6:
            raise SystemExit(f"{way} computes {value:.8f} for {name}, ours {values[OURS]:.8f}")


def run(way: Way, pair: Pair) -> None:
    """Forward and backward."""
    way(pair).backward()


def case(
    report: Report, name: str, masked: float, size: Size, repeats: int
) -> tuple[str, dict[str, float]]:
    """Time one divergence at one share of masked tokens; the bars of its panel."""
    both = heads(size)
    found, notes = ways(name)
    report.notes += [note for note in notes if note not in report.notes]
    same_work(found, fresh(size, both, masked), name)
    timed: dict[str, Callable[[Pair], None]] = {k: partial(run, way) for k, way in found.items()}
    seconds = interleaved(timed, lambda: fresh(size, both, masked), repeats, warm=True)
    bars = {way: median(values) for way, values in seconds.items()}
    for way, values in seconds.items():
        report.row(
            divergence=name,
            masked=f"{masked:.0%}",
            way=way,
            seconds=bars[way],
            ratio=bars[way] / bars[OURS],
            rounds=" ".join(f"{value:.2f}" for value in values),
        )
    for peer, limit in TARGETS.get((name, masked), {}).items():
        if peer in bars:
            what = f"{name}, {masked:.0%} masked: {peer} / ours"
            report.at_least(what, bars[peer] / bars[OURS], limit)
    return f"{name}, {masked:.0%} masked", bars


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--all", action="store_true", help="the cases without targets too")
    asked = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = SIZES[asked.preset]
    report = Report(
        "loss",
        f"Head and loss, forward + backward: {size.tokens:,} tokens, {size.vocab:,} ids, width "
        f"{size.width}, float32, CPU seconds",
        preset=asked.preset,
    )
    panels = dict(
        case(report, name, masked, size, asked.repeats)
        for name, masked in (ALL if asked.all else TARGETS)
    )
    report.finish(asked.out, panels, "CPU seconds (less is better)")
    return report


if __name__ == "__main__":
    main()
