"""Peak memory and head FLOPs of the loss: counted at full size with fake tensors, and measured.

`python -m benchmarks.memory` (in the peers' environment) runs each way on tensors without contents,
as a GPU would: half-precision products with float32 results, TRL's tiles in place as in its Triton
kernels. Every allocation and every matrix product is counted. Then the growth of a process's
memory is measured at the size of `benchmarks.loss`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import Counter, on_a_gpu
from benchmarks.harness import OURS, Report, alone, growth, parser
from benchmarks.loss import SIZES, fresh, heads, run
from benchmarks.peers import Pair, ways

aten = torch.ops.aten

FULL = {"tokens": 32_768, "vocab": 151_936, "teacher": 4096, "student": 1024}
"""Qwen3-8B into Qwen3-0.6B, 8 sequences of 4,096 tokens."""

TINY = {"tokens": 64, "vocab": 96, "teacher": 32, "student": 16}

CASES = ("JSD", "forward KL")


class PeersCounter(Counter):
    """Also answers what peers ask of values: every token counts, every upstream gradient is 1."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return 0  # "is it another number?"
        masks = args[1] if func is aten.index.Tensor else ()
        if masks and masks[0] is not None and masks[0].dtype == torch.bool:
            shape = (masks[0].numel(), *args[0].shape[masks[0].ndim :])
            func, args, kwargs = aten.new_empty.default, (args[0], shape), {}
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def peers_on_a_gpu() -> Iterator[None]:
    """TRL's kernel as on CUDA: products with float32 results, each Triton kernel in place."""
    if importlib.util.find_spec("trl") is None:
        yield
        return
    from trl.kernels import chunked_divergence as trl

    def project(tile: Any, hidden: Any, weight: Any, bias: Any, start: int, end: int, _: Any):
        torch.mm(hidden, weight[start:end].T, out_dtype=torch.float32, out=tile)

    def add(total: Any, a: Any, b: Any) -> None:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)

    def in_place(*_: Any, **__: Any) -> None:
        """One launch, no tensor."""

    names = ("_stats_tile", "_jsd_tile", "_backward_tile")
    with patch.multiple(trl, _project=project, _addmm_fp32=add, **dict.fromkeys(names, in_place)):
        yield


def count(way: Any, tokens: int, vocab: int, teacher: int, student: int) -> Counter:
    """Forward and backward on tensors without contents."""
    kind = torch.bfloat16
    counter = PeersCounter()
    with on_a_gpu(), peers_on_a_gpu(), FakeTensorMode(), counter:
        head = nn.Linear(student, vocab, bias=False, dtype=kind)
        head_t = nn.Linear(teacher, vocab, bias=False, dtype=kind).requires_grad_(False)
        pair = Pair(
            torch.empty(tokens, student, dtype=kind).requires_grad_(),
            head,
            torch.empty(tokens, teacher, dtype=kind),
            head_t,
            torch.empty(tokens, dtype=torch.long),
        )
        counter.flops, counter.peak = 0, counter.bytes
        run(way, pair)
    return counter


def measured(name: str, way: str, preset: str) -> int:
    """Bytes by which a process grows in one forward and backward; to be run in a fresh one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = SIZES[preset]
    both, found = heads(size), ways(name)[0][way]
    run(found, fresh(size, both, 0.0))  # what libraries allocate for themselves, compilation
    pair = fresh(size, both, 0.0)
    return growth(lambda: run(found, pair))


def main(arguments: list[str] | None = None) -> Report:
    """Print the tables."""
    asked = parser(__doc__).parse_args(arguments)
    size = FULL if asked.preset == "full" else TINY
    report = Report(
        "memory",
        f"Head and loss: peak memory and FLOPs counted at {size['tokens']:,} tokens, "
        f"{size['vocab']:,} ids, width {size['teacher']} -> {size['student']}, bfloat16",
        preset=asked.preset,
    )
    panels: dict[str, dict[str, float]] = {}
    for name in CASES:
        found, notes = ways(name)
        report.notes += [note for note in notes if note not in report.notes]
        panels[name] = {}
        for way, function in found.items():
            row: dict[str, Any] = {"divergence": name, "way": way}
            if "compiled" in way:  # what a compiler allocates is not seen by its caller
                row |= {"peak GiB": "-", "TFLOP": "-"}
            else:
                done = count(function, **size)
                row |= {"peak GiB": done.peak / 2**30, "TFLOP": done.flops / 1e12}
                panels[name][way] = row["peak GiB"]
            grown = alone(measured, name, way, asked.preset, preset=asked.preset)
            row["measured MB"] = round(grown / 1e6)
            report.row(**row)
        mine = next(r for r in report.rows if (r["divergence"], r["way"]) == (name, OURS))
        report.at_most(f"{name}: ours, peak GiB with inputs", mine["peak GiB"], 4.2)
        report.at_most(f"{name}: ours, TFLOP in the heads", round(mine["TFLOP"], 1), 71.4)
    loss = SIZES[asked.preset]
    report.notes.append(
        f"measured: growth of a fresh process at {loss.tokens:,} tokens, {loss.vocab:,} ids, width "
        f"{loss.width}, float32, after a first pass"
    )
    report.finish(asked.out, panels, "GiB, inputs and gradients included (less is better)")
    return report


if __name__ == "__main__":
    main()
