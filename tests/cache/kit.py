"""A small teacher without transformers, rows for it, and caches of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kd_lightning.cache.make import Wish, make
from kd_lightning.cache.manifest import Manifest
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, ModelOutput
from tests.data.kit import Echo, numbers, write
from tests.tiny import tokenizer

CPU = torch.device("cpu")


class Toy:
    """Says of each token something that depends on it and the one before; for any vocabulary."""

    name = "toy"
    packs = True
    tokenizer = None

    def __init__(self, vocab: int = 88, rows: int | None = None, width: int = 8, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.ModuleDict(
            {"embedding": nn.Embedding(128, width), "head": nn.Linear(width, rows or vocab)}
        ).requires_grad_(False)
        self.head = LinearHead(self.model["head"], vocab, 3.0, own_precision=True)

    def forward(self, batch, needs):
        states = self.model["embedding"](batch.input_ids)
        states[:, 1:] += 0.5 * states[:, :-1].clone()
        return ModelOutput(states, self.head)


def rows(folder: Path, count: int = 12, **more) -> Echo:
    """Rows that are encoded; twins share their tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    path = numbers(folder / "rows.jsonl", count)
    return ready(Echo(path, validation_share=0.25, batch_size=4, template="plain", **more))


def ready(data, stage: str = "fit"):
    """With a tokenizer of single characters."""
    data.tokenizer = tokenizer()
    data.setup(stage)
    return data


def twins(folder: Path) -> Echo:
    """Two rows twice, in both splits."""
    told = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}] * 2
    path = write(folder / "twins.jsonl", told)
    return ready(Echo({"train": path, "validation": path}, template="plain"))


def written(folder: Path, data, teacher=None, splits=("train", "validation"), **wish) -> Manifest:
    """A cache in `folder`."""
    wish = {"kind": "topk", "k": 8, "shard_megabytes": 0.0003, "batch_tokens": 64, **wish}
    return make(
        teacher or Toy(), "Toy()", data, splits, Wish(**wish), folder, CPU, lambda text: None
    )


def batch(data, split: str = "train", start: int = 0, stop: int = 6):
    """Rows of a split as a batch."""
    return data.collate()(data.encoded(split)[start:stop])


def counted(output, rows_of):
    """Logits at the counted positions, `[N, V]` float64, over the ids that the head knows."""
    logits = output.head(output.hidden)[rows_of.targets != IGNORE]
    return logits[:, : output.head.vocab].double()


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
