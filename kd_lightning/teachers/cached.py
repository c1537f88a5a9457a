"""A teacher that has spoken already: its targets, read from a folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from kd_lightning.cache.reader import Reader
from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import IGNORE, Asking, Batch, ModelOutput, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.data.base import KDDataModule


class CachedTeacher(Teacher):
    """What `kd cache` wrote: top-k logits, sampled ids or hidden states, by the rows' content.

    It knows the rows that it was asked about and no others; everything that does not fit (loss,
    tokenizer, chat template, rows, damaged files) is refused before the first step.
    """

    offers = frozenset({Signal.LOGITS})

    def __init__(
        self,
        path: str,
        support: Literal[
            "auto", "tail", "both_renormalised", "teacher_renormalised", "unnormalised"
        ] = "auto",
        verify: Literal["open", "first_use", "size"] = "open",
        teacher: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            path: Folder that `kd cache` wrote.
            support: How the k ids are compared with the student's vocabulary: `tail` (auto:
                everything outside is one more id, on both sides), `both_renormalised`,
                `teacher_renormalised` or `unnormalised`.
            verify: When files are compared with their checksums: all at the start (one core reads
                1 to 2 GB/s), each at its first use, or never (`size`: only that none is cut).
            teacher: Name of the teacher whose cache it must be; None: whoever it is of.
        """
        self.folder = path  # not `path`: that is where a model lies
        self.name = path
        self.support: Any = support
        self.verify = verify
        self.wanted = teacher

    @cached_property
    def reader(self) -> Reader:
        """The cache itself, opened at the first need."""
        folder = Path(self.folder).expanduser()
        if not folder.is_dir():
            raise KDError(
                f"there is no folder {self.folder}: write the cache first, with `python train.py "
                f"cache -c <the same configuration> --output={self.folder}`"
            )
        reader = Reader(folder)
        self.name = reader.manifest.teacher["name"] or self.folder
        reader.prove_files()
        return reader

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's, from the cache."""
        from kd_lightning.cache.make import TOKENIZER

        return loading.load_tokenizer(str(self.reader.folder / TOKENIZER))

    # ---- refusals ---------------------------------------------------------------------------

    def check(self, loss: Asking) -> None:
        super().check(loss)
        manifest = self.reader.manifest
        if self.wanted is not None and manifest.teacher["name"] != self.wanted:
            raise KDError(
                f"the cache {self.folder} is of the teacher {manifest.teacher['name']}, not of "
                f"{self.wanted}: write one with that teacher, or leave model.teacher.teacher out"
            )
        if self.support != "auto":
            if manifest.kind != "topk":
                raise KDError(
                    f"support={self.support} is for top-k caches, and {self.folder} is of kind "
                    f"{manifest.kind}: leave model.teacher.support out"
                )
            self.reader.kind.support = self.support  # type: ignore[attr-defined]
        if not loss.needs or manifest.temperatures is None:
            return
        if missing := sorted(loss.temperatures - set(manifest.temperatures)):
            held = ", ".join(f"{t:g}" for t in manifest.temperatures)
            asked = " ".join(f"{t:g}" for t in missing)
            raise KDError(
                f"{type(loss).__name__} reads the teacher at temperature {asked}, and the cache "
                f"{self.folder} holds {held}: write one with --temperatures, or change the loss's"
            )
        if manifest.kind == "sampled" and not loss.linear_in_teacher:
            raise KDError(
                f"{type(loss).__name__} is not linear in the teacher's probabilities, so sampled "
                "targets would be biased: use ForwardKL, or a cache of --kind=topk or hidden"
            )

    def check_data(self, data: Any) -> None:
        from kd_lightning.cache import digests
        from kd_lightning.data.base import KDDataModule

        if not isinstance(data, KDDataModule):
            raise KDError("a cached teacher needs data of kd_lightning: their rows have keys")
        if data.streaming:
            raise KDError("a cached teacher needs known rows: write --data.streaming=false")
        manifest = self.reader.manifest
        if digests.tokenizer_digest(data.tokenizer) != manifest.tokenizer:
            raise KDError(
                f"the cache {self.folder} was written with another tokenizer than this run's data "
                "(vocabulary, begin or end token): use its own "
                f"(--data.tokenizer={self.folder}/tokenizer), or write the cache anew"
            )
        for split in data.summary:
            self._check_split(data, split)

    def _check_split(self, data: KDDataModule, split: str) -> None:
        from kd_lightning.cache import digests

        manifest = self.reader.manifest
        if digests.template_digests(data, split) - set(manifest.templates):
            raise KDError(
                f"the cache {self.folder} was written with another chat template than the rows of "
                f"{split} have now: set --data.template and --data.template_arguments as they were "
                f"({manifest.data['settings']}), or write the cache anew"
            )
        if self.verify == "open":
            self.reader.prove()
        rows = [row for row in data.encoded(split) if row.answered]
        found = self.reader.find([row.key for row in rows])
        if (found < 0).any():
            first = rows[int((found < 0).argmax())].example.id
            held = ", ".join(manifest.data["splits"])
            raise KDError(
                f"the cache {self.folder} lacks {int((found < 0).sum())} of {len(rows)} rows of "
                f"{split} (first: {first}; it was written for {held}): run `python train.py cache` "
                "with this configuration into another --output"
            )

    # ---- what it says -----------------------------------------------------------------------

    def materialize(self, device: torch.device) -> None:
        from kd_lightning.cache.hidden import Hidden

        if self.verify == "open":
            self.reader.prove()
        if isinstance(self.reader.kind, Hidden) and self.reader.kind.head is None:
            self.reader.kind.load_head(self.reader.folder, device)

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        counts = (batch.targets != IGNORE).sum(1).tolist()
        if len(batch.keys) != len(counts):
            raise KDError("the batch has no row keys: a cached teacher needs kd_lightning's data")
        asked = [i for i, count in enumerate(counts) if count]
        rows = self.reader.find([batch.keys[i] for i in asked])
        wrong = [i for i, row in zip(asked, rows, strict=True) if row < 0]
        if wrong:
            raise KDError(
                f"the cache {self.folder} does not hold row {batch.ids[wrong[0]]} (and "
                f"{len(wrong) - 1} more of this batch): write it for this split too "
                "(python train.py cache --splits=...), or use the live teacher"
            )
        assert self.reader.tokens(rows).tolist() == [counts[i] for i in asked]
        if self.verify == "first_use":
            self.reader.prove(sorted(self.reader.shards(rows)))
        return self.reader.kind.output(self.reader.read(rows), batch)
