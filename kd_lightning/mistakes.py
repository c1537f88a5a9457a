"""What was probably meant: a parser's error as one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.data.base import KDDataModule
from kd_lightning.distiller import Distiller
from kd_lightning.knowledge.engine import Elicitation
from kd_lightning.knowledge.step import Step
from kd_lightning.losses.base import Loss
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Generator
from kd_lightning.types import Sampling

FAMILIES: dict[str, type] = {
    "model.loss": Loss,
    "model.teacher": Teacher,
    "model.optimizer": Optimizer,
    "model.scheduler": LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
    "data": KDDataModule,
    "skill": KDDataModule,
    "generators": Generator,
    "steps": Step,
}
"""Which classes a key of the configuration may name."""

COMMANDS = {"stages": "kd pipeline", "steps": "kd elicit", "generators": "kd elicit"}
"""Keys that only one command knows."""

_KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\":?\s*")
_CLASS = re.compile(
    r"dot import path string: (?P<short>[\w.]+)|'?class_path'?.{0,40}?'(?P<path>[\w.]+)'"
    r"|\b(?P<name>[A-Z]\w+)\b either not"
)
_OPTION = re.compile(r"(?:[Oo]ption '|there is no argument `)(?P<option>\w+)")  # said twice: nested
_REQUIRED = re.compile(r"arguments are required: (?P<names>\w+(?:, \w+)*)")
_MADE = re.compile(r"class_path[=:]\s?'(?P<path>[\w.]+)'")
_LITERAL = re.compile(r"Expected a typing\.Literal\[([^\]]*)\]\. Got value: (\S+)")
_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: --(?P<argument>[\w.]+)")


def one_sentence(message: str) -> str:
    """The part of a parser's message that a person needs, with the nearest name that exists."""
    flat = " ".join(message.split())
    found = _KEY.search(flat)
    key = found["key"] if found else ""
    text = _KEY.sub("", flat)
    family = next((base for name, base in FAMILIES.items() if key.startswith(name)), None)
    needed = _REQUIRED.search(flat)
    if key and needed and (made := _MADE.findall(flat)):
        text = f"{made[-1].rpartition('.')[2]} needs {needed['names']}: write it to `init_args`"
    elif unknown := _CLASS.search(flat):
        name = unknown["path"] or unknown["name"] or unknown["short"]
        choices = [c.__name__ for c in concrete(family)] if family else []
        text = f"unknown class `{name}`{nearest(name, choices)}"
    elif option := _OPTION.search(flat):
        choices = [a for c in concrete(family) for a in arguments(c)] if family else []
        text = f"there is no argument `{option['option']}`{nearest(option['option'], choices)}"
        if not key and (command := COMMANDS.get(option["option"])):
            text += f": the configuration is one of {command}"
    elif argument := _ARGUMENT.search(flat):
        text = f"there is no key `{argument['argument']}`{nearest(argument['argument'], keys())}"
    elif needed and key:
        text = f"an entry needs {needed['names']}: write it to the entry's `init_args`"
    elif needed and "output" in needed["names"]:  # kd elicit, kd pipeline
        kind = "pipeline" if "stages" in needed["names"] else "elicit"
        text = f"{flat}: name a configuration, for example -c configs/{kind}/demo.yaml"
    elif needed:
        text = f"{flat}: name an experiment, for example -c configs/experiment/demo.yaml"
    text = _LITERAL.sub(r"write one of \1, not '\2'", text)
    text = f"--{key}: {text}" if key else text
    return text if len(text) < 600 else text[:600] + " ..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean X?`, or all that is known where nothing is near and it is not much."""
    lower = {k.lower(): k for k in known}
    wanted = (name if any("." in k for k in lower) else name.split(".")[-1]).lower()
    near = difflib.get_close_matches(wanted, lower, n=3, cutoff=0.6)
    if near:
        return f": did you mean {' or '.join(lower[n] for n in near)}?"
    return f"; known are {', '.join(sorted(lower.values()))}" if 0 < len(lower) <= 30 else ""


def concrete(base: type) -> list[type]:
    """All subclasses that can be made."""
    children: list[type] = base.__subclasses__()
    below = [c for child in children for c in [child, *concrete(child)]]
    return [c for c in below if not inspect.isabstract(c) and not c.__name__.startswith("_")]


def arguments(kind: type) -> Sequence[str]:
    """Names of a constructor's parameters."""
    return [p for p in inspect.signature(kind).parameters if p not in ("self", "args", "kwargs")]


def keys() -> list[str]:
    """Dotted keys of a configuration, as far as they do not depend on the chosen classes."""
    groups = {
        "trainer": arguments(Trainer),
        "model": arguments(Distiller),
        "model.student": [f.name for f in fields(StudentSpec)],
        "model.student.lora": [f.name for f in fields(LoraSpec)],
        "model.answers": [f.name for f in fields(Sampling)],
        "data": arguments(KDDataModule),
    }
    dotted = [f"{group}.{name}" for group, names in groups.items() for name in names]
    return [*dotted, *arguments(Elicitation)]
