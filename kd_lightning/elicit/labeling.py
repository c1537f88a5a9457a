"""Labeling: prompts are given, a generator writes answers, reasoning, explanations."""

from __future__ import annotations

from typing import Any

from kd_lightning.elicit.ask import Ask, Keep
from kd_lightning.elicit.asking import SAMPLING
from kd_lightning.elicit.pools import Pool
from kd_lightning.types import Sampling


class Answer(Ask):
    """An answer to each prompt: sequence-level distillation of black boxes.

    Source: Kim, Rush 2016 (SeqKD), arXiv 1606.07947.
    """

    def __init__(self, template: str = "answer", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Writes `answer`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class Candidates(Ask):
    """Several answers to each prompt, as `candidates` with their `sources`.

    With a pool of generators behind the name, each answer is another model's.
    """

    def __init__(
        self,
        template: str = "answer",
        n: int = 4,
        sampling: Sampling = SAMPLING,
        keep: Keep = "list",
        rename: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Writes `answer`.
            n: Answers for each record.
            sampling: How they are drawn.
            keep: How they are kept.
            rename: Besides `answer`, which becomes `candidates`: name of the parser to value.
            more: As for `Ask`.
        """
        super().__init__(template, n=n, sampling=sampling, keep=keep, rename=rename, **more)

    def _name(self, parsed: str) -> str:
        return {"answer": "candidates", **(self.rename or {})}.get(parsed, parsed)


class Rationale(Ask):
    """Reasoning step by step and then the answer: `rationale` and `answer`.

    Source: Wei et al. 2022 (chain of thought), arXiv 2201.11903; as knowledge of a teacher Hsieh et
    al. 2023 (distilling step-by-step), arXiv 2305.02301.
    """

    def __init__(self, template: str = "rationale", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Writes `rationale` and `answer`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class Explain(Ask):
    """Answers that explain themselves, each under a system prompt drawn from a pool.

    The prompt drawn joins the record as `system`. Erasing it before training: Orca 2.

    Source: Mukherjee et al. 2023 (Orca), arXiv 2306.02707.
    """

    def __init__(
        self, template: str = "explain", draw: dict[str, Pool] | None = None, **more: Any
    ) -> None:
        """Store the settings.

        Args:
            template: Writes `answer`.
            draw: Pools besides `system`, or another one for it.
            more: As for `Ask`.
        """
        super().__init__(template, draw={"system": "systems", **(draw or {})}, **more)


class Rationalise(Ask):
    """Reasoning towards an answer that is known (`reference`): `rationale` and `answer`.

    What is stored does not show that the answer was told; verify it like any other.

    Source: Zelikman et al. 2022 (STaR), arXiv 2203.14465, section 3.2.
    """

    def __init__(self, template: str = "rationalise", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `reference`; writes `rationale` and `answer`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class Grounded(Ask):
    """Answers out of the documents in `docs` alone."""

    def __init__(self, template: str = "grounded", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `docs`; writes `answer`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class Evidence(Ask):
    """What the documents in `docs` say about the prompt, in few words: `summary`.

    Source: Xu, Shi, Choi 2023 (RECOMP), arXiv 2310.04408, abstractive compressor.
    """

    def __init__(self, template: str = "summarise_evidence", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `docs`; writes `summary`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)
