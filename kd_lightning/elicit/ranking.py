"""Several answers from best to worst, in one judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.elicit.asking import Item
from kd_lightning.elicit.judge import JUDGING, Judge, candidates
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.types import Sampling

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Rank(Judge):
    """Rank all candidates at once, shown in an order drawn for each record.

    Writes `ranking` (numbers of the candidates, best first) and `scores` (how many each beats).
    """

    def __init__(
        self,
        template: str = "rank",
        sampling: Sampling = JUDGING,
        shuffle: bool = True,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `options` (a list of `label` and `text`); writes `ranking`.
            sampling: How judgements are drawn.
            shuffle: Whether they are shown in a drawn order (False: as they stand).
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.shuffle = shuffle

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template, groups, orders = Template(self.template), [], []
        for record in records:
            texts = candidates(record, "Rank")
            if len(texts) > len(LABELS):
                raise KDError(f"Rank shows at most {len(LABELS)} candidates: draw fewer")
            order = list(range(len(texts)))
            if self.shuffle:
                work.rng(record.id, "order").shuffle(order)
            orders.append(order)
            shown = [
                {"label": label, "text": texts[i]} for label, i in zip(LABELS, order, strict=False)
            ]
            check = _Labels(len(order))
            groups.append([self.question(template, record, "rank", {"options": shown}, check)])
        made = []
        heard = self.put(groups, records, work)
        for record, order, said in zip(records, orders, heard, strict=True):
            if said is None:
                continue
            ranking = [order[LABELS.index(label)] for label in said[0].item["ranking"]]
            scores = [len(ranking) - 1 - ranking.index(i) for i in range(len(ranking))]
            told: Item = {"ranking": ranking, "scores": scores}
            made.append(record.changed(work.name, said[0].by, **told))
        return made


class _Labels:
    """Every label once."""

    def __init__(self, count: int) -> None:
        self._wanted = set(LABELS[:count])

    def __call__(self, item: Item) -> None:
        if set(item["ranking"]) != self._wanted:
            raise Malformed("not each label ranked, or others")
