"""What one model does on one split: token statistics against the teacher, and graded answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.metrics.agreement import STATISTICS, grouped_statistics, summarise
from kd_lightning.models import modes
from kd_lightning.models.causal import CausalLM
from kd_lightning.parallel.step import evened
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import IGNORE, Batch, Example, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule

T = TypeVar("T")

LOGITS = frozenset({Signal.LOGITS})
POSITIONS = 1024
"""Answer positions that are kept apart; later ones are counted with the last."""


@dataclass(frozen=True)
class Answer:
    """One graded answer."""

    id: str
    """The example's name."""
    skill: str
    """The example's skill."""
    prompt: str
    """The turns before the answer, as text."""
    references: tuple[str, ...]
    """The accepted answers."""
    text: str
    """What the model wrote."""
    finished: bool
    """False: cut at the length limit."""
    grades: Mapping[str, float]
    """The skill's grades, 0 to 1; the first one is its headline."""
    kl: float | None = None
    """KL(teacher || model) per token of the gold answer, in nats."""


@dataclass(frozen=True)
class Measured:
    """One model on one split."""

    name: str
    """The column of the table: teacher, student before, ..."""
    parameters: int
    """Parameters of the model."""
    skills: tuple[str, ...]
    """Names of the rows of `sums`."""
    sums: Tensor  # [S, M] float64: agreement.STATISTICS over all ranks
    positions: Tensor  # [P, M] float64: the same by position in the answer
    compared: bool
    """Whether a teacher stood beside it (else its columns are 0)."""
    answers: tuple[Answer, ...] = field(default=())
    """Graded answers, in the order of the examples."""

    @property
    def metrics(self) -> dict[str, float]:
        """Means over everything: grades first, then the token statistics."""
        return {**_grades(self.answers), **summarise(self.sums.sum(0), self.compared)}

    @property
    def by_skill(self) -> dict[str, dict[str, float]]:
        """The same for each skill that has tokens."""
        return {
            skill: {
                **_grades([a for a in self.answers if a.skill == skill]),
                **summarise(row, self.compared),
            }
            for skill, row in zip(self.skills, self.sums, strict=True)
            if row[0] > 0
        }

    @property
    def by_position(self) -> dict[str, list[float]]:
        """Tokens, KL, agreement and cross-entropy at each position of the answer."""
        counts = self.positions[:, 0]
        seen = counts > 0
        names = ("kl", "agreement", "ce") if self.compared else ("ce",)
        table = {"position": (seen.nonzero().squeeze(-1) + 1).double(), "tokens": counts[seen]}
        for name in names:
            table[name] = self.positions[seen, STATISTICS.index(name)] / counts[seen]
        return {name: column.tolist() for name, column in table.items()}

    @property
    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for torch.save."""
        return {**vars(self), "answers": [vars(answer) for answer in self.answers]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Measured:
        """The measurement behind a `state`."""
        return cls(**{**state, "answers": tuple(Answer(**a) for a in state["answers"])})


def measure(
    model: CausalLM | Teacher,
    data: KDDataModule,
    split: str,
    teacher: Teacher | None = None,
    rows: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    *,
    name: str = "student",
    batches: Iterable[Batch] | None = None,
    micro_batch_rows: int | None = None,
    micro_batch_tokens: int | None = None,
) -> Measured:
    """Measure `model` on a split of `data`; a collective call: every rank takes its share.

    Args:
        model: the model; a teacher is measured against the text alone.
        data: a data module that is set up.
        split: train, validation or test.
        teacher: compared with token by token; None: text only.
        rows: examples that are answered and graded (documents are not); None: all.
        sampling: how answers are drawn.
        name: the column in tables.
        batches: this rank's batches, if not those of the data module's loader.
        micro_batch_rows: rows at once on the device.
        micro_batch_tokens: padded tokens at once on the device.
    """
    with evaluating(model):
        chosen = asked(data, split, rows)
        wanted = {e.id for e in chosen}
        sums = torch.zeros(len(data.skills), len(STATISTICS), dtype=torch.float64)
        positions = torch.zeros(POSITIONS, len(STATISTICS), dtype=torch.float64)
        by_row: dict[str, tuple[float, float]] = {}
        for batch in share(data, split) if batches is None else batches:
            pieces = batch.split(micro_batch_rows, micro_batch_tokens)
            for micro in evened(pieces, device_of(model)):
                row, place = batch_statistics(model, teacher, micro)
                sums.index_add_(0, micro.skill.cpu(), row)
                positions += place
                by_row |= answer_kl(micro, row, wanted)
        kl = merged(by_row)
        answers = answered(model, data, chosen, sampling, kl if teacher is not None else {})
    return Measured(
        name=name,
        parameters=parameters(model),
        skills=tuple(data.skills),
        sums=_total(sums),
        positions=_total(positions),
        compared=teacher is not None,
        answers=tuple(answers),
    )


@torch.no_grad()
def batch_statistics(
    model: CausalLM | Teacher, teacher: Teacher | None, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Sums by row `[B, M]` and by position in the answer `[POSITIONS, M]`, on the CPU."""
    batch = batch.to(device_of(model))
    count = len(batch)
    by_row = torch.arange(count, device=batch.targets.device)[:, None].expand_as(batch.targets)
    place = answer_positions(batch.targets).clamp_max(POSITIONS - 1) + count
    groups = torch.stack([by_row, place])
    told = None if teacher is None else teacher.forward(batch, LOGITS)

    def then(output: ModelOutput) -> Tensor:
        return grouped_statistics(output, told, batch, groups, count + POSITIONS)

    if isinstance(model, Teacher):
        sums = then(model.forward(batch, LOGITS)).cpu()
    else:
        sums = model(batch, then).cpu()
    return sums[:count], sums[count:]


def answer_positions(targets: Tensor) -> Tensor:
    """How many counted tokens of the same turn stand before each counted one, `[B, T]`."""
    counted = targets != IGNORE
    steps = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    before = torch.where(counted, -1, steps).cummax(1).values
    return (steps - before - 1).clamp_min(0)


def answer_kl(batch: Batch, rows: Tensor, wanted: set[str]) -> dict[str, tuple[float, float]]:
    """Sum of the KL and number of tokens of the wanted rows, by their names."""
    column = STATISTICS.index("kl")
    return {
        name: (float(row[column]), float(row[0]))
        for name, row in zip(batch.ids, rows, strict=True)
        if name in wanted and row[0] > 0  # a filler has nothing to count
    }


def answered(
    model: CausalLM | Teacher,
    data: KDDataModule,
    examples: Sequence[Example],
    sampling: Sampling,
    kl: Mapping[str, tuple[float, float]],
) -> list[Answer]:
    """Answer and grade the examples, each rank every n-th one; all ranks get all answers."""
    rank, world = place()
    mine = list(enumerate(examples))[rank::world]
    prompts = [data.prompt_ids(example) for _, example in mine]
    made = model.complete(prompts, sampling) if examples else []  # collective where sharded
    found: dict[int, Answer] = {}
    for (i, example), completion in zip(mine, made, strict=True):
        total, tokens = kl.get(example.id, (0.0, 0.0))
        found[i] = Answer(
            id=example.id,
            skill=example.skill,
            prompt=as_text(example, data),
            references=expected(example, data),
            text=completion.text,
            finished=completion.finished,
            grades=dict(data.grade(example, completion.text)),
            kl=total / tokens if tokens else None,
        )
    together = merged(found)
    return [together[i] for i in sorted(together)]


def asked(data: KDDataModule, split: str, rows: int | None) -> list[Example]:
    """The first `rows` examples of a split that ask for an answer; None: all of them."""
    if rows == 0:
        return []
    examples = [e for e in data.examples(split) if not e.plain]
    return examples if rows is None else examples[:rows]


def as_text(example: Example, data: KDDataModule) -> str:
    """The prompt as a reader sees it; roles are written where there are several turns.

    Of a document: the beginning that a model is asked to continue.
    """
    if example.plain:
        return str(data.tokenizer.decode(data.prompt_ids(example), skip_special_tokens=True))
    turns = example.prompt
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"[{turn.role}] {turn.content}" for turn in turns)


def expected(example: Example, data: KDDataModule) -> tuple[str, ...]:
    """The accepted answers; of a document: how it goes on."""
    if example.plain:
        return (example.answer.removeprefix(as_text(example, data)).strip(),)
    return tuple(example.accepted)


def share(data: KDDataModule, split: str) -> Any:
    """This rank's batches of a split, from the data module's own loader."""
    loaders = {
        "train": data.train_dataloader,
        "validation": data.val_dataloader,
        "test": data.test_dataloader,
    }
    return loaders[split]()


def place() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def merged(mine: dict[Any, T]) -> dict[Any, T]:
    """The union of every rank's dictionary; a collective call."""
    _, world = place()
    if world == 1:
        return mine
    parts: list[dict[Any, T]] = [{} for _ in range(world)]
    dist.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def _total(table: Tensor) -> Tensor:
    rank, world = place()
    if world == 1:
        return table
    return torch.stack(list(merged({rank: table}).values())).sum(0)


def _grades(answers: Sequence[Answer]) -> dict[str, float]:
    names = {name: None for answer in answers for name in answer.grades}
    values = {n: [a.grades[n] for a in answers if n in a.grades] for n in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def parameters(model: CausalLM | Teacher) -> int:
    """Parameters of a model; 0 where a teacher does not tell."""
    inner = model if isinstance(model, CausalLM) else getattr(model, "model", None)
    return inner.parameter_count if isinstance(inner, CausalLM) else 0


def device_of(model: CausalLM | Teacher) -> torch.device:
    """Where a batch has to be for this model."""
    inner = model if isinstance(model, CausalLM) else getattr(model, "model", None)
    return inner.device if isinstance(inner, CausalLM) else torch.device("cpu")


def evaluating(model: CausalLM | Teacher) -> AbstractContextManager[None]:
    """Evaluation mode for a while; a teacher is never in another."""
    return modes.evaluating(model) if isinstance(model, CausalLM) else nullcontext()
