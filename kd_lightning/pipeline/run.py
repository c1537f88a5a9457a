"""`kd pipeline`: stages, round after round; what stands and is unchanged is not done again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_lightning import files
from kd_lightning.application import KDParser
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import digest
from kd_lightning.pipeline.nursery import Nursery
from kd_lightning.pipeline.stage import Stage, fingerprint
from kd_lightning.pipeline.summary import measured, result_of, write_summary

DONE = "stage.json"
"""The file that makes a stage's folder a finished stage."""


@dataclass(frozen=True)
class Until:
    """When the rounds end before their number is reached."""

    stage: str
    """An `evaluate` stage."""
    metric: str
    """A metric of its student."""
    at_least: float
    """Enough."""


class Pipeline:
    """Stages that are done in order, round after round, each in a process of its own.

    A stage is left out where its folder is finished and neither its command, nor the files that it
    names, nor the stages that it reads have changed; an interrupted one goes on.
    """

    def __init__(
        self,
        output: str,
        stages: list[Stage],
        rounds: int = 1,
        seed: int = 0,
        until: Until | None = None,
        said: Callable[[str], None] = print,
    ) -> None:
        """Store the settings.

        Args:
            output: Folder of all rounds.
            stages: In order; a stage may read those before it, and all of the round before.
            rounds: How often.
            seed: Of the first round; each later round has the next one.
            until: End early.
            said: Who is told what is done.
        """
        self.output = output
        self.stages = stages
        self.rounds = rounds
        self.seed = seed
        self.until = until
        self.said = said
        self._nursery = Nursery()

    def check(self) -> None:
        """Refuse at set-up what could only fail later."""
        names = [stage.name for stage in self.stages]
        if not names or self.rounds < 1:
            raise KDError("a pipeline needs at least one of `stages`, and one round")
        if twice := {n for n in names if names.count(n) > 1}:
            raise KDError(f"two stages are called {min(twice)!r}: give them different names")
        for place, stage in enumerate(self.stages):
            for path in stage.configs:
                if not Path(path).is_file():
                    raise KDError(f"stage {stage.name}: there is no configuration {path}")
            for number in range(1, min(self.rounds, 2) + 1):
                for previous, name in stage.references(number):
                    known = names if previous else names[:place]
                    if name not in known:
                        raise KDError(
                            f"stage {stage.name} reads {{{name}}}, which is no stage before it "
                            f"({', '.join(known) or 'it is the first'})"
                        )
                    if previous and number == 1:
                        raise KDError(
                            f"stage {stage.name} reads {{previous.{name}}}, and the first round "
                            "has none before it: write what holds then in the stage's `first`"
                        )
        if self.until is not None and self.until.stage not in names:
            raise KDError(f"until.stage: {self.until.stage!r} is no stage ({', '.join(names)})")

    def run(self) -> list[dict[str, Any]]:
        """Do what is not done yet; each stage's result, by round."""
        self.check()
        folder = Path(self.output)
        table: list[dict[str, Any]] = []
        with files.only_writer(folder), closing(self._nursery):
            for number in range(1, self.rounds + 1):
                row = {s.name: self._stage(s, number, folder) for s in self.stages}
                table.append(row)
                self.said(write_summary(folder, table))
                if self._enough(row):
                    break
        return table

    def _enough(self, row: dict[str, Any]) -> bool:
        if self.until is None:
            return False
        found = measured(row[self.until.stage]["result"], self.until.metric, self.until.stage)
        enough = found >= self.until.at_least
        if enough:
            self.said(f"{self.until.metric} is {found:.4g}: enough")
        return enough

    def _stage(self, stage: Stage, number: int, output: Path) -> dict[str, Any]:
        def place(name: str, previous: bool) -> Path:
            return output / f"round-{number - previous:02d}" / name

        folder = place(stage.name, False)
        read = {(p, name): place(name, p) for p, name in stage.references(number)}
        inputs = {
            f"{p}/{name}": json.loads((path / DONE).read_text())["digest"]
            for (p, name), path in read.items()
        }
        arguments = stage.arguments(number, self.seed + number - 1, folder, read)
        mark = fingerprint(arguments, folder, inputs)
        title = f"[round {number} of {self.rounds}] {stage.name}"
        kept = _finished(folder, mark)
        if kept is not None:
            self.said(f"{title}: stands, unchanged")
            return kept
        begun = folder / "begun.json"
        if folder.exists() and _text(begun) != mark:
            set_aside(folder)
            self.said(f"{title}: changed, so done again (the former one is set aside)")
        elif stage.command == "fit" and folder.exists():
            arguments = [*arguments, "--resume=auto"]
        folder.mkdir(parents=True, exist_ok=True)
        files.write(begun, [mark.encode()])
        self.said(f"{title}: kd {shlex.join(arguments)}")
        code = self._nursery.run(arguments)
        if code != 0:
            raise KDError(
                f"stage {stage.name} of round {number} ended with code {code}: the lines above say "
                "why; the same command goes on from there"
            )
        result = result_of(stage.command, folder)
        entry = {"command": arguments, "result": result, "fingerprint": mark}
        entry["digest"] = digest([mark, result])
        files.write_json(folder / DONE, entry)
        return entry


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _finished(folder: Path, mark: str) -> dict[str, Any] | None:
    try:
        entry = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if entry.get("fingerprint") == mark else None


def set_aside(folder: Path) -> None:
    """Keep a former output under another name."""
    number = 1
    while (other := folder.with_name(f"{folder.name}.former-{number}")).exists():
        number += 1
    folder.rename(other)


def pipeline(argv: Sequence[str]) -> None:
    """Run the pipeline that a configuration describes."""
    parser = KDParser.of(Pipeline, "kd pipeline")
    Pipeline(**parser.made(parser.parse_args(list(argv)))).run()
