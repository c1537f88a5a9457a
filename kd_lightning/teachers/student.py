"""The student itself as a generator: exported, at a checkpoint, or in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import DType, LoraSpec, StudentSpec
from kd_lightning.reliability import checkpoint_io, commit
from kd_lightning.teachers.generator import Generator, Reply, Request
from kd_lightning.teachers.local import model_digest, place, worded
from kd_lightning.teachers.rights import licence_of
from kd_lightning.teachers.speaking import Speaker
from kd_lightning.types import Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD = "config.yaml"
"""A run's configuration, in its folder."""

PREFIX = "student."
"""How the names of the student's weights begin in a checkpoint."""


class Student(Generator):
    """Whom a run trains, or trained: for rounds in which it answers, judges or is rewarded.

    `path` is an exported folder, the folder of a run (its newest whole checkpoint speaks), or one
    checkpoint of a run. In Python, `Student.live(model)` is a model that is being trained.
    """

    offers = frozenset({Signal.TEXT, Signal.LOGPROB})

    def __init__(
        self,
        path: str,
        average: bool = False,
        name: str = "student",
        licence: str | None = None,
        dtype: DType = "auto",
        device: str = "auto",
        rows: int = 64,
        batch_tokens: int = 32768,
        template: str | None = None,
        template_arguments: dict[str, Any] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            path: An exported folder, a run's folder, or a checkpoint of a run.
            average: The moving average of the weights, where the checkpoint has one (of Lightning's
                WeightAveraging callbacks, or the teacher MovingAverage).
            name: How records and cards call it.
            licence: Terms of its outputs; None: what the card of an exported folder states.
            dtype: Of weights and computation; auto: as stored, or as the run trained them.
            device: Where it answers; auto: a GPU if there is one.
            rows: Answers that are made at once.
            batch_tokens: Tokens at once, padding included.
            template: Chat template of prompts: auto (the tokenizer's own), plain, or a jinja file;
                None: the run's own (`data.template`), auto for an exported folder.
            template_arguments: Further arguments for the template; None: the run's own.
        """
        self.path = path
        self.average = average
        self.name = name
        self.licence = licence
        self.dtype: DType = dtype
        self.device = device
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.template = template
        self.template_arguments = template_arguments
        self._model: CausalLM | None = None
        self._live = False
        self._worded: tuple[str, dict[str, Any]] = ("auto", {})
        self._digest = ""

    @classmethod
    def live(cls, model: CausalLM, name: str = "student", **settings: Any) -> Student:
        """A model of this process, with the weights that it has when it is asked.

        `open` notes which weights these are: call it again after a step, for its identity.
        """
        made = cls("", name=name, **settings)
        made._model, made._live = model, True
        made._worded = (made.template or "auto", made.template_arguments or {})
        return made

    @property
    def licence(self) -> str | None:
        """What was stated, else what the card of an exported folder states."""
        return self._licence or (licence_of(self.path) if self.path else None)

    @licence.setter
    def licence(self, stated: str | None) -> None:
        self._licence = stated

    @property
    def model(self) -> CausalLM:
        """The student; loaded at the first need."""
        if self._model is None:
            self.open()
        assert self._model is not None
        return self._model

    @property
    def identity(self) -> str:
        """Its weights and tokenizer as `open` found them, and how it computes and words."""
        if not self._digest:
            self.open()
        return f"Student:{self._digest}:{self.model.transformer.dtype}:{worded(*self._worded)}"

    def open(self) -> None:
        if self._model is None:
            self._model = self._loaded().requires_grad_(False).to(place(self.device)).eval()
        if self._live or not self._digest:
            self._digest = model_digest(self._model)

    def close(self) -> None:
        if not self._live:
            self._model = None

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        speaker = Speaker(self.model, self.rows, self.batch_tokens, *self._worded)
        return speaker.replies(requests)

    def _loaded(self) -> CausalLM:
        folder = Path(loading.resolve(self.path))
        if (folder / "config.json").is_file() or not Path(self.path).exists():
            if self.average:
                raise KDError(
                    f"{self.path} is an exported model, which has one set of weights: write the "
                    "run's folder or a checkpoint as `path`, or leave `average` out"
                )
            self._worded = (self.template or "auto", self.template_arguments or {})
            model = loading.load_model(str(folder), dtype=self.dtype)
            return CausalLM(model, loading.load_tokenizer(str(folder)), own_precision=True)
        checkpoint = self._checkpoint(folder)
        record = checkpoint.parent.parent / RECORD
        if not record.is_file():
            raise KDError(
                f"{checkpoint} does not lie in a run's folder: there is no {record}, which says "
                "what the student is"
            )
        return self._of_run(yaml.safe_load(record.read_text(encoding="utf-8")), checkpoint)

    def _checkpoint(self, path: Path) -> Path:
        if (path / RECORD).is_file():
            found = commit.newest(path / "checkpoints")
            if found is None:
                raise KDError(f"the run {path} has no whole checkpoint yet: write another `path`")
            path = found.path
        path = path.resolve()
        if path.is_dir():
            raise KDError(
                f"{path} is neither a run's folder (no {RECORD}), nor an exported model (no "
                "config.json), nor a checkpoint in one file: of a sharded run, export the student"
            )
        return path

    def _of_run(self, config: dict[str, Any], checkpoint: Path) -> CausalLM:
        told = config["model"]["student"]
        lora = told.get("lora")
        try:
            spec = StudentSpec(**{**told, "lora": None if lora is None else LoraSpec(**lora)})
        except TypeError as error:
            raise KDError(
                f"the run of {checkpoint} was configured for another version: {error}"
            ) from None
        spec = replace(spec, compile=False, gradient_checkpointing=False)
        if self.dtype != "auto":
            spec = replace(spec, dtype=self.dtype)
        data = (config.get("data") or {}).get("init_args") or {}
        own = self.template_arguments
        self._worded = (
            self.template or data.get("template") or "auto",
            (data.get("template_arguments") or {}) if own is None else own,
        )
        with torch.random.fork_rng():  # a new student draws weights that are replaced at once
            model = build_student(spec, _tokenizer(spec, config))
        _take(model, checkpoint_io.read(checkpoint), self.average, checkpoint)
        return model


def _tokenizer(spec: StudentSpec, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    if name := spec.tokenizer or spec.path:
        return loading.load_tokenizer(name, spec.revision)
    taught = (config["model"].get("teacher") or {}).get("init_args") or {}
    if not taught.get("path"):
        raise KDError("the run's configuration names no tokenizer: export the student instead")
    return loading.load_tokenizer(taught["path"], taught.get("revision"))


def _take(model: CausalLM, content: dict[str, Any], average: bool, where: Path) -> None:
    """The weights that a checkpoint holds; everything that was trained must be among them."""
    averaged = "averaging_state" in content
    followed = content.get("answering", {}).get("teacher", {}).get("weights", {})
    if average and not averaged and not followed:
        raise KDError(
            f"the checkpoint {where} has no moving average: leave `average` out, or train with a "
            "WeightAveraging callback or the teacher MovingAverage"
        )
    state = content["current_model_state" if averaged and not average else "state_dict"]
    mine = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    if average and not averaged:
        mine |= followed
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted((trained - mine.keys()) | (mine.keys() - model.state_dict().keys()))
    if wrong:
        raise KDError(
            f"the checkpoint {where} is of another student than the run's {RECORD} describes: "
            f"{wrong[0]}" + (f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else " differs")
        )
    model.load_state_dict(mine, strict=False)  # frozen weights are there by now
