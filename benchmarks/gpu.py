"""Everything that needs a GPU, in under ten minutes on an H200.

`python -m benchmarks.gpu`: the hardware's ceilings (matrix product, copy), head and loss beside the
peers and beside the roofline, a whole step of random-initialised Qwen3-8B into Qwen3-0.6B, packed
against padded at 55% fill, a cached teacher against the live one. Peers that are not installed are
left out and named. `--preset tiny` runs the same code on small shapes, without a GPU too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Report, median, parser
from benchmarks.peers import Pair, divergence, ways
from benchmarks.step import Setting, V, installed, model, qwen3, rows
from benchmarks.step import ours as our_step
from kd_lightning.kernels import backends
from kd_lightning.losses.base import Divergence
from kd_lightning.models import attention
from kd_lightning.types import IGNORE, Batch, ModelOutput, SparseTargets

BYTES_PER_LOGIT = 30
"""Of the roofline: both float32 tiles written by their products, read three times, one gradient."""

TARGETS = {
    ("forward KL", "TRL 1.16 kernel"): 1.5,
    ("JSD", "TRL 1.16 kernel"): 2.0,
    ("JSD", "Liger compiled"): 1.3,
    ("forward KL", "Liger compiled"): 1.3,
}

TOP_K = 64
FILL = 0.55


@dataclass(frozen=True)
class Size:
    """How much work."""

    gemm: int
    copied: int  # bytes
    tokens: int
    vocab: int
    teacher: dict[str, Any]
    student: dict[str, Any]
    length: int
    rows: int
    loss_rounds: int
    step_rounds: int


_8B = {**qwen3(V, 4096, 36, 32, 8, 128, 12_288), "tie_word_embeddings": False}
_06B = qwen3(V, 1024, 28, 16, 8, 128, 3072)
SIZES = {
    "full": Size(8192, 2**32, 8192, V, _8B, _06B, 4096, 4, 5, 3),
    "tiny": Size(
        64,
        2**16,
        24,
        61,
        qwen3(61, 32, 1, 2, 1, 16, 64),
        qwen3(61, 16, 1, 2, 1, 8, 32),
        12,
        2,
        1,
        1,
    ),
}


def device() -> str:
    """Where it runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object], rounds: int) -> float:
    """Median seconds; a first round warms up."""
    seen = []
    for _ in range(rounds + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seen.append(time.perf_counter() - start)
    return median(seen[1:])


def measured(work: Callable[[], object], rounds: int) -> tuple[float, float] | str:
    """Seconds and GiB at the peak, or why there are none."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = timed(work, rounds)
    except torch.OutOfMemoryError:
        return "out of memory"
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return seconds, peak / 2**30


# ------------------------------------------------------------------ ceilings
def ceilings(size: Size) -> tuple[float, float]:
    """FLOP/s of a matrix product in bfloat16, bytes/s of a copy (read and written)."""
    a = torch.randn(size.gemm, size.gemm, device=device(), dtype=torch.bfloat16)
    out = torch.empty_like(a)
    flops = 2 * size.gemm**3 / timed(lambda: torch.mm(a, a, out=out), 10)
    source = torch.empty(size.copied, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return flops, 2 * size.copied / timed(lambda: target.copy_(source), 10)


# ------------------------------------------------------------------ head and loss
def fresh(size: Size, masked: float) -> Pair:
    """Rounded states and heads of the two models' widths."""
    kind, where = torch.bfloat16, device()
    widths = size.student["hidden_size"], size.teacher["hidden_size"]
    heads = [nn.Linear(w, size.vocab, bias=False, device=where, dtype=kind) for w in widths]
    states = [torch.randn(size.tokens, w, device=where, dtype=kind) for w in widths]
    labels = torch.randint(0, size.vocab, (size.tokens,), device=where)
    labels[torch.rand(size.tokens, device=where) < masked] = IGNORE
    labels[-1] = 0
    heads[1].requires_grad_(False)
    return Pair(states[0].requires_grad_(), heads[0], states[1], heads[1], labels)


def back_ends(name: str) -> dict[str, Callable[[Pair], Tensor]]:
    """Ours as it chooses itself, and each back end forced."""
    run = ways(name, device())[0][OURS]

    def forced(kernel: backends.Kernel, pair: Pair) -> Tensor:
        with backends.kernel(kernel):
            return run(pair)

    names: list[backends.Kernel] = ["torch", "compile", "triton"]
    if device() != "cuda":
        names = ["torch"]
    return {f"ours, {kernel}": partial(forced, kernel) for kernel in names}


def losses(report: Report, size: Size, flops: float, bandwidth: float) -> dict[str, float]:
    """Milliseconds of each way; the bars of the JSD panel."""
    bars: dict[str, float] = {}
    head = 2 * size.vocab * (size.teacher["hidden_size"] + 3 * size.student["hidden_size"])
    for name in ("forward KL", "JSD"):
        for masked in (0.0, 0.5):
            pair = fresh(size, masked)
            counted = int((pair.labels != IGNORE).sum())
            floor = counted * (head / flops + BYTES_PER_LOGIT * size.vocab / bandwidth)
            found, notes = ways(name, device())
            report.notes += [note for note in notes if note not in report.notes]
            seconds: dict[str, float] = {}
            for way, run in {**found, **back_ends(name)}.items():

                def work(run: Any = run, pair: Pair = pair) -> None:
                    pair.hidden.grad = pair.head.weight.grad = None
                    run(pair).backward()

                what = {"part": "loss", "case": f"{name}, {masked:.0%} masked", "way": way}
                result = measured(work, size.loss_rounds)
                if isinstance(result, str):
                    report.row(**what, result=result)
                    continue
                seconds[way], peak = result
                report.row(**what, ms=1000 * result[0], roofs=result[0] / floor, GiB=peak)
            if name == "JSD" and not masked:
                bars = {way: 1000 * value for way, value in seconds.items()}
                bars["roofline floor"] = 1000 * floor
            if not masked:
                report.at_most(f"{name}: ours / roofline floor", seconds[OURS] / floor, 1.25)
                for (of, peer), limit in TARGETS.items():
                    if of == name and peer in seconds:
                        ratio = seconds[peer] / seconds[OURS]
                        report.at_least(f"{name}: {peer} / ours", ratio, limit)
    return bars


# ------------------------------------------------------------------ whole steps
def models(size: Size) -> Setting:
    """The pair as a run has it: a teacher in bfloat16, a float32 student under autocast."""
    where = torch.device(device())
    with where:
        teacher = model(size.teacher, torch.bfloat16, own_precision=True).eval()
        student = model(size.student).train()
    on_gpu = where.type == "cuda"
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=on_gpu)
    loss: Divergence = divergence("JSD")
    return Setting(student, teacher.requires_grad_(False), optimizer, loss, mixed=on_gpu)


def pack(on: Setting, packed: bool) -> str:
    """Let both models compute packed, or padded with torch's attention; what was chosen."""
    where = torch.device(device())
    chosen = ""
    for causal, trained in ((on.teacher, False), (on.student, True)):
        config = causal.transformer.config
        wanted = "auto" if packed else "sdpa"
        choice = attention.choose(wanted, packed, config, where, torch.bfloat16, trained)
        causal.transformer.set_attn_implementation(choice.name)
        causal.attention = choice
        chosen = str(choice)
    return chosen


def step(run: Callable[[Setting, Batch], Tensor], on: Setting, batch: Batch) -> None:
    """Forward of both models, loss, backward, optimizer."""
    run(on, batch).backward()
    on.optimizer.step()
    on.optimizer.zero_grad()


def against_peers(report: Report, size: Size, on: Setting) -> dict[str, float]:
    """Tokens a second of whole steps."""
    pack(on, False)
    batch = rows(size.vocab, [size.length] * size.rows, device())
    speed = {}
    for name, run in installed().items():
        what = {"part": "step", "case": f"{size.rows} x {size.length}", "way": name}
        speed |= _speed(report, what, name, run, on, batch, size.step_rounds)
    return speed


def _speed(
    report: Report,
    what: dict[str, str],
    name: str,
    run: Any,
    on: Setting,
    batch: Batch,
    rounds: int,
) -> dict[str, float]:
    result = measured(partial(step, run, on, batch), rounds)
    on.optimizer.zero_grad()
    if isinstance(result, str):
        report.row(**what, result=result)
        return {}
    each = sum(batch.lengths) / result[0]
    report.row(**what, ms=1000 * result[0], tokens_per_s=each, GiB=result[1])
    return {name: each}


def packing(report: Report, size: Size, on: Setting) -> dict[str, float]:
    """The same rows with and without their padding, at 55% fill."""
    low = 2 * FILL - 1
    shares = torch.linspace(low, 1.0, 4 * size.rows)
    batch = rows(size.vocab, [max(2, int(size.length * s / 4)) for s in shares.tolist()], device())
    fill = sum(batch.lengths) / batch.input_ids.numel()
    speed = {}
    for name, packed in (("padded", False), ("packed", True)):
        chosen = pack(on, packed)
        what = {"part": "fill", "case": f"{fill:.0%} filled, {chosen}", "way": f"ours, {name}"}
        speed |= _speed(report, what, f"ours, {name}", our_step, on, batch, size.step_rounds)
    return speed


class Remembered:
    """In place of the live teacher: what it said, in the host's memory, moved to the device."""

    def __init__(self, output: ModelOutput) -> None:
        """`output` as the teacher gave it."""
        self.output = output

    def __call__(self, batch: Batch) -> ModelOutput:
        """The same states, or the same few ids, on the batch's device."""
        where = batch.input_ids.device
        sparse = self.output.sparse
        if sparse is None:
            return replace(self.output, hidden=self.output.hidden.to(where, non_blocking=True))
        moved = {
            name: getattr(sparse, name).to(where, non_blocking=True)
            for name in ("ids", "logits", "label", "entropy")
        }
        lse = {t: value.to(where, non_blocking=True) for t, value in sparse.lse.items()}
        return replace(self.output, sparse=replace(sparse, **moved, lse=lse))


@torch.inference_mode()
def remembered(on: Setting, batch: Batch, kind: str) -> Remembered:
    """What a cache holds of this batch: hidden states, or the top logits with their tail."""
    output = on.teacher(batch)
    host = partial(_host, pinned=device() == "cuda")
    if kind == "hidden states":
        return Remembered(replace(output, hidden=host(output.hidden)))
    counted = (batch.targets.flatten() != IGNORE).nonzero().squeeze(-1)
    parts = []
    for part in counted.split(512):
        z = output.head(output.hidden.flatten(0, 1)[part]).float()
        lse, top = z.logsumexp(-1), z.topk(min(TOP_K, z.shape[-1]), -1)
        log_p = z - lse[:, None]
        label = log_p.gather(-1, batch.targets.flatten()[part][:, None]).squeeze(-1)
        parts.append((top.indices, top.values, lse, label, -(log_p.exp() * log_p).sum(-1)))
    ids, values, lse, label, entropy = (
        host(torch.cat(column)) for column in zip(*parts, strict=True)
    )
    sparse = SparseTargets(ids, values, {1.0: lse}, label, entropy, output.head.vocab)
    return Remembered(ModelOutput(output.hidden[:, :0], output.head, sparse=sparse))


def _host(x: Tensor, pinned: bool) -> Tensor:
    x = x.cpu()
    return x.pin_memory() if pinned else x


def caching(report: Report, size: Size, on: Setting) -> dict[str, float]:
    """A step with the live teacher, and with what a cache would give."""
    pack(on, False)
    batch = rows(size.vocab, [size.length] * size.rows, device())
    speed = {}
    for kind in ("live", "hidden states", f"top-{TOP_K}"):
        with nullcontext() if kind == "live" else torch.no_grad():
            said: Any = on.teacher if kind == "live" else remembered(on, batch, kind)
        here = replace(on, teacher=said)
        what = {"part": "cache", "case": f"{size.rows} x {size.length}", "way": f"ours, {kind}"}
        speed |= _speed(report, what, f"ours, {kind}", our_step, here, batch, size.step_rounds)
    return speed


def main(arguments: list[str] | None = None) -> Report:
    """Print the tables."""
    asked = parser(__doc__).parse_args(arguments)
    torch.manual_seed(0)
    size = SIZES[asked.preset]
    if asked.preset == "full" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: write --preset tiny for the same code on small shapes")
    flops, bandwidth = ceilings(size)
    report = Report(
        "gpu",
        f"On {torch.cuda.get_device_name() if torch.cuda.is_available() else 'a processor'}: "
        f"{flops / 1e12:.0f} TFLOP/s in bfloat16, copies at {bandwidth / 1e12:.2f} TB/s",
        preset=asked.preset,
    )
    panels = {"JSD, ms (less is better)": losses(report, size, flops, bandwidth)}
    on = models(size)
    panels["step, tokens/s"] = against_peers(report, size, on)
    panels["55% fill, tokens/s"] = packing(report, size, on)
    panels["teacher, tokens/s"] = caching(report, size, on)
    report.finish(asked.out, panels, "")
    return report


if __name__ == "__main__":
    main()
