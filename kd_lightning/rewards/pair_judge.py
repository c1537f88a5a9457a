"""A model that compares the answers to one prompt, two at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import torch

from kd_lightning.elicit.judge import JUDGING
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Around, Asked, Reward, opened, speaker, told
from kd_lightning.rewards.judge import refuse_beginnings
from kd_lightning.rewards.readable import Readable
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request
from kd_lightning.types import Batch, Sampling

Pair = tuple[int, int]
SHARE = {"A": 1.0, "TIE": 0.5, "B": 0.0}
"""What a written verdict is worth to the first answer."""


class PairJudge(Reward):
    r"""How often an answer wins against the others of its group, 0 to 1.

    .. math:: r_i = \frac{1}{K-1} \sum_{j \ne i} \tfrac12 \big( P(i \succ j \mid i, j)
        + P(i \succ j \mid j, i) \big)

    Every pair is shown in both orders, so that a liking for a place takes no side. An answer with
    one comparison that failed gets nan, as does one without company.

    Source: Lee et al. 2023 (RLAIF), arXiv 2309.00267, section 2.1.1; written verdicts: Zheng et al.
    2023 (MT-Bench), arXiv 2306.05685, section 3.4.
    """

    def __init__(
        self,
        template: str | None = None,
        generator: Generator | None = None,
        by: Literal["choices", "text"] = "choices",
        swap: bool = True,
        sampling: Sampling = JUDGING,
        given: dict[str, Any] | None = None,
        most_malformed: float = 0.2,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt`, `first`, `second`; None: `prefer` for choices, `compare` for
                text.
            generator: Who judges; None: the run's teacher.
            by: choices: by the log-probabilities of A and B; text: by the verdict A, B or tie.
            swap: Whether the other order is asked too.
            sampling: text: how judgements are drawn.
            given: Further names for the template.
            most_malformed: Share of the judgements that may be unreadable before the run stops.
        """
        super().__init__()
        self.template = template
        self.generator = generator
        self.by = by
        self.swap = swap
        self.sampling = sampling
        self.given = given
        self.most_malformed = most_malformed
        self._readable = Readable(most_malformed, "PairJudge")

    @property
    def needs(self) -> Mapping[str, frozenset[Kind]]:  # type: ignore[override]
        kind = Kind.CHOICES if self.by == "choices" else Kind.GENERATE
        return {"judge": frozenset({kind})}

    def check(self, around: Around) -> None:
        super().check(around)
        speaker(self.generator, around, "PairJudge").require(self.needs["judge"], "PairJudge")
        self._template.settings()
        refuse_beginnings(("A", "B"), "PairJudge")

    def materialize(self, device: torch.device) -> None:
        opened(self.generator, device)

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        pairs = self._pairs(batch, asked)
        orders = [p for i, j in pairs for p in [(i, j), (j, i)][: 1 + self.swap]]
        judge = speaker(self.generator, self._around, "PairJudge")
        template = self._template
        how = replace(self.sampling, stop=(*self.sampling.stop, *template.stop))
        requests = []
        for first, second in orders:
            known = {
                **(self.given or {}),
                "prompt": told(asked[first].example),
                "first": asked[first].answer,
                "second": asked[second].answer,
            }
            prompt = template.prompt(known, asked[first].example.id)
            if self.by == "choices":
                requests.append(Request(Kind.CHOICES, prompt, texts=("A", "B")))
            else:
                requests.append(Request(Kind.GENERATE, prompt, how))
        malformed = self._counts["malformed"]
        shares = [self._first(template, reply) for reply in judge.ask(requests)]
        self._readable.add(len(requests), self._counts["malformed"] - malformed)
        won: list[list[float]] = [[] for _ in asked]
        for (first, second), share in zip(orders, shares, strict=True):
            won[first].append(share)
            won[second].append(1 - share)
        self.count("alone", sum(not shares for shares in won))
        return [sum(shares) / len(shares) if shares else math.nan for shares in won]

    @property
    def _template(self) -> Template:
        return Template(self.template or ("prefer" if self.by == "choices" else "compare"))

    def _pairs(self, batch: Batch, asked: Sequence[Asked]) -> list[Pair]:
        if batch.group is None:
            raise KDError(
                "PairJudge compares the answers to one prompt: draw several for each (a rollout "
                "with n above 1)"
            )
        groups = batch.group.tolist()
        return [(i, j) for i, j in combinations(range(len(asked)), 2) if groups[i] == groups[j]]

    def _first(self, template: Template, reply: Reply) -> float:
        """What the reply gives to the answer shown first."""
        if reply.failure:
            self.count("failed")
            return math.nan
        if self.by == "choices":
            share = torch.tensor(reply.choices, dtype=torch.float64).softmax(0)[0]
            if not share.isfinite():
                self.count("malformed")
            return float(share)
        try:
            completion = reply.completions[0]
            if not completion.finished:
                raise Malformed("cut at the length limit")
            verdict = template.parser.parse(completion.text)[0].get("verdict")
            if str(verdict).upper() not in SHARE:
                raise Malformed("the verdict is none of A, B, tie")
            return SHARE[str(verdict).upper()]
        except Malformed:
            self.count("malformed")
            return math.nan
