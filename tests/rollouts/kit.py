"""A tiny pair, rows with prompts of unlike lengths, and every rollout that there is."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

import kd_lightning.rollouts as rollouts
from kd_lightning.data.collate import Collate, Filler
from kd_lightning.data.encoding import Encoder
from kd_lightning.models.attention import choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.loading import load_config, load_model, load_tokenizer
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.beside import Beside
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.replay import Replay
from kd_lightning.rollouts.reuse import Reuse
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch, Example, Progress, Sampling
from tests.tiny import save_model

SHORT = Sampling(max_new_tokens=10, temperature=1.0)
GREEDY = Sampling(max_new_tokens=10)
NOW = Progress(3, 10)


@cache
def folders() -> tuple[str, str]:
    """A student's folder and a teacher's."""
    made = []
    for seed, name in enumerate(("student", "teacher"), 1):
        folder = Path(mkdtemp()) / name
        save_model(folder, width=16, layers=2, seed=seed)
        made.append(str(folder))
    return made[0], made[1]


def model(folder: str, attention: str = "auto", double: bool = True) -> CausalLM:
    config = load_config(folder)
    chosen = choose(attention, "auto", config, torch.device("cpu"), torch.float32, trained=True)
    made = load_model(folder, dtype="float32", attention=chosen.name, config=config)
    found = CausalLM(made, load_tokenizer(folder), attention=chosen)
    return found.double() if double else found


@cache
def pair() -> tuple[CausalLM, LocalTeacher]:
    student, folder = folders()
    teacher = LocalTeacher(folder)
    teacher.materialize(torch.device("cpu"))
    teacher.model.double()
    return model(student), teacher


def examples(number: int = 6) -> list[Example]:
    """Questions of unlike lengths."""
    return [
        Example.dialogue(id=f"row-{i}", user="ab" * (i % 4 + 1) + str(i), assistant="cd" * (i + 1))
        for i in range(number)
    ]


def batch(chosen: list[Example] | None = None, fillers: int = 0, template: str = "plain") -> Batch:
    """Rows of examples as the data modules make them."""
    encoder = Encoder(load_tokenizer(folders()[0]), template)
    rows = [encoder.conversation(e) for e in (examples() if chosen is None else chosen)]
    return Collate(0, {"": 0})([*rows, *[Filler(rows[0])] * fillers])


def documents(number: int = 3) -> Batch:
    encoder = Encoder(load_tokenizer(folders()[0]), "plain")
    texts = ["once upon a time there was a " + "mouse" * (i + 1) for i in range(number)]
    rows = [Example.document(id=f"text-{i}", text=text) for i, text in enumerate(texts)]
    return Collate(0, {"": 0})([encoder.document(row, "eos") for row in rows])


def roll(rollout: Rollout, rows: Batch, progress: Progress = NOW, seed: int = 5) -> Batch:
    student, teacher = pair()
    return rollout.settle(rollout(rows, student, teacher, progress, seed), lambda made: made)


def texts(made: Batch) -> dict[str, list[tuple[int, ...]]]:
    """Row name to its answers' tokens."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, answer in zip(made.ids, made.answers, strict=False):
        found.setdefault(name, []).append(answer.tokens)
    return found


def one(cls: type[Rollout]) -> Rollout:
    """One of each kind, with answers that take no time."""
    made = {
        FromData: FromData,
        Mixed: lambda: Mixed(0.5, FromStudent(sampling=SHORT)),
        Beside: lambda: Beside([FromData(), FromStudent(sampling=SHORT)]),
        Replay: lambda: Replay(FromStudent(sampling=SHORT), capacity=5),
        Reuse: lambda: Reuse(FromStudent(sampling=SHORT), epochs=2),
    }
    try:
        return made[cls]() if cls in made else cls(sampling=SHORT)
    except TypeError as error:
        pytest.fail(f"{cls.__name__} is not made by tests/rollouts/kit.py ({error}): add it there")


ROLLOUTS = sorted(
    (
        found
        for name in rollouts.__all__
        if inspect.isclass(found := getattr(rollouts, name)) and issubclass(found, Rollout)
    ),
    key=lambda cls: cls.__name__,
)
