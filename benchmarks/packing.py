"""A step on padded rows and on packed ones: the same batch, the same loss, the same gradient.

`python -m benchmarks.packing`: teacher forward, student forward and backward, CPU milliseconds, for
batches whose share of real tokens (`fill`) is given. "block mask" is the packed row with a dense
mask in place of variable-length attention.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import Report, interleaved, median, parser
from kd_lightning.losses import ForwardKL
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers import LocalTeacher
from kd_lightning.types import IGNORE, Batch

WAYS = {
    "ours, packed": ("per_sequence", True),
    "padded": ("sdpa", False),
    "packed, block mask": ("sdpa", True),
}
SHAPES = {
    "full": [(8, 256, 0.55), (32, 128, 0.55), (4, 512, 0.55), (8, 256, 0.8), (8, 256, 0.95)],
    "tiny": [(3, 16, 0.55)],
}
"""Rows, columns, fill."""

STUDENT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}


def batch(rows: int, columns: int, fill: float, vocab: int) -> Batch:
    """Random rows of uniformly drawn lengths, the first one full."""
    lengths = torch.randint(max(4, int(columns * (2 * fill - 1))), columns + 1, (rows,))
    lengths[0] = columns
    place = torch.arange(columns)[None]
    mask = (place < lengths[:, None]).long()
    ids = torch.randint(4, vocab, (rows, columns))
    learned = place < (lengths - 1)[:, None]
    targets = torch.where(learned, ids.roll(-1, 1), IGNORE)
    zero = torch.zeros(rows, dtype=torch.long)
    return Batch(ids * mask, mask, targets, learned.float(), zero, zero)


def step(pair: tuple[CausalLM, LocalTeacher], given: Batch) -> float:
    """One forward and backward pass; the loss."""
    student, teacher = pair
    loss = ForwardKL()
    told = teacher.forward(given, loss.needs)
    counts = loss.count(given)
    value, _ = student(given, lambda output: loss.objective(output, told, given, counts))
    value.backward()
    student.zero_grad()
    return float(value.detach())


def pair(attention: str, packing: bool) -> tuple[CausalLM, LocalTeacher]:
    """The demo teacher and a new student, the same for every way."""
    torch.manual_seed(0)
    teacher = LocalTeacher("demo", dtype="float32", attention=attention, packing=packing)
    teacher.materialize(torch.device("cpu"))
    spec = StudentSpec(config=STUDENT, tokenizer="demo", attention=attention, packing=packing)
    return build_student(spec, teacher.tokenizer), teacher


def main(arguments: list[str] | None = None) -> Report:
    """Time every shape."""
    options = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    title = "A step on padded and on packed rows, CPU milliseconds"
    report = Report("packing", title, options.preset)
    pairs = {name: pair(*how) for name, how in WAYS.items()}
    vocab = next(iter(pairs.values()))[0].head.vocab
    panels = {}
    for rows, columns, fill in SHAPES[options.preset]:
        fresh = partial(batch, rows, columns, fill, vocab)
        given = fresh()
        losses = [step(each, given) for each in pairs.values()]
        assert max(losses) - min(losses) < 1e-3, losses
        ways = {name: partial(step, each) for name, each in pairs.items()}
        seen = {name: median(v) for name, v in interleaved(ways, fresh, options.repeats).items()}
        shape = f"{rows} x {columns}, {fill:.0%} real"
        panels[shape] = {name: 1e3 * value for name, value in seen.items()}
        for name, value in seen.items():
            padded = seen["padded"] / value
            report.row(shape=shape, way=name, ms=1e3 * value, **{"padded / this": padded})
        if fill == 0.55:
            ratio = seen["padded"] / seen["ours, packed"]
            report.at_least(f"{shape}: padded / packed", ratio, 1.5)
    report.finish(options.out, panels, "ms")
    return report


if __name__ == "__main__":
    main()
