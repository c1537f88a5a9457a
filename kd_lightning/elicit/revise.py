"""An answer criticised and revised until nothing is left to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.elicit.asking import SAMPLING
from kd_lightning.elicit.judge import Judge
from kd_lightning.elicit.pools import Pool, pool
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.types import Sampling


class Revise(Judge):
    """Critique and revise an answer until the verdict says that it stands, or `rounds` are over.

    Writes `revision` (the last text, the answer itself where it stood at once), `critique` (the
    last), `verdict` and `chain` (each round's `answer`, `critique` and what was drawn). With a pool
    of principles and a critique without verdict, all rounds are gone through.

    Source: Ye et al. 2023 (SelFee); Bai et al. 2022 (Constitutional AI), arXiv 2212.08073.
    """

    def __init__(
        self,
        template: str = "critique",
        revision: str = "revise",
        sampling: Sampling = SAMPLING,
        rounds: int = 3,
        until: str = "keep",
        least: int = 0,
        field: str = "answer",
        draw: dict[str, Pool] | None = None,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `answer`; writes `critique`, mostly `verdict` too.
            revision: Reads `critique` too; writes `answer`.
            sampling: How both are drawn.
            rounds: Most revisions.
            until: The verdict that ends it.
            least: Revisions that are made whatever the verdict.
            field: The value that is revised; in the templates it is `answer`.
            draw: Name to a pool; an entry is drawn in each round, for both templates.
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.revision = revision
        self.rounds = rounds
        self.until = until
        self.least = least
        self.field = field
        self.draw = draw
        if not 0 <= least <= rounds or rounds < 1:
            raise KDError("Revise: 0 <= least <= rounds, and at least one round")

    def settings(self) -> dict[str, Any]:
        drawn = {name: pool(told) for name, told in (self.draw or {}).items()}
        told = {"revision": Template(self.revision).settings(), "draw": drawn}
        return {**super().settings(), **told}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        critique, revision = Template(self.template), Template(self.revision)
        pools = {name: pool(told) for name, told in (self.draw or {}).items()}
        chains: dict[str, list[dict[str, Any]]] = {record.id: [] for record in records}
        texts = {record.id: record.text(self.field) for record in records}
        by = dict.fromkeys(texts, self.generator)
        fallen: set[str] = set()
        live = list(records)
        for i in range(self.rounds + 1):
            if i == self.rounds:  # a critique without verdict has nothing to say of the last text
                live = [record for record in live if "verdict" in chains[record.id][-1]]
            drawn = [
                {k: work.rng(r.id, k, i).choice(entries) for k, entries in pools.items()}
                for r in live
            ]
            judged = self._ask(critique, live, drawn, texts, f"critique {i}", work)
            going: list[Record] = []
            more: list[dict[str, Any]] = []
            for record, extra, said in zip(live, drawn, judged, strict=True):
                if said is None:
                    fallen.add(record.id)
                    continue
                item, by[record.id] = said
                chains[record.id].append({**extra, "answer": texts[record.id], **item})
                stands = item.get("verdict") == self.until and i >= self.least
                if not stands and i < self.rounds:
                    going.append(record)
                    more.append({**extra, **item})
            revised = self._ask(revision, going, more, texts, f"revision {i}", work)
            live = []
            for record, made in zip(going, revised, strict=True):
                if made is None:
                    fallen.add(record.id)
                else:
                    texts[record.id], by[record.id] = made[0]["answer"], made[1]
                    live.append(record)
        return [
            record.changed(work.name, by[record.id], **_told(texts[record.id], chains[record.id]))
            for record in records
            if record.id not in fallen
        ]

    def _ask(
        self,
        template: Template,
        records: Sequence[Record],
        extra: Sequence[dict[str, Any]],
        texts: dict[str, str],
        stage: str,
        work: Work,
    ) -> list[tuple[dict[str, Any], str] | None]:
        groups = [
            [self.question(template, record, stage, {**values, "answer": texts[record.id]})]
            for record, values in zip(records, extra, strict=True)
        ]
        heard = self.put(groups, records, work)
        return [(said[0].item, said[0].by) if said else None for said in heard]


def _told(text: str, chain: list[dict[str, Any]]) -> dict[str, Any]:
    last = chain[-1]
    return {
        "revision": text,
        "critique": last.get("critique"),
        "verdict": last.get("verdict"),
        "chain": chain,
    }
