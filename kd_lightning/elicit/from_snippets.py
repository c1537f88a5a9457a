"""Problems with solutions, inspired by a few lines of real code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.elicit.ask import Ask
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work


class FromSnippets(Ask):
    """Some consecutive lines are drawn from each record's `code`; a problem is made of them.

    Source: Wei et al. 2023 (Magicoder, OSS-Instruct), arXiv 2312.02120: 1 to 15 lines.
    """

    def __init__(
        self,
        template: str = "oss_instruct",
        field: str = "code",
        fewest: int = 1,
        most: int = 15,
        snippets: int = 1,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `snippet`; writes `prompt` and `answer`.
            field: The value that holds a file's text.
            fewest: Fewest lines of a snippet.
            most: Most lines of a snippet.
            snippets: Snippets from each record.
            more: As for `Ask`.
        """
        super().__init__(template, **more)
        self.field = field
        self.fewest = fewest
        self.most = most
        self.snippets = snippets
        if not 1 <= fewest <= most or snippets < 1:
            raise KDError("FromSnippets: 1 <= fewest <= most, and at least one snippet")

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        drawn = []
        for record in records:
            lines = record.text(self.field).splitlines()
            room = lines[: len(lines) - self.fewest + 1]
            starts = [i for i, line in enumerate(room) if line.strip()]
            if not starts:
                work.drop(record, f"fewer than {self.fewest} lines of {self.field}")
                continue
            for i in range(self.snippets):
                rng = work.rng(record.id, "snippet", i)
                start = rng.choice(starts)
                piece = "\n".join(lines[start : start + rng.randint(self.fewest, self.most)])
                values: dict[str, Any] = {self.field: None, "snippet": piece.rstrip()}
                drawn.append(record.child(work.name, str(i), **values))
        return super().run(drawn, work)
