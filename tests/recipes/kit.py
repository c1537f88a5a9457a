"""Recipes with other generators and seeds put in, and students small enough to learn in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from kd_lightning import losses
from kd_lightning.application import KDParser
from kd_lightning.data.base import KDDataModule
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.distiller import Distiller
from kd_lightning.elicitation import load
from kd_lightning.knowledge.engine import Elicitation, Seeds
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.sets import read_records
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.teachers.generator import Generator
from kd_lightning.trainer import KDTrainer
from kd_lightning.types import Sampling
from tests.conftest import ROOT
from tests.data import kit
from tests.tiny import config, tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content + '|' }}{% endif %}{% endfor %}"
)
"""One sign after each question, one after each answer: a tiny model learns words, not headings."""

Row = Mapping[str, Any]


def recipe(
    name: str,
    folder: Path,
    generators: Mapping[str, Generator],
    seeds: Sequence[Row] | None = None,
    change: Callable[[Elicitation], None] | None = None,
    **overrides: Any,
) -> list[Record]:
    """The records that configs/elicit/NAME.yaml makes.

    Args:
        name: of the recipe.
        folder: where its set goes (`folder / set`); the same folder again goes on.
        generators: in place of the recipe's of the same names.
        seeds: rows in place of its own.
        change: anything else (other numbers for tiny tasks), made on the object.
        overrides: further options of the command line, dots written as __.
    """
    load()
    parser = KDParser.of(Elicitation, "kd elicit")
    options = [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    path = ROOT / "configs/elicit" / f"{name}.yaml"
    told = parser.parse_args(["-c", str(path), f"--output={folder / 'set'}", *options])
    made = Elicitation(**parser.made(told))
    assert set(generators) == set(made.generators), "name each of the recipe's generators"
    made.generators = dict(generators)
    made.said = lambda line: None
    if seeds is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "seeds.jsonl"
        file.write_text("".join(json.dumps(dict(row)) + "\n" for row in seeds))
        made.seeds = Seeds(str(file))
    if change is not None:
        change(made)
    return stored(made.run())


def stored(folder: Path) -> list[Record]:
    """The records of a set, with their lineage."""
    card = json.loads((folder / "card.json").read_text())
    shards = [folder / shard["name"] for shard in card["shards"]]
    return [record for shard in shards for record in read_records(shard)]


@dataclass
class Learner:
    """A student that has learned."""

    model: CausalLM
    data: KDDataModule

    def answers(self, prompts: Sequence[str], tokens: int = 40, **sampling: Any) -> list[str]:
        """What it says to prompts, greedily unless told otherwise."""
        ids = [self.model.tokenizer.encode(p + "|", add_special_tokens=False) for p in prompts]
        made = self.model.complete(ids, Sampling(max_new_tokens=tokens, **sampling))
        return [completion.text for completion in made]

    def score(self, pairs: Sequence[tuple[str, str]], read: Callable[[str], str] = str) -> float:
        """Share of (question, right answer) that it answers rightly; `read` finds the answer."""
        said = self.answers([question for question, _ in pairs])
        right = [read(a) == want for a, (_, want) in zip(said, pairs, strict=True)]
        return sum(right) / len(right)


def learn(
    folder: Path,
    rows: Sequence[Row | Record],
    seed: int = 0,
    steps: int = 300,
    batch: int = 32,
    width: int = 48,
    layers: int = 2,
    rate: float = 4e-3,
    start: Learner | None = None,
    loss: losses.Loss | None = None,
    kind: type[KDDataModule] = InstructionFollowing,
    tok: PreTrainedTokenizerFast | None = None,
    **more: Any,
) -> Learner:
    """Train a new tiny student (or a copy of `start`) on rows of prompt and answer or messages.

    `kind`: how rows are read; `more`: further options of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tok = tok or tokenizer()
    tok.chat_template = TEMPLATE
    tok.save_pretrained(folder / "tokenizer")
    names = ("prompt", "answer", "messages", "system", "id", "candidates", "scores")
    told = [dict(r.values) if isinstance(r, Record) else dict(r) for r in rows]
    plain = [{k: v for k, v in row.items() if k in names} for row in told]
    random.Random(seed).shuffle(plain)
    data = kind(
        kit.write(folder / "train.jsonl", plain),
        validation=kit.write(folder / "held.jsonl", plain[:4]),
        batch_size=batch, max_length=256, seed=seed, truncation="drop",
        **more,
    )  # fmt: skip
    torch.manual_seed(seed)
    fields = config(width=width, layers=layers, initializer_range=0.1)
    module = Distiller(
        StudentSpec(config=fields, tokenizer=str(folder / "tokenizer")),
        loss or losses.CrossEntropy(),
        None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=0.1),
        gradient_clip_norm=1.0,
    )
    trainer = KDTrainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, callbacks=[],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, default_root_dir=folder, use_distributed_sampler=False,
        log_every_n_steps=10_000,
    )  # fmt: skip
    if start is not None:
        build = module.configure_model

        def copied() -> None:
            build()
            module.student.load_state_dict(start.model.state_dict())

        module.configure_model = copied
    trainer.fit(module, datamodule=data)
    return Learner(module.student.eval(), data)
