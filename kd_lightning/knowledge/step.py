"""One step of making knowledge: records in, records out."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, Tally
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request
from kd_lightning.teachers.journal import Journal

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule


REASONS = 12
"""Different reasons that a card counts one by one."""

OTHERS = "other reasons (dropped.jsonl)"


class Step(ABC):
    """Records in, records out.

    A function of its settings, the records, the seed and what the generators say, and of nothing
    else: a step that is done again gives the same. Constructors only store their arguments, each
    under its own name: they are the settings.
    """

    @abstractmethod
    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        """The records that go on; each that does not is told to `work.drop`."""

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        """Names of the generators that it asks, each with what for."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What its results depend on, as JSON can hold it."""
        stored = {k: plain(v) for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": type(self).__name__, **stored}

    def digest(self) -> str:
        """A name that only equal settings share."""
        return digest(self.settings())


def plain(value: Any) -> Any:
    """A setting as JSON can hold it; objects that have `settings()` say it themselves."""
    own = getattr(value, "settings", None)
    if callable(own):
        return own()
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **plain(asdict(value))}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(v) for v in value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        stored = {k: plain(v) for k, v in vars(value).items() if not k.startswith("_")}
        return {"class": type(value).__name__, **stored}
    raise TypeError(f"{type(value).__name__} is no setting: give it a `settings()`")


def digest(value: Any) -> str:
    """A short name that only equal values share."""
    told = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass
class Work:
    """What a step works with."""

    name: str
    """The step's, for lineages, seeds and messages."""
    seed: int
    """The run's."""
    generators: Mapping[str, Generator]
    """By the names that steps bind to."""
    journal: Journal
    """What was said in this step already."""
    folder: Path | None = None
    """The set's, for what does not fit into a record."""
    skill: KDDataModule | None = None
    """The skill whose rows the records are, where one was named: it renders and grades."""
    allow_code: bool = False
    """Whether code that a model wrote may be run (in the sandbox)."""
    progress: Callable[[str, int, int, Reply], None] | None = None
    """Told of each reply: generator, done, of how many."""
    tally: Tally = field(default_factory=Tally)
    """What was dropped and counted."""
    fallen: list[tuple[Record, str]] = field(default_factory=list)
    """Records that were dropped, with the reason."""

    def drop(self, record: Record, reason: str) -> None:
        """A record goes no further; `reason`: a few words that many records share.

        A server's own words may differ for each: then the card counts the rest together, and
        `dropped.jsonl` has them all.
        """
        dropped = self.tally.dropped
        name = reason if reason in dropped or len(dropped) < REASONS else OTHERS
        dropped[name] = dropped.get(name, 0) + 1
        self.fallen.append((record, reason))

    def note(self, name: str, value: Any) -> None:
        """A number for the card."""
        self.tally.notes[name] = value

    def count(self, name: str, more: int = 1) -> None:
        """Add to a number of the card."""
        self.tally.notes[name] = self.tally.notes.get(name, 0) + more

    def seed_of(self, *names: Any) -> int:
        """A seed that is a function of the run's, the step and `names`."""
        told = json.dumps([self.seed, self.name, *map(str, names)])
        return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=4).digest(), "little") // 2

    def rng(self, *names: Any) -> random.Random:
        """A generator of random numbers with that seed."""
        return random.Random(self.seed_of(*names))

    def generator(self, name: str) -> Generator:
        """The generator that a step is bound to."""
        if name not in self.generators:
            known = ", ".join(self.generators) or "none"
            raise KDError(
                f"step {self.name} asks the generator {name!r}, and the configuration names "
                f"{known}: write generators.{name}, or bind the step to one of those"
            )
        return self.generators[name]

    def ask(self, generator: str, requests: Sequence[Request]) -> list[Reply]:
        """All replies, in order; what stands in the journal is not asked again."""
        speaker = self.generator(generator)
        keys = [request.key(speaker.identity) for request in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self.journal}
        waiting = list(new)
        failed: dict[str, Reply] = {}
        done = len(requests) - len(waiting)
        for said in speaker.replies(new.values()) if new else ():
            by_key = {waiting[i]: reply for i, reply in said}
            self.journal.add(generator, {k: r for k, r in by_key.items() if not r.failure})
            failed.update({k: r for k, r in by_key.items() if r.failure})
            for reply in by_key.values():
                done += 1
                if self.progress is not None:
                    self.progress(generator, done, len(requests), reply)
        return [failed[k] if k in failed else self.journal[k] for k in keys]

    @contextmanager
    def inside(self, name: str) -> Iterator[Work]:
        """The same for a step within this one (filters of a growing pool)."""
        inner = Work(
            f"{self.name}/{name}",
            self.seed,
            self.generators,
            self.journal,
            self.folder,
            self.skill,
            self.allow_code,
            self.progress,
        )
        yield inner
        for record, reason in inner.fallen:
            self.drop(record, reason)
        for key, value in inner.tally.notes.items():
            if isinstance(value, int) and not isinstance(value, bool):
                self.count(f"{name}: {key}", value)
            else:
                self.note(f"{name}: {key}", value)
