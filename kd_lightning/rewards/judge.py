"""A model that scores an answer by a rubric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from kd_lightning.elicit.judge import JUDGING
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Around, Asked, Reward, opened, speaker, told
from kd_lightning.rewards.readable import Readable
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request
from kd_lightning.types import Batch, Sampling


class Judge(Reward):
    r"""The score that a judge gives, scaled to -1 .. 1.

    .. math:: r = 2\,\frac{s - \mathrm{low}}{\mathrm{high} - \mathrm{low}} - 1, \qquad
        s = \sum_i i \, \frac{p(i)}{\sum_j p(j)}

    `choices`: the mean under the judge's probabilities of the whole numbers from low to high, which
    need no answer to be read. `text`: the number that the judge writes; one that cannot be read is
    asked for again, then counted as `malformed`, and the reward is nan.

    Source: Lee et al. 2023 (direct RLAIF), arXiv 2309.00267, section 2.2.
    """

    def __init__(
        self,
        template: str = "score",
        generator: Generator | None = None,
        by: Literal["choices", "text"] = "choices",
        low: int = 1,
        high: int = 9,
        field: str = "score",
        sampling: Sampling = JUDGING,
        attempts: int = 1,
        given: dict[str, Any] | None = None,
        most_malformed: float = 0.2,
    ) -> None:
        """Store the settings.

        Args:
            template: One of the library's templates, or the path of a .jinja file; reads `prompt`,
                `answer`, `reference`, `low`, `high`.
            generator: Who judges; None: the run's teacher.
            by: choices: by the log-probabilities of the numbers; text: by what is written.
            low: The worst score.
            high: The best score.
            field: text: what the template's parser calls the number.
            sampling: text: how judgements are drawn.
            attempts: text: how often a question is put; above 1 needs a temperature above 0.
            given: Further names for the template.
            most_malformed: Share of the judgements that may be unreadable before the run stops.
        """
        super().__init__()
        self.template = template
        self.generator = generator
        self.by = by
        self.low = low
        self.high = high
        self.field = field
        self.sampling = sampling
        self.attempts = attempts
        self.given = given
        self.most_malformed = most_malformed
        self._readable = Readable(most_malformed, "Judge")
        if not low < high:
            raise KDError(f"Judge: low ({low}) must be below high ({high})")
        if attempts < 1 or (attempts > 1 and sampling.temperature == 0):
            raise KDError(
                "Judge: attempts must be at least 1, and above 1 only with a sampling.temperature "
                "above 0: at 0 the same judgement comes again"
            )

    @property
    def needs(self) -> Mapping[str, frozenset[Kind]]:  # type: ignore[override]
        kind = Kind.CHOICES if self.by == "choices" else Kind.GENERATE
        return {"judge": frozenset({kind})}

    @property
    def numbers(self) -> tuple[str, ...]:
        """The scores that may be given, as they are written."""
        return tuple(str(number) for number in range(self.low, self.high + 1))

    def check(self, around: Around) -> None:
        super().check(around)
        speaker(self.generator, around, "Judge").require(self.needs["judge"], "Judge")
        Template(self.template).settings()
        if self.by == "choices":
            refuse_beginnings(self.numbers, "Judge")

    def materialize(self, device: torch.device) -> None:
        opened(self.generator, device)

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        judge, malformed = speaker(self.generator, self._around, "Judge"), self._counts["malformed"]
        template = Template(self.template)
        prompts = [template.prompt(self._known(each), each.example.id) for each in asked]
        if self.by == "choices":
            requests = [Request(Kind.CHOICES, p, texts=self.numbers) for p in prompts]
            found = [self._expected(reply) for reply in judge.ask(requests)]
        else:
            found = [math.nan] * len(prompts)
            waiting = list(range(len(prompts)))
            for attempt in range(self.attempts):
                how = replace(
                    self.sampling,
                    seed=self.sampling.seed + attempt,
                    stop=(*self.sampling.stop, *template.stop),
                )
                requests = [Request(Kind.GENERATE, prompts[i], how) for i in waiting]
                last = attempt == self.attempts - 1
                for i, reply in zip(waiting, judge.ask(requests), strict=True):
                    found[i] = self._written(template, reply, last)
                waiting = [i for i in waiting if math.isnan(found[i])]
                if not waiting:
                    break
        self._readable.add(len(asked), self._counts["malformed"] - malformed)
        return [2 * (s - self.low) / (self.high - self.low) - 1 for s in found]

    def _known(self, asked: Asked) -> dict[str, Any]:
        return {
            "low": self.low,
            "high": self.high,
            **(self.given or {}),
            "prompt": told(asked.example),
            "answer": asked.answer,
            "reference": asked.example.answer or None,
        }

    def _expected(self, reply: Reply) -> float:
        if reply.failure:
            self.count("failed")
            return math.nan
        share = torch.tensor(reply.choices, dtype=torch.float64).softmax(0)
        if not share.isfinite().all():
            self.count("malformed")
            return math.nan
        return float((share * torch.arange(self.low, self.high + 1)).sum())

    def _written(self, template: Template, reply: Reply, last: bool) -> float:
        if reply.failure:
            if last:
                self.count("failed")
            return math.nan
        try:
            completion = reply.completions[0]
            if not completion.finished:
                raise Malformed("cut at the length limit")
            value = template.parser.parse(completion.text)[0].get(self.field)
            if not isinstance(value, int | float) or not self.low <= value <= self.high:
                raise Malformed(f"no {self.field} from {self.low} to {self.high}")
            return float(value)
        except Malformed:
            if last:
                self.count("malformed")
            return math.nan


def refuse_beginnings(options: Sequence[str], who: str) -> None:
    """An option that another begins with gets that one's probability as well."""
    for one in options:
        for other in options:
            if one != other and other.startswith(one):
                raise KDError(
                    f"{who}: the option {other!r} begins with the option {one!r}, so that their "
                    "probabilities cannot be told apart: choose numbers of one digit, or letters"
                )
