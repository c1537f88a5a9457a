"""Which of two answers is better: said in both orders, or by the log-probabilities of a choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.elicit.asking import Item
from kd_lightning.elicit.judge import JUDGING, Judge, candidates
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.types import Sampling

TIE = "tie"


class Compare(Judge):
    """Compare two candidates, shown in both orders.

    Writes `verdicts`: what was said of the order as it is and of the other, as `A` (the first
    candidate), `B` or `tie`; `verdict`, the one that both agree on, else `tie`; and `scores`, each
    candidate's share of the two judgements (a tie is half).

    Source: Zheng et al. 2023 (MT-Bench), arXiv 2306.05685, section 3.4: swapped positions.
    """

    def __init__(
        self,
        template: str = "compare",
        sampling: Sampling = JUDGING,
        swap: bool = True,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt`, `first` and `second`; writes `verdict`: A, B or tie.
            sampling: How judgements are drawn.
            swap: Whether the other order is asked too.
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.swap = swap

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template, groups = Template(self.template), []
        for record in records:
            a, b = candidates(record, "Compare", 2)
            orders = [("forward", a, b), ("swapped", b, a)][: 1 + self.swap]
            groups.append(
                [
                    self.question(
                        template, record, key, {"first": first, "second": second}, _choice
                    )
                    for key, first, second in orders
                ]
            )
        made = []
        for record, said in zip(records, self.put(groups, records, work), strict=True):
            if said is None:
                continue
            verdicts = [said[0].item["verdict"], *(_swapped(s.item["verdict"]) for s in said[1:])]
            agreed = verdicts[0] if len(set(verdicts)) == 1 else TIE
            share = sum({"A": 1.0, TIE: 0.5}.get(v, 0.0) for v in verdicts) / len(verdicts)
            told: Item = {"verdicts": verdicts, "verdict": agreed, "scores": [share, 1 - share]}
            made.append(record.changed(work.name, said[0].by, **told))
        return made


class Prefer(Step):
    r"""Prefer one of two candidates by the log-probabilities of the letters A and B.

    .. math:: P(y_1 \succ y_2) = \tfrac12 \left( \frac{p(A \mid y_1, y_2)}{p(A) + p(B)}
        + \frac{p(B \mid y_2, y_1)}{p(A) + p(B)} \right)

    Both orders are asked, so that a liking for a place takes no side. Writes `scores`, the two
    probabilities: soft labels.

    Source: Lee et al. 2023 (RLAIF), arXiv 2309.00267, section 3.1.
    """

    def __init__(
        self,
        template: str = "prefer",
        generator: str = "teacher",
        options: tuple[str, str] = ("A", "B"),
        given: dict[str, Any] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt`, `first` and `second`; the answer to it is an option.
            generator: Name of the generator; it must give log-probabilities.
            options: The first's and the second's, as the generator would write them.
            given: Further names for the template.
        """
        self.template = template
        self.generator = generator
        self.options = options
        self.given = given

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.CHOICES})}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "template": Template(self.template).settings()}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template, requests = Template(self.template), []
        for record in records:
            a, b = candidates(record, "Prefer", 2)
            for first, second in ((a, b), (b, a)):
                known = {**(self.given or {}), **record.values, "first": first, "second": second}
                prompt = template.prompt(known, record.id)
                requests.append(Request(Kind.CHOICES, prompt, texts=tuple(self.options)))
        replies = work.ask(self.generator, requests)
        made = []
        for record, forward, swapped in zip(records, replies[::2], replies[1::2], strict=True):
            failure = forward.failure or swapped.failure
            if failure:
                work.drop(record, failure)
                continue
            share = (_first(forward.choices) + 1 - _first(swapped.choices)) / 2
            by = forward.by or self.generator
            made.append(record.changed(work.name, by, scores=[share, 1 - share]))
        return made


def _choice(item: Item) -> None:
    if item["verdict"] not in ("A", "B", TIE):
        raise Malformed("the verdict is none of A, B, tie")


def _swapped(verdict: str) -> str:
    return {"A": "B", "B": "A"}.get(verdict, verdict)


def _first(choices: Sequence[float]) -> float:
    """Share of the first of two log-probabilities."""
    gap = choices[1] - choices[0]
    return 1 / (1 + math.exp(gap)) if gap < 700 else 0.0
