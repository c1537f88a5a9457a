"""A teacher and a data module to a folder of targets: what `kd cache` does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kd_lightning import files
from kd_lightning.cache import digests, plan
from kd_lightning.cache.hidden import plain_head, write_head
from kd_lightning.cache.kinds import kind_of
from kd_lightning.cache.layout import ROWS
from kd_lightning.cache.manifest import Manifest, Shard
from kd_lightning.cache.writer import LOGITS, Knows, Writer
from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.types import ModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from kd_lightning.data.base import KDDataModule
    from kd_lightning.data.encoding import Encoded

TOKENIZER = "tokenizer"
"""Folder of the teacher's tokenizer in a cache."""

DTYPES = {"topk": ("float16", "float32"), "hidden": ("bfloat16", "int8", "float32")}
"""What numbers may be stored as; the first is the usual one."""


@dataclass(frozen=True)
class Wish:
    """What is to be written."""

    kind: str = "topk"
    k: int = 64
    draws: int = 64
    proposal: float = 1.0
    temperatures: Sequence[float] | None = None
    dtype: str = "auto"
    seed: int = 0
    batch_tokens: int = 8192
    shard_megabytes: float = 256.0

    def settings(self, output: ModelOutput) -> dict[str, Any]:
        """Of the kind, as its constructor and the manifest take them."""
        given = [float(t) for t in self.temperatures or ()]
        if any(t <= 0 for t in given):
            raise KDError(f"--temperatures must be above 0, not {min(given)}")
        if self.kind == "topk":
            if self.k < 1:
                raise KDError(f"--k must be at least 1, not {self.k}")
            stored = sorted({1.0, *(given or [1.0, 2.0])})
            return {"k": self.k, "temperatures": stored, "dtype": self._dtype()}
        if self.kind == "sampled":
            if len(given) > 1:
                raise KDError("--kind=sampled draws at one temperature: that of the loss")
            if not 1 <= self.draws < 2**16 or not 0 < self.proposal <= 1:
                raise KDError("--draws must lie between 1 and 65,535, and --proposal in (0, 1]")
            kept = {"draws": self.draws, "proposal": self.proposal, "seed": self.seed}
            return {**kept, "temperatures": given or [1.0]}
        plain = plain_head(output.head)
        after = {"scale": plain.scale, "softcap": plain.softcap}
        return {"width": output.hidden.shape[-1], "dtype": self._dtype(), **after}

    def _dtype(self) -> str:
        known = DTYPES[self.kind]
        if self.dtype not in ("auto", *known):
            raise KDError(f"--dtype of {self.kind} is one of {', '.join(known)}, not {self.dtype}")
        return known[0] if self.dtype == "auto" else self.dtype


def make(
    teacher: Knows,
    described: str,
    data: KDDataModule,
    splits: Sequence[str],
    wish: Wish,
    folder: Path,
    device: torch.device,
    said: Callable[[str], None],
) -> Manifest:
    """Write the cache, or what is missing of it; `teacher` is in place, `data` set up."""
    if data.streaming:
        raise KDError("streamed rows are not known beforehand: write --data.streaming=false")
    rows = plan.unique(data.encoded(split) for split in splits)
    if not rows:
        raise KDError(f"nothing is learned from any row of {', '.join(splits)}: nothing to cache")
    collate = data.collate()
    tokenizer: Any = getattr(teacher, "tokenizer", None) or data.tokenizer
    with torch.inference_mode():
        probe = teacher.forward(collate([min(rows, key=len)]).to(device), LOGITS)
    if probe.sparse is not None:
        raise KDError(
            "a cache is written by a teacher that has all logits: use the live one, or a cache of "
            "hidden states"
        )
    manifest = _manifest(teacher, described, data, splits, wish, rows, probe)
    with files.only_writer(folder):
        manifest.files = _write_tokenizer(tokenizer, folder)
        if wish.kind == "hidden":
            manifest.files |= write_head(folder, probe.head)
        clock = _Clock(sum(row.answered for row in rows), said)
        return Writer(folder, manifest, rows, teacher, collate, device, clock).write()


def _manifest(
    teacher: Knows,
    described: str,
    data: KDDataModule,
    splits: Sequence[str],
    wish: Wish,
    rows: Sequence[Encoded],
    probe: ModelOutput,
) -> Manifest:
    inner = getattr(teacher, "model", None)
    made = Manifest(
        kind=wish.kind,
        settings=wish.settings(probe),
        vocab=probe.head.vocab,
        teacher={
            "name": getattr(teacher, "name", ""),
            "settings": described,
            "weights": digests.weights_digest(inner) if isinstance(inner, nn.Module) else "",
        },
        tokenizer=digests.tokenizer_digest(data.tokenizer),
        templates=sorted(set().union(*(digests.template_digests(data, s) for s in splits))),
        data={
            "settings": digests.data_settings(data),
            "splits": {split: _counted(data.encoded(split)) for split in splits},
        },
        planned={},
        planes=[],
    )
    kind = kind_of(made)
    row = sum(plane.bytes for plane in ROWS)
    each = kind.token_bytes + row * len(rows) / sum(r.answered for r in rows)
    tokens = max(1, int(wish.shard_megabytes * 2**20 / each))
    made.planes = [asdict(plane) for plane in (*ROWS, *kind.planes)]
    made.planned = {
        "shards": len(plan.shards(rows, tokens)),
        "rows": len(rows),
        "tokens": sum(r.answered for r in rows),
        "shard_tokens": tokens,
        "batch_tokens": wish.batch_tokens,
    }
    return made


def _counted(rows: Sequence[Encoded]) -> dict[str, Any]:
    digest = digests.data_digest(rows)
    return {"rows": len(rows), "tokens": sum(r.answered for r in rows), "digest": digest}


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """Tokenizer and generation settings; checksums by name."""
    beside, place = folder / f".{TOKENIZER}.partial", folder / TOKENIZER
    shutil.rmtree(beside, ignore_errors=True)
    tokenizer.save_pretrained(beside)
    settings = loading.load_generation_config(str(tokenizer.name_or_path))
    if settings is not None:
        settings.save_pretrained(beside)
    place.mkdir(exist_ok=True)
    found: dict[str, str] = {}
    for path in sorted(beside.iterdir()):
        found[f"{TOKENIZER}/{path.name}"] = files.write(place / path.name, [path.read_bytes()])
    shutil.rmtree(beside)
    return found


class _Clock:
    """Says how far a writer is and how fast."""

    def __init__(self, tokens: int, said: Callable[[str], None]) -> None:
        self.total = tokens
        self.said = said
        self.done = 0
        self.last = time.monotonic()

    def __call__(self, shard: Shard, number: int, total: int) -> None:
        seconds = max(time.monotonic() - self.last, 1e-9)
        self.last = time.monotonic()
        self.done += shard.tokens
        left = (self.total - self.done) / shard.tokens * seconds
        self.said(
            f"{shard.name} ({number} of {total}): {shard.tokens:,} tokens, "
            f"{shard.tokens / seconds:,.0f} tokens/s, about {left / 60:.0f} min left"
        )


def summary(manifest: Manifest, folder: Path) -> str:
    """What was written and where it lies, in a few lines."""
    tokens = manifest.planned["tokens"]
    size = sum(shard.bytes for shard in manifest.shards)
    facts = [
        f"{manifest.kind} cache of {manifest.teacher['name'] or 'the teacher'}: "
        f"{manifest.planned['rows']:,} rows, {tokens:,} tokens, {len(manifest.shards)} file(s), "
        f"{size / 2**20:,.1f} MiB, {size / tokens:,.1f} bytes per token"
    ]
    for name, what in (
        ("tail", "mean mass outside of the kept ids"),
        ("ids", "mean number of ids drawn per token"),
        ("entropy", "mean entropy of the teacher (nats)"),
    ):
        if (total := manifest.sum(name)) is not None:
            facts.append(f"{what}: {total / tokens:.4g}")
    facts.append(
        f"in {folder}; train with it: --model.teacher=CachedTeacher "
        f"--model.teacher.path={os.fspath(folder)}"
    )
    return "\n".join(facts)
