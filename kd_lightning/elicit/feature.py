"""Feature knowledge: what a teacher's forward pass says of every record, beside the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kd_lightning.cache.make import Wish, make, summary
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Generator, Kind

FOLDER = "features"
"""In a set's folder, what `model.teacher=CachedTeacher` reads."""


class Features(Step):
    """Logits or hidden states of the records under the skill's template; the records go on.

    Train with `--data.knowledge=SET --model.teacher=CachedTeacher
    --model.teacher.path=SET/features`, with the same skill, template and tokenizer. A step that is
    interrupted goes on where it stood.

    Source: Sanh et al. 2019 (DistilBERT), arXiv 1910.01108, for what is learned from logits; on
    keeping a few of them Anshumann et al. 2025, arXiv 2503.16870.
    """

    def __init__(
        self,
        generator: str = "teacher",
        kind: Literal["topk", "sampled", "hidden"] = "topk",
        k: int = 64,
        draws: int = 64,
        temperatures: list[float] | None = None,
        splits: list[Literal["train", "validation", "test"]] | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        """Store the settings.

        Args:
            generator: Name of the teacher; it has to be in this process.
            kind: topk (k ids and the mass of the rest), sampled (drawn ids, unbiased) or hidden.
            k: topk: ids of each token.
            draws: sampled: ids drawn for each token.
            temperatures: Of the losses that will read them; None: 1 and 2 (sampled: 1).
            splits: Rows of the skill that are asked about besides the records, for example its own
                validation rows; None: the records alone.
            batch_tokens: Padded tokens of one forward pass.
        """
        self.generator = generator
        self.kind = kind
        self.k = k
        self.draws = draws
        self.temperatures = temperatures
        self.splits = splits
        self.batch_tokens = batch_tokens

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.FORWARD})}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        teacher = work.generator(self.generator)
        if work.skill is None:
            raise KDError(f"step {work.name} renders the records as a skill does: write `skill`")
        if not isinstance(teacher, Teacher) or work.folder is None:
            raise KDError(f"step {work.name}: {self.generator} has no forward pass here")
        teacher.open()
        data = work.skill.over([{"id": r.id, **r.values} for r in records])
        if teacher.tokenizer is not None:
            data.tokenizer = teacher.tokenizer
        wish = Wish(
            kind=self.kind,
            k=self.k,
            draws=self.draws,
            temperatures=self.temperatures,
            seed=work.seed,
            batch_tokens=self.batch_tokens,
        )
        splits = list(dict.fromkeys(["train", *(self.splits or [])]))
        told = f"{type(teacher).__name__}:{teacher.name}"
        device = teacher_device(teacher)
        folder = work.folder / FOLDER
        written = make(teacher, told, data, splits, wish, folder, device, lambda line: None)
        work.note("features", summary(written, folder).splitlines()[0])
        work.note("tokens", written.planned["tokens"])
        return list(records)


def teacher_device(teacher: Generator) -> Any:
    """Where a teacher's model stands."""
    model = getattr(teacher, "model", None)
    if model is None:
        raise KDError(f"{type(teacher).__name__} has no model of its own: take a LocalTeacher")
    return model.device
