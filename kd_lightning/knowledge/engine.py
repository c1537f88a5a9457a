"""One run of elicitation: seeds, generators, steps; stopped anywhere it goes on where it stood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kd_lightning import files
from kd_lightning.data.base import KDDataModule
from kd_lightning.errors import KDError
from kd_lightning.knowledge.progress import Progress
from kd_lightning.knowledge.records import Record, Tally
from kd_lightning.knowledge.seeds import read_seeds
from kd_lightning.knowledge.sets import (
    Format,
    canaries,
    malformed,
    read_records,
    write_records,
    write_set,
)
from kd_lightning.knowledge.step import Step, Work, digest, plain
from kd_lightning.teachers.generator import BudgetError, Generator, Usage
from kd_lightning.teachers.journal import Journal
from kd_lightning.teachers.rights import NOT_STATED, refuse_no_train
from kd_lightning.tracking import describe_run

DONE = "done.json"
"""The file that makes a step's folder a finished step."""


@dataclass(frozen=True)
class Seeds:
    """What the first step begins with."""

    path: str | list[str] | None = None
    """File, pattern with *, folder, knowledge set or hub name; several: one after the other.
    None: the rows of `skill`, or nothing where there is none."""
    split: str = "train"
    """Which split of it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name to the column's, for example `prompt: instruction`; other columns stay."""
    input: Literal["join", "apart"] = "join"
    """Where a row has an `input` besides its `prompt` (Alpaca, Dolly): join: behind the prompt, as
    the data modules ask it; apart: a value of its own, which templates must name."""
    limit: int | None = None
    """Use the first so many rows; None: all."""


class Elicitation:
    """Knowledge drawn out of generators, step by step, into a set that any data module reads.

    Each step's records are kept in `steps/`: a step whose settings, seed, generators and records
    are as they were is not done again, and of one that was interrupted only what was not answered
    is asked.
    """

    def __init__(
        self,
        output: str,
        steps: list[Step],
        generators: dict[str, Generator] | None = None,
        seeds: Seeds = Seeds(),
        skill: KDDataModule | None = None,
        seed: int = 0,
        format: Format = "jsonl",
        shard_rows: int = 50_000,
        allow_code: bool = False,
        terms_override: str | None = None,
        said: Callable[[str], None] = print,
    ) -> None:
        """Store the settings.

        Args:
            output: The set's folder.
            steps: Elicitors and curators, in order.
            generators: Who speaks, by the names that steps bind to (teacher, student, judge ...).
            seeds: The records that the first step gets.
            skill: A data module whose rows may be the seeds, and which renders and grades answers.
            seed: Of every draw and every sampled answer.
            format: Of the shards: jsonl, or parquet where all records have the same fields.
            shard_rows: Records in one file.
            allow_code: Whether steps may run code that a model wrote, in the sandbox.
            terms_override: Where a generator's terms forbid training on what it says: why it is
                done nevertheless. Stands on the card.
            said: Who is told how far it is.
        """
        self.output = output
        self.steps = steps
        self.generators = generators or {}
        self.seeds = seeds
        self.skill = skill
        self.seed = seed
        self.format: Format = format
        self.shard_rows = shard_rows
        self.allow_code = allow_code
        self.terms_override = terms_override
        self.said = said

    def run(self) -> Path:
        """Do what is not done yet; the folder of the finished set."""
        folder = Path(self.output)
        rights = self.check()
        for name, licence in rights["licences"].items():
            if licence == NOT_STATED:
                self.said(
                    f"{name}: the terms of its outputs are {NOT_STATED}, and so says the card: "
                    f"look them up, and write `licence` to generators.{name}"
                )
        with files.only_writer(folder):
            begun, told = read_seeds(self.seeds, self.skill)
            speakers = {name: plain(vars_of(g)) for name, g in self.generators.items()}
            chain = digest([told, self.seed, self.allow_code])
            records, done = begun, []
            try:
                for number, step in enumerate(self.steps, 1):
                    place = folder / "steps" / f"{number:02d}-{snake(type(step).__name__)}"
                    of = {name: speakers[name] for name in sorted(step.needs())}
                    chain = digest([chain, step.settings(), of])
                    records, entry = self._step(step, place, records, chain)
                    done.append(entry)
            finally:
                for generator in self.generators.values():
                    generator.close()
            self._clear(folder, len(self.steps))
            if not records:
                why = "; ".join(
                    f"{e['name']}: {n} {w}" for e in done for w, n in e["dropped"].items()
                )
                none = "the steps gave none" if begun else "there were no seeds"
                raise KDError(f"no record is left ({why or none})")
            card = {
                "digest": chain,
                "seed": self.seed,
                "seeds": told,
                "terms_override": rights.get("override"),
                "generators": self._generators(speakers, rights["licences"]),
                "steps": done,
                "spend": total(took for entry in done for took in entry["spend"].values()),
                "run": describe_run(),
            }
            write_set(folder, unique(records), card, self.format, self.shard_rows)
        self.said(f"{len(records):,} records in {folder}; train on them: --data.knowledge={folder}")
        return folder

    def check(self) -> dict[str, Any]:
        """Refuse at set-up what could only fail later; what the card must say of rights."""
        try:
            return self._checked()
        except BaseException:
            for generator in self.generators.values():  # some are opened to see what they offer
                generator.close()
            raise

    def _checked(self) -> dict[str, Any]:
        if not self.steps:
            raise KDError("there is nothing to do: write at least one of `steps`")
        rights = refuse_no_train(self.generators, self.terms_override)  # before anything is asked
        for number, step in enumerate(self.steps, 1):
            step.settings()  # reads its templates and pools: what is missing is named now
            for name, kinds in step.needs().items():
                who = f"step {number} ({type(step).__name__})"
                if name not in self.generators:
                    known = ", ".join(self.generators) or "none is named"
                    raise KDError(
                        f"{who} asks the generator {name!r} ({known}): write generators.{name}, "
                        "or bind the step to another one"
                    )
                self.generators[name].require(kinds, who)
        return rights

    def _step(
        self, step: Step, place: Path, records: Sequence[Record], chain: str
    ) -> tuple[list[Record], dict[str, Any]]:
        kept = _finished(place, chain)
        if kept is not None:
            for name, took in kept["spend"].items():
                self.generators[name].charged(took["requests"], usage_of(took))
            self.said(f"{place.name}: done before ({kept['given']:,} records)")
            return read_records(place / "records.jsonl"), kept
        for name in dict.fromkeys(n for later in self.steps for n in later.needs()):
            self.generators[name].ready()  # a key that a later step lacks is missed now
        place.mkdir(parents=True, exist_ok=True)
        journal = Journal(place / "journal.jsonl")
        if len(journal):
            self.said(f"{place.name}: goes on, {len(journal):,} requests were answered before")
        bound = {name: self.generators[name] for name in step.needs()}
        for name, generator in bound.items():
            generator.charged(*journal.took(name))
            generator.open()
        work = Work(
            place.name,
            self.seed,
            bound,
            journal,
            Path(self.output),
            self.skill,
            self.allow_code,
            Progress(place.name, self.said),
            Tally(taken=len(records)),
        )
        try:
            made = unique(step.run(records, work))
        except BudgetError as error:
            raise BudgetError(
                f"{error}. {len(journal):,} answers of {place.name} are kept: with a larger budget "
                "the same command goes on"
            ) from error
        finally:
            journal.close()
        work.tally.given = len(made)
        checksum = write_records(place / "records.jsonl", made)
        fallen = [{**r.as_row(), "reason": why} for r, why in work.fallen]
        lines = [(json.dumps(row, ensure_ascii=True) + "\n").encode() for row in fallen]
        files.write(place / "dropped.jsonl", lines)
        entry = {
            "name": place.name,
            **asdict(work.tally),
            "spend": {name: spent(*journal.took(name)) for name in bound},
            "said_by": {name: generator.identity for name, generator in bound.items()},
            "settings": step.settings(),
            "digest": chain,
            "records_sha256": checksum,
        }
        files.write_json(place / DONE, entry)
        self.said(summary(entry))
        return made, entry

    def _clear(self, folder: Path, steps: int) -> None:
        """Folders of steps that the configuration has no more are named, and left."""
        for place in sorted((folder / "steps").iterdir()):
            if int(place.name[:2]) > steps:
                self.said(f"{place} is of an earlier configuration: it is not part of the set")

    def _generators(
        self, speakers: Mapping[str, Any], licences: Mapping[str, str | None]
    ) -> dict[str, Any]:
        return {
            name: {
                "class": type(generator).__name__,
                "name": generator.name,
                "licence": licences.get(name),
                "settings": speakers[name],
            }
            for name, generator in self.generators.items()
        }


def vars_of(generator: Generator) -> dict[str, Any]:
    """A generator's settings: what its constructor stored under public names."""
    return {k: v for k, v in vars(generator).items() if not k.startswith("_")}


def spent(requests: int, usage: Usage) -> dict[str, Any]:
    """What a generator took in a step, for a card."""
    return {"requests": requests, **asdict(usage)}


def usage_of(took: Mapping[str, Any]) -> Usage:
    """The way back."""
    return Usage(**{k: v for k, v in took.items() if k != "requests"})


def total(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several took together."""
    each = list(parts)
    usage = sum((usage_of(took) for took in each), Usage())
    return spent(sum(int(took["requests"]) for took in each), usage)


def unique(records: Sequence[Record]) -> list[Record]:
    """Refuse two records of one name: lineages would mean either."""
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise KDError(
                f"two records are called {record.id!r}: give the seeds distinct `id`s, or leave "
                "the column out"
            )
        seen.add(record.id)
    return list(records)


def snake(name: str) -> str:
    """`FinalAnswer` as `final_answer`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def summary(entry: Mapping[str, Any]) -> str:
    """What a step did, in one line."""
    fell = ", ".join(f"{n:,} {why}" for why, n in entry["dropped"].items())
    requests = total(entry["spend"].values())["requests"]
    asked = f", {requests:,} requests" if requests else ""
    line = f"{entry['name']}: {entry['taken']:,} in, {entry['given']:,} out{asked}"
    if bad := malformed(entry):
        line = f"{line}, {bad}"
    if shown := canaries(entry):
        line = f"{line}, of empty answers {shown}"
    return f"{line}; fell: {fell}" if fell else line


def _finished(place: Path, chain: str) -> dict[str, Any] | None:
    """What a finished step told, if it is this very step and its records are whole."""
    try:
        entry = json.loads((place / DONE).read_text(encoding="utf-8"))
        known = entry["digest"] == chain
        whole = files.digest_of(place / "records.jsonl") == entry["records_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(entry) if known and whole else None
