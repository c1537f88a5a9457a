"""What a generator said once, said again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kd_lightning.errors import KDError
from kd_lightning.files import write_json
from kd_lightning.teachers.generator import Generator, GeneratorError, Reply, Request, Usage
from kd_lightning.teachers.journal import Journal
from kd_lightning.teachers.wording import beginning
from kd_lightning.types import Signal

SPOKEN = "replies.jsonl"
"""The replies, by the hash of the request."""

SPEAKER = "generator.json"
"""Who gave them: name, licence, identity, what it offers."""


class Replay(Generator):
    """Records a generator's replies in a folder, and repeats them without it.

    A reply is found by the hash of everything that the request says: prompt, sampling with its
    seed, number of answers, texts. Failures are not recorded. One process records at a time.
    """

    def __init__(
        self,
        path: str,
        inner: Generator | None = None,
        mode: Literal["record", "replay", "auto"] = "auto",
    ) -> None:
        """Store the settings.

        Args:
            path: Folder of the record.
            inner: Who is asked for what is not recorded; replay needs nobody.
            mode: `record`: ask `inner` for everything; `replay`: ask nobody, and end where
                something was not recorded; `auto`: ask `inner` for what was not.
        """
        self.path = path
        self.inner = inner
        self.mode = mode
        if inner is None and mode != "replay":
            raise KDError(
                f"Replay with mode={mode} asks a generator for what is not recorded: write "
                "`inner`, or mode=replay"
            )

    @cached_property
    def _told(self) -> dict[str, Any]:
        """Who spoke, as the record says."""
        file = Path(self.path) / SPEAKER
        if not file.is_file():
            raise KDError(
                f"there is no record in {self.path}: make one with mode=record, or write the "
                "folder of one"
            )
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return told

    @property
    def _asked(self) -> Generator | None:
        """Who is asked, if anybody."""
        return None if self.mode == "replay" else self.inner

    @property
    def name(self) -> str:  # type: ignore[override]
        """The recorded generator's."""
        return str(self._told["name"]) if self._asked is None else self._asked.name

    @property
    def licence(self) -> str | None:  # type: ignore[override]
        """The recorded generator's: a copy of what it said is not freer than it."""
        if self._asked is not None:
            return self._asked.licence
        found: str | None = self._told["licence"]
        return found

    @property
    def offers(self) -> frozenset[Signal]:  # type: ignore[override]
        """What the recorded generator offers."""
        if self._asked is not None:
            return self._asked.offers & {Signal.TEXT, Signal.LOGPROB}
        return frozenset(Signal(signal) for signal in self._told["offers"])

    @property
    def identity(self) -> str:
        own = self._told["identity"] if self._asked is None else self._asked.identity
        return f"Replay:{own}"

    @cached_property
    def _journal(self) -> Journal:
        return Journal(Path(self.path) / SPOKEN)

    def ready(self) -> None:
        if self._asked is not None:
            self._asked.ready()

    def open(self) -> None:
        """Begin the record, or refuse one that is of another generator."""
        speaker, folder = self._asked, Path(self.path)
        if speaker is None:
            _ = self._told  # refused here where there is none
            return
        speaker.open()
        if not (folder / SPEAKER).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            now = {
                "name": speaker.name,
                "licence": speaker.licence,
                "identity": speaker.identity,
                "offers": sorted(self.offers),
            }
            write_json(folder / SPEAKER, now)
        if self._told["identity"] != speaker.identity:
            raise KDError(
                f"the record {self.path} is of {self._told['name']} ({self._told['identity']}), "
                f"and `inner` is {speaker.identity}: write another `path`, or mode=replay"
            )

    def close(self) -> None:
        self._journal.close()
        if self._asked is not None:
            self._asked.close()

    def charged(self, requests: int, usage: Usage) -> None:
        if self._asked is not None:
            self._asked.charged(requests, usage)

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        self.open()
        known: list[tuple[int, Reply]] = []
        asked: list[tuple[int, str]] = []

        def new() -> Iterator[Request]:
            for number, request in enumerate(requests):
                key = request.key("")
                if self.mode != "record" and key in self._journal:
                    known.append((number, self._journal[key]))
                    continue
                if self._asked is None:
                    raise GeneratorError(
                        f"the record {self.path} has no reply to this request for {request.kind} "
                        f"({beginning(request.prompt)}): record it with mode=auto, or ask what "
                        "was recorded (same prompt, sampling, seed and number of answers)"
                    )
                asked.append((number, key))
                yield request

        if self._asked is None:
            for _ in new():
                pass
        else:
            for done in self._asked.replies(new()):
                said = [(*asked[i], reply) for i, reply in done]
                good = {key: reply for _, key, reply in said if not reply.failure}
                self._journal.add(self._asked.name, good)
                yield [*known, *((number, reply) for number, _, reply in said)]
                known.clear()
        if known:
            yield known
