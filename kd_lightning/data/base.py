"""A skill is one class: where its rows come from, how one becomes a conversation, how an answer
to it is judged.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kd_lightning.data.bad_rows import BadRows
from kd_lightning.data.encoding import Encoded, Encoder
from kd_lightning.data.knowledge import Knowledge
from kd_lightning.data.length import Lengths, Truncation
from kd_lightning.data.loader import ResumableLoader
from kd_lightning.data.rows import Row
from kd_lightning.data.sampler import InOrder
from kd_lightning.data.serving import Serving
from kd_lightning.data.sources import SPLITS
from kd_lightning.data.splits import Splits
from kd_lightning.data.stream import StreamLoader
from kd_lightning.data.summary import Summary, show
from kd_lightning.errors import KDError
from kd_lightning.security.folders import refuse_hostile
from kd_lightning.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGES = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}
"""Which splits a stage of the trainer reads."""


class KDDataModule(Serving, ABC):
    """Rows of a skill, rendered, encoded, counted and served in a resumable order.

    A subclass writes `render` and `grade`, names its columns in `fields`, and overrides `rows`
    only where the rows do not come from a file.
    """

    fields: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Our names of the columns that `render` reads, each with the usual other names of it.

    A skill that names `system` has the row's own system prompt put before its conversation.
    """

    def __init__(
        self,
        path: str | dict[str, str] | None = None,
        *,
        knowledge: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        validation_share: float = 0.05,
        subset: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        columns: dict[str, str] | None = None,
        tokenizer: str | None = None,
        template: str = "auto",
        template_arguments: dict[str, Any] | None = None,
        system: str | None = None,
        max_length: int = 1024,
        truncation: Literal["error", "drop", "left", "right"] = "error",
        empty_answers: bool = False,
        batch_size: int = 8,
        batch_tokens: int | None = None,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        bad_rows: Literal["fail", "skip", "quarantine"] = "fail",
        bad_share: float = 0.01,
        num_workers: int = 0,
        limit_train: int | None = None,
        limit_validation: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Store the settings; nothing is read before `setup`.

        Args:
            path: File (jsonl, json, csv, tsv, parquet, txt), pattern with *, folder, data set saved
                to disk, or name on the hub; or one for each split, by its name.
            knowledge: A set that `kd elicit` wrote, in place of the training rows; validation and
                test rows are then those of `validation` and `test`, or the skill's own, or (of
                validation) a share of the set.
            validation: The same for validation rows; None: the path's own split, else a share held
                back from the training rows.
            test: The same for test rows; None: the path's own split, else the validation rows.
            validation_share: Share of the training rows held back for validation (by the seed)
                where nothing else gives validation rows.
            subset: Name of the subset (configuration) of a hub data set.
            revision: Commit, tag or branch of a hub data set.
            streaming: Read the training rows while training instead of before it; needs
                limit_train (the rows of an epoch) and validation rows of their own.
            columns: Our field to your column, for example `prompt: question` or
                `answer: instances.0.output`.
            tokenizer: Folder or hub name of the tokenizer; None: the student's.
            template: Chat template: `auto` (the tokenizer's, else plain), `plain`, or a jinja file.
            template_arguments: Further arguments of the template, for example
                `enable_thinking: false`.
            system: System prompt put before every conversation that has none, neither as a turn
                nor in its row's field `system`.
            max_length: Most tokens of a row.
            truncation: What happens to a longer row: `error` stops and names it, `drop` leaves it
                out, `left` cuts the oldest prompt tokens, `right` the end of the answer.
            empty_answers: Learn rows whose answer is empty, too: that nothing is to be said. Else
                they are left out and counted.
            batch_size: Rows of one rank in one optimizer step; prompts, where answers to one prompt
                are compared.
            batch_tokens: In place of it, tokens of one rank in one optimizer step, without padding:
                rows are taken in order up to so many times the number of ranks, and dealt out
                evenly. A longer row makes a step of its own.
            eval_batch_size: Rows of one rank in one evaluation batch; None: batch_size.
            shuffle: Whether each epoch has its own order (a function of seed and epoch).
            seed: Seed of the order and of the held-back share.
            bad_rows: What happens to a row that cannot be read or lacks a field: `fail` names it
                and stops, `skip` leaves it out, `quarantine` also writes it to a file in the run's
                folder.
            bad_share: Largest share of a split's rows that may be left out so.
            num_workers: Processes that collate batches in advance.
            limit_train: Use the first so many training rows; None: all.
            limit_validation: The same for validation rows.
            limit_test: The same for test rows.
        """
        super().__init__()
        paths = path if isinstance(path, dict) else {"train": path}
        self.knowledge = knowledge
        self._given: list[Mapping[str, Any]] | None = None
        if knowledge is not None:
            if paths.get("train"):
                raise KDError(
                    "--data.knowledge gives the training rows, and --data.path others: write the "
                    "rows to measure on to --data.validation and --data.test, and leave path out"
                )
            if not self._makes_rows():
                paths = {**paths, "train": knowledge}
        if validation is not None:
            paths = {**paths, "validation": validation}
        if test is not None:
            paths = {**paths, "test": test}
        self.splits = Splits(
            paths,
            share=validation_share,
            seed=seed,
            subset=subset,
            revision=revision,
            streaming=streaming,
        )
        self.validation_share = validation_share
        self.streaming = streaming
        self.columns = columns or {}
        self.tokenizer_path = tokenizer
        self.template = template
        self.template_arguments = template_arguments
        self.system = system
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.empty_answers = empty_answers
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.eval_batch_size = eval_batch_size or batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.bad = BadRows(bad_rows, bad_share)
        self.num_workers = num_workers
        self.limits = {
            "train": limit_train,
            "validation": limit_validation,
            "test": limit_test,
        }
        self.summary: dict[str, Summary] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._followed = False
        self._encoder: Encoder | None = None
        self._rows: dict[str, list[Encoded]] = {}
        self._facts: dict[str, Any] = {}
        self._training: ResumableLoader | None = None
        self._position: dict[str, int] | None = None
        self._check()

    def _check(self) -> None:
        for name in ("max_length", "batch_size", "eval_batch_size"):
            least = 2 if name == "max_length" else 1
            if getattr(self, name) < least:
                raise KDError(f"--data.{name} must be at least {least}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise KDError("--data.batch_tokens must be at least 1")
        if self.batch_tokens is not None and self.streaming:
            raise KDError(
                "--data.batch_tokens needs all rows' lengths before training, which a stream does "
                "not know: write --data.batch_size, or --data.streaming=false"
            )
        if not 0 <= self.validation_share < 1:
            raise KDError("--data.validation_share must be at least 0 and below 1")
        known = {*self.fields, "id"}
        if self.fields and (odd := set(self.columns) - known):
            raise KDError(
                f"--data.columns: {min(odd)} is no field of {type(self).__name__}: "
                f"use {', '.join(sorted(known))}"
            )

    # What a skill writes

    @abstractmethod
    def render(self, row: Row) -> Example:
        """How a row becomes a conversation."""

    @abstractmethod
    def grade(self, example: Example, answer: str) -> dict[str, float]:
        """How an answer is judged: name to 0..1, the skill's headline metric first."""

    def rows(self, split: str) -> Iterable[Row] | Iterable[Mapping[str, Any]]:
        """Where the rows of `train`, `validation` or `test` come from."""
        for found in self.splits.read(split, self.bad):
            yield self._row(found.values, found.place, found.id, split)

    # What a run asks for

    @property
    def skills(self) -> tuple[str, ...]:
        """Names under which metrics are logged; `Batch.skill` counts in them."""
        return (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower(),)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer: one that was set, the configured one, or the student's."""
        if self._tokenizer is None and self.tokenizer_path is not None:
            self._tokenizer = _load_tokenizer(self.tokenizer_path)
        if self._tokenizer is None:
            self._follow()
        if self._tokenizer is None:
            raise KDError("the data has no tokenizer yet: set --data.tokenizer=<folder>")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer is not self._tokenizer:
            self._take(tokenizer)
        self._followed = False

    def _take(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoder = None
        self._rows.clear()
        self._facts = {}
        self.summary.clear()

    def _follow(self) -> None:
        """Take the student's tokenizer, unless one was set; encode anew for another student."""
        module: Any = getattr(self.trainer, "lightning_module", None)
        free = self._followed or (self._tokenizer is None and self.tokenizer_path is None)
        if free and module is not None and module.tokenizer is not self._tokenizer:
            self._take(module.tokenizer)
            self._followed = True

    @property
    def encoder(self) -> Encoder:
        """Makes ids of examples; needs the tokenizer."""
        if self._encoder is None:
            self._encoder = Encoder(self.tokenizer, self.template, self.template_arguments)
        return self._encoder

    def examples(self, split: str) -> list[Example]:
        """The examples of a split that the length policy kept, each once."""
        unique = {id(row.example): row.example for row in self.encoded(split)}
        return list(unique.values())

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids that a model is given to answer the example."""
        return self.encoder.prompt(example)

    def encode(self, example: Example) -> Encoded:
        """The ids of the whole example, with the weights of its tokens."""
        if example.plain:
            return self.encoder.document(example, example.meta.get("end", "eos"))
        return self.encoder.conversation(example)

    def encodings(self, example: Example) -> list[Encoded]:
        """The rows that are learned from an example: one, or several that stay together."""
        return [self.encode(example)]

    def grouped(self, rows: list[Encoded], split: str) -> list[Encoded]:
        """The rows of a split in the groups that are compared, if they are other than examples."""
        return rows

    def prepare_data(self) -> None:
        """Download, once per machine."""
        self.splits.download()

    def setup(self, stage: str | None = None) -> None:
        """Read, encode and count the splits that the stage needs, and print the table."""
        self._follow()
        wanted = STAGES[stage] if stage is not None else SPLITS
        new = [split for split in wanted if split not in self._rows]
        for split in new:
            if not (self.streaming and split == "train"):
                self.encoded(split)
        if made := {split: self.summary[split] for split in new if split in self.summary}:
            show(made)

    def encoded(self, split: str) -> list[Encoded]:
        """The encoded rows of a split."""
        if split not in SPLITS:
            raise KDError(f"{split} is no split: use one of {', '.join(SPLITS)}")
        if split not in self._rows:
            self._rows[split] = self._encode_split(split)
        return self._rows[split]

    # From rows to encoded rows

    def rendered(self, split: str) -> Iterator[Example]:
        """The examples of a split, before the length policy."""
        if folder := getattr(self.trainer, "default_root_dir", None):
            self.bad.place(folder, self._ranks()[0])
        self.bad.begin(split)
        for row in islice(self.placed(split), self.limits[split]):
            if (made := self.bad.attempt(row, self.example)) is not None:
                yield made
        self.bad.end()

    def placed(self, split: str) -> Iterator[Row]:
        """The rows of a split; those that say no place get one."""
        learned = self._given is not None or (self.knowledge is not None and self._makes_rows())
        learned = learned and split == "train"
        for number, row in enumerate(self._elicited() if learned else self.rows(split)):
            if isinstance(row, Row):
                yield row
            else:
                place = f"{type(self).__name__}, {split} row {number}"
                yield self._row(row, place, f"{split}:{number}", split)

    def over(self, rows: Sequence[Mapping[str, Any]]) -> KDDataModule:
        """The same skill with these training rows, not read yet."""
        made = copy.copy(self)
        made._given = list(rows)
        made._rows, made.summary, made._facts = {}, {}, {}
        return made

    def _makes_rows(self) -> bool:
        """Whether its rows come from elsewhere than files."""
        return type(self).rows is not KDDataModule.rows

    def _elicited(self) -> Iterator[Row]:
        """The training rows of a knowledge set, or those that were given."""
        if self._given is not None:
            for number, values in enumerate(self._given):
                name = str(values.get("id", f"given:{number}"))
                yield self._row(values, f"record {name}", name, "train")
            return
        assert self.knowledge is not None
        for found in Knowledge(Path(self.knowledge)).read("train", self.bad):
            yield self._row(found.values, found.place, found.id, "train")

    def _row(self, values: Mapping[str, Any], place: str, id: str, split: str) -> Row:
        return Row(
            values,
            place=place,
            id=id,
            split=split,
            columns=self.columns,
            aliases=self.fields,
            kinds=self.bad.kinds,
        )

    def example(self, row: Row) -> Example:
        """The row rendered, with the system prompt and the name of the skill."""
        example = self.render(row)
        own = row.text("system", default="") if "system" in self.fields else ""
        system = own or self.system
        if system and not example.plain and example.messages[0].role != "system":
            messages = (Message("system", system), *example.messages)
            example = replace(example, messages=messages)
        for message in example.messages:
            _refuse_surrogates(message.content, row.place)
        return example if example.skill else replace(example, skill=self.skills[0])

    def lengths(self, split: str) -> Lengths:
        """A fresh length policy; test rows may lack an answer."""
        return Lengths(
            self.max_length,
            self.truncation,
            self.encoder.bos,
            unanswered=split == "test",
            empty=self.empty_answers,
        )

    def _encode_split(self, split: str) -> list[Encoded]:
        lengths = self.lengths(split)
        kept = [part for e in self.rendered(split) for part in lengths.together(self.encodings(e))]
        if not kept:
            why = ", ".join(f"{n} {reason}" for reason, n in lengths.dropped.items())
            raise KDError(
                f"{type(self).__name__}: no row of {split} is left ({why or 'there was none'}): "
                "check --data.path, or raise --data.max_length"
            )
        self.summary[split] = Summary.of(kept, lengths.truncated, lengths.dropped)
        return kept

    def _stream(self) -> StreamLoader:
        total = self.limits["train"]
        if total is None:
            raise KDError("streaming needs --data.limit_train=<rows of an epoch>")
        sampler = self._sampler(InOrder(total), total, self.batch_size)
        return StreamLoader(self, sampler, self.shuffle, self._settings())


def _refuse_surrogates(text: str, place: str) -> None:
    """JSON may hold half of a pair of surrogates, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise KDError(
            f"{place}: the text holds \\u{code:04x} alone, which is half a character: write both "
            "halves, or leave the row out (--data.bad_rows=skip)"
        ) from None


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    refuse_hostile(Path(name))
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KDError(
            f"--data.tokenizer: {name} is no tokenizer folder or hub name ({reason})"
        ) from None
    return loaded
