"""Curation: prompts and answers out of meta-information (topics, documents, tools, histories)."""

from __future__ import annotations

from typing import Any

from kd_lightning.elicit.ask import Ask, Keep


class FromTopics(Ask):
    """Prompts about each record's `topic`.

    With the template `subtopics` it writes `topic` instead: one step for each level of a taxonomy,
    and this one behind them.

    Source: Ding et al. 2023 (UltraChat), arXiv 2305.14233; taxonomy: Li et al. 2024 (GLAN),
    arXiv 2402.13064.
    """

    def __init__(self, template: str = "from_topic", keep: Keep = "each", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `topic`; writes several `prompt`.
            keep: How they are kept.
            more: As for `Ask`.
        """
        super().__init__(template, keep=keep, **more)


class FromDocuments(Ask):
    """The prompt that a `document` answers: instruction back-translation.

    Source: Li et al. 2023 (Humpback), arXiv 2308.06259.
    """

    def __init__(self, template: str = "from_document", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `document`; writes `prompt`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class FromTools(Ask):
    """Prompts that need the `tools` of a record, with the call that each needs.

    Source: Patil et al. 2023 (Gorilla), arXiv 2305.15334; Yang et al. 2023 (GPT4Tools),
    arXiv 2305.18752.
    """

    def __init__(self, template: str = "from_tools", keep: Keep = "each", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `tools`; writes `prompt` and `answer` (the call).
            keep: How they are kept.
            more: As for `Ask`.
        """
        super().__init__(template, keep=keep, **more)


class FromHistory(Ask):
    """The wish behind what a user did, out of their `history`: `prompt`.

    Source: Mysore, McCallum, Zamani 2023 (Mint), arXiv 2306.02250; Zhang et al. 2023
    (InstructRec), arXiv 2305.07001.
    """

    def __init__(self, template: str = "from_history", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `history`, a list; writes `prompt`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)
