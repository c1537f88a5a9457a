"""The teacher's cache: bytes, speed of writing, reading and proving, and what few ids cost.

`python -m benchmarks.cache` writes top-64 targets over 151,936 ids, reads them back in order and at
random (CPU seconds of one core), and compares the gradients that top-k and sampled targets give
with the whole teacher's: stories260k (KD_SHARED, default ../shared) and a student that it trains
for a few steps. The speeds hold for files in the page cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Report, median, parser
from kd_lightning import files
from kd_lightning.cache import layout
from kd_lightning.cache.kinds import Asked
from kd_lightning.cache.layout import Counts
from kd_lightning.cache.manifest import Manifest, Shard
from kd_lightning.cache.reader import Reader
from kd_lightning.cache.sampled import Sampled
from kd_lightning.cache.topk import TopK
from kd_lightning.data.skills.plain_text import PlainText
from kd_lightning.losses import ForwardKL
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.heads import LinearHead
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import IGNORE, Batch, ModelOutput, Signal

VOCAB, K = 151_936, 64
LOGITS = frozenset({Signal.LOGITS})
RULES = ("tail", "both_renormalised", "teacher_renormalised", "unnormalised")
STUDENT = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much work."""

    rows: int
    """Rows of the cache that is read."""
    length: int
    """Counted tokens of a row."""
    encoded: int
    """Tokens that the writer's part is timed on."""
    steps: int
    """Steps of the student before its gradients are compared."""
    stories: int
    """Rows whose gradients are compared."""


SIZES = {"full": Size(1000, 200, 1024, 200, 16), "tiny": Size(20, 30, 16, 2, 1)}


# ------------------------------------------------------------------ bytes and speed
def synthetic(folder: Path, size: Size) -> Reader:
    """A top-64 cache of random numbers, in the format that the writer writes."""
    kind = TopK(VOCAB, K)
    source = np.random.default_rng(0)
    tokens = size.rows * size.length
    counts = Counts(size.rows, tokens)
    lengths = np.full(size.rows, size.length)
    values: dict[str, Any] = {
        "key": source.integers(0, 256, (size.rows, 16), np.uint8),
        "start": np.arange(size.rows) * size.length,
        "tokens": lengths,
        "slot": np.zeros(size.rows),
        "slots": np.zeros(size.rows),
    }
    for plane in kind.planes:
        shape = (tokens, *plane.width)
        whole = plane.dtype.endswith(("1", "u2"))
        drawn = source.integers(0, 256 if plane.dtype == "u1" else 65_536, shape)
        values[plane.name] = drawn if whole else -source.random(shape, np.float32)
    folder.mkdir(parents=True)
    path = folder / "shard-00000.bin"
    checksum = files.write(path, layout.parts(kind.planes, counts, values))
    index = layout.index_checksum(counts, values)
    shard = Shard(path.name, *vars(counts).values(), path.stat().st_size, checksum, index, {})
    manifest = Manifest(
        "topk", {"k": K, "temperatures": [1.0, 2.0]}, VOCAB, {"name": "random"}, "", [], {},
        {"shards": 1, "tokens": tokens}, [], shards=[shard],
    )  # fmt: skip
    manifest.write(folder)
    return Reader(folder)


def one_batch(counts: list[int]) -> Batch:
    """Rows that are learned from wholly."""
    ids = torch.zeros(len(counts), max(counts), dtype=torch.long)
    zero = torch.zeros(len(counts), dtype=torch.long)
    return Batch(ids, torch.ones_like(ids), ids, torch.ones(ids.shape), zero, zero)


def rates(reader: Reader, size: Size, repeats: int) -> dict[str, float]:
    """Tokens per CPU second: rows gathered, planes decoded, both together in random order."""
    rows = np.arange(size.rows)
    order = np.random.default_rng(1).permutation(rows)
    reader.read(rows)  # every page once

    def pieces(which: Any) -> Iterator[Any]:
        return iter(np.split(which, range(16, len(which), 16)))

    held = [reader.read(rows[:16]) for _ in range(8)]
    empty = one_batch([size.length] * 16)

    def decode() -> int:
        for planes in held:
            reader.kind.output(planes, empty)
        return len(held) * 16 * size.length

    def gather(which: Any) -> int:
        for piece in pieces(which):
            reader.read(piece)
        return len(which) * size.length

    def whole() -> int:
        for piece in pieces(order):
            reader.kind.output(reader.read(piece), empty)
        return len(order) * size.length

    found: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, work in (
            ("decoded", decode),
            ("rows read in order", lambda: gather(rows)),
            ("rows read at random", lambda: gather(order)),
            ("read at random and decoded", whole),
        ):
            start = time.process_time()
            tokens = work()
            if repeat:
                found.setdefault(name, []).append(tokens / (time.process_time() - start))
    return {name: median(values) for name, values in found.items()}


def encoding(size: Size) -> float:
    """Tokens per CPU second from hidden states of width 64 to planes, top-64 of 151,936 ids."""
    torch.manual_seed(0)
    head = LinearHead(nn.Linear(64, VOCAB, bias=False).requires_grad_(False), VOCAB)
    hidden = torch.randn(size.encoded, 64)
    targets = torch.randint(0, VOCAB, (size.encoded,))
    kind = TopK(VOCAB, K)
    start = time.process_time()
    with torch.inference_mode():
        kind.encode(Asked(head, hidden, targets, (bytes(16),), (size.encoded,)))
    return size.encoded / (time.process_time() - start)


# ------------------------------------------------------------------ gradients
def pair(size: Size) -> tuple[LocalTeacher, CausalLM, PlainText]:
    """The real teacher, a student after a few steps of distillation, and stories."""
    shared = Path(os.environ.get("KD_SHARED", "../shared"))
    teacher = LocalTeacher(str(shared / "models/stories260k"))
    teacher.materialize(torch.device("cpu"))
    data = PlainText(
        str(shared / "data/lm_text/stories260k_samples.train.jsonl"),
        validation_share=0.1, end="bos", max_length=256, batch_size=8,
    )  # fmt: skip
    data.tokenizer = teacher.tokenizer
    data.setup("fit")
    torch.manual_seed(1)
    student = build_student(StudentSpec(config=STUDENT), teacher.tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), 0.006, (0.9, 0.95), weight_decay=0.01)
    loss, step = ForwardKL(), 0
    while step < size.steps:
        for batch in data.train_dataloader():
            told = teacher.forward(batch, LOGITS)
            total = loss(student(batch), told, batch).terms["kl"] / loss.count(batch)["kl"]
            total.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step >= size.steps:
                break
    return teacher, student.eval(), data


class Same:
    """A head that takes logits for hidden states."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden


class Compared:
    """Gradients of the forward KL by the student's logits and by its head's weight."""

    def __init__(self, teacher: LocalTeacher, student: CausalLM, batch: Batch) -> None:
        there = batch.targets != IGNORE
        told = teacher.forward(batch, LOGITS)
        with torch.no_grad():
            made = student(batch)
            self.states = made.hidden[there]
            self.logits = made.head(self.states).float()
        self.vocab = made.head.vocab
        targets = batch.targets[there]
        self.batch = one_batch([len(targets)]).replace(targets=targets[None], keys=(b"k" * 16,))
        self.live = ModelOutput(told.head(told.hidden[there]).float()[None], Same(self.vocab))
        self.asked = Asked(told.head, told.hidden[there], targets, (b"k" * 16,), (len(targets),))

    def gradient(self, teacher: ModelOutput, temperature: float) -> tuple[Tensor, Tensor]:
        """`[N, V]` by the logits, `[V, D]` by the weight."""
        logits = self.logits[None].clone().requires_grad_()
        loss = ForwardKL(temperature)
        output = loss(ModelOutput(logits, Same(self.vocab)), teacher, self.batch)
        (found,) = torch.autograd.grad(output.terms["kl"], logits)
        return found[0], found[0].T @ self.states

    def few(self, k: int, temperature: float) -> dict[str, ModelOutput]:
        """The teacher on k ids, by every rule, and sampled with 4 k draws."""
        with torch.inference_mode():
            kinds = {
                "": TopK(self.vocab, k),
                "RS-KD": Sampled(self.vocab, 4 * k, 1.0, [temperature]),
            }
            made = {}
            for name, kind in kinds.items():
                planes, _ = kind.encode(self.asked)
                (cut,) = kind.cut(planes, self.asked.tokens)
                made[name] = kind.output(cut, self.batch)
        top = made.pop("")
        assert top.sparse is not None
        for rule in RULES:
            made[rule] = replace(top, sparse=replace(top.sparse, support=rule))  # type: ignore[arg-type]
        return made


def errors(size: Size, report: Report) -> dict[str, float]:
    """How far each rule's gradients are from the whole teacher's; the panel's bars."""
    teacher, student, data = pair(size)
    batch = data.collate()(data.encoded("validation")[: size.stories])
    compared = Compared(teacher, student, batch)
    bars: dict[str, float] = {}
    for temperature in (1.0, 2.0):
        true, true_weight = compared.gradient(compared.live, temperature)
        for k in (16, 64, 128):
            few = compared.few(k, temperature)
            sparse = few["tail"].sparse
            assert sparse is not None
            shares = (sparse.logits / temperature - sparse.lse[temperature][:, None]).exp().sum(-1)
            for rule in (*RULES, "RS-KD"):
                by_logits, by_weight = compared.gradient(few[rule], temperature)
                off = (by_logits - true).norm(dim=-1)
                report.row(
                    T=temperature,
                    k=k,
                    tail=float(1 - shares.mean()),
                    rule=rule if rule != "RS-KD" else f"RS-KD, {4 * k} draws",
                    token_error=float(off.square().sum().sqrt() / true.norm()),
                    mean_token_error=float((off / true.norm(dim=-1)).mean()),
                    weight_error=float((by_weight - true_weight).norm() / true_weight.norm()),
                )
                if (k, temperature) == (64, 1.0):
                    name = f"{OURS}: tail bucket" if rule == "tail" else rule.replace("_", " ")
                    bars[name] = 100 * report.rows[-1]["token_error"]
    return bars


def main(arguments: list[str] | None = None) -> Report:
    """Print the tables."""
    asked = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    size = SIZES[asked.preset]
    report = Report("cache", "Cached teacher: gradient error of few ids (stories260k, 512 ids)")
    bars = errors(size, report)
    with tempfile.TemporaryDirectory() as scratch:
        reader = synthetic(Path(scratch) / "cache", size)
        path = reader.folder / "shard-00000.bin"
        each = path.stat().st_size / (size.rows * size.length)
        found = rates(reader, size, asked.repeats)
        start = time.process_time()
        files.digest_of(path)
        proof = path.stat().st_size / 2**20 / (time.process_time() - start)
    written = encoding(size)
    report.notes += [
        f"top-{K} of {VOCAB:,} ids: {each:.1f} bytes per token, row index and planes all in",
        *(
            f"{name}: {rate / 1e6:.2f} million tokens per CPU second"
            for name, rate in found.items()
        ),
        f"checksums: {proof:,.0f} MiB per CPU second",
        f"written (head of width 64, product included): {written:,.0f} tokens per CPU second",
        "token_error: norm of the difference over the norm of the true gradient, by the logits, "
        "all tokens together; mean_token_error: the mean of the tokens' own; weight_error: by the "
        "student's head",
    ]
    report.at_most("bytes per token, top-64 of 151,936 ids", each, 300)
    report.at_least("decoded, million tokens/s/core", found["decoded"] / 1e6, 1)
    report.at_least("random reads, million tokens/s/core", found["rows read at random"] / 1e6, 1)
    tail = f"{OURS}: tail bucket"
    report.at_most("gradient error of the tail bucket, k=64, T=1 (%)", bars[tail], 2)
    report.finish(asked.out, {"top-64, T = 1": bars}, "error of the gradient by the logits, %")
    return report


if __name__ == "__main__":
    main()
