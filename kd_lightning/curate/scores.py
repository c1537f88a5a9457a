"""Numbers that a model's log-probabilities give, written into the records to select by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kd_lightning.curate.texts import answer_of, prompt_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind, Reply, Request, TokenLogprobs
from kd_lightning.types import Prompt


class Scorer(Step):
    """Asks a generator for log-probabilities of texts that it did not say."""

    generator: str
    prompt: str
    answer: str

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.SCORE})}

    def told(
        self, asked: Sequence[tuple[Record, Sequence[tuple[Prompt, str]]]], work: Work
    ) -> list[tuple[Record, list[TokenLogprobs]]]:
        """Each record with the scores of its texts; one that got none falls."""
        requests = [Request(Kind.SCORE, p, texts=(text,)) for _, all in asked for p, text in all]
        replies = iter(work.ask(self.generator, requests))
        found = []
        for record, all in asked:
            own = [next(replies) for _ in all]
            failure = next((reply.failure for reply in own if reply.failure), "")
            if failure:
                work.drop(record, f"no score: {failure}")
            elif any(not reply.scores or not reply.scores[0].logprobs for reply in own):
                work.drop(record, "no score: the text has no token")
            else:
                found.append((record, [reply.scores[0] for reply in own]))
        return found

    def complete(self, records: Sequence[Record], work: Work) -> list[tuple[Record, Prompt, str]]:
        """Records with a prompt and an answer, and these."""
        found = []
        for record in records:
            prompt = prompt_of(record, self.prompt)
            answer = answer_of(record, self.answer)
            if prompt is None or not answer.strip():
                work.drop(record, "no prompt" if prompt is None else "no answer")
            else:
                found.append((record, prompt, answer))
        return found


class Perplexity(Scorer):
    r"""How surprising the answer is to a model: :math:`\exp(-\frac1n \sum_t \log p(y_t))`."""

    def __init__(
        self,
        generator: str = "student",
        into: str = "perplexity",
        prompt: str = "prompt",
        answer: str = "answer",
    ) -> None:
        """Store the settings.

        Args:
            generator: Name of the model that is asked.
            into: Field that the number is written to.
            prompt: Field of the prompt; where it is missing, the turns before the last answer.
            answer: Field of the answer; where it is missing, the last answer of the turns.
        """
        self.generator = generator
        self.into = into
        self.prompt = prompt
        self.answer = answer

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        asked = [(r, [(prompt, answer)]) for r, prompt, answer in self.complete(records, work)]
        return [
            record.changed(work.name, self.generator, **{self.into: math.exp(-score.mean)})
            for record, (score,) in self.told(asked, work)
        ]


class IFD(Scorer):
    r"""How little the instruction helps a model to its answer (instruction-following difficulty).

    .. math:: \mathrm{IFD} = \frac{\exp(-\frac1n\sum_t\log p(y_t \mid x, y_{<t}))}
              {\exp(-\frac1n\sum_t\log p(y_t \mid y_{<t}))}

    1 or more: the instruction does not help, and the two hardly belong together. The reversed
    measure asks how little the answer helps to guess the instruction.

    Source: Li et al. 2023 (Cherry LLM), arXiv 2308.12032; reversed: Li et al. 2024
    (Selective Reflection-Tuning), arXiv 2402.10110.
    """

    def __init__(
        self,
        generator: str = "student",
        into: str = "ifd",
        reversed: bool = False,
        question: str = "{answer}\n\nWhich instruction does the text above follow?",
        alone: str = "",
        prompt: str = "prompt",
        answer: str = "answer",
    ) -> None:
        """Store the settings.

        Args:
            generator: Name of the model that is asked.
            into: Field that the number is written to.
            reversed: Measure the instruction given the answer instead.
            question: What is asked in the reversed measure; `{answer}` stands for the answer.
            alone: What stands before a text that is scored by itself (for servers that refuse an
                empty prompt).
            prompt: Field of the prompt; where it is missing, the turns before the last answer.
            answer: Field of the answer; where it is missing, the last answer of the turns.
        """
        if reversed and "{answer}" not in question:
            raise KDError("question must hold {answer}, the place of the answer")
        self.generator = generator
        self.into = into
        self.reversed = reversed
        self.question = question
        self.alone = alone
        self.prompt = prompt
        self.answer = answer

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        asked = []
        for record, prompt, answer in self.complete(records, work):
            text, given = answer, prompt
            if self.reversed:
                text = next(m.content for m in prompt.messages[::-1] if m.role == "user")
                given = Prompt.user(self.question.replace("{answer}", answer))
            asked.append((record, [(given, text), (Prompt.text(self.alone), text)]))
        return [
            record.changed(
                work.name, self.generator, **{self.into: math.exp(alone.mean - given.mean)}
            )
            for record, (given, alone) in self.told(asked, work)
        ]


class Confidence(Scorer):
    r"""How sure a model is of the answer: :math:`\frac1n \sum_t \log p(y_t)`, or among options.

    With options, the answer's share: :math:`p(y) / \sum_o p(o)`.
    """

    def __init__(
        self,
        generator: str = "teacher",
        into: str = "confidence",
        options: list[str] | None = None,
        prompt: str = "prompt",
        answer: str = "answer",
    ) -> None:
        """Store the settings.

        Args:
            generator: Name of the model that is asked.
            into: Field that the number is written to.
            options: What the answer may be; None: any text, by its mean log-probability.
            prompt: Field of the prompt; where it is missing, the turns before the last answer.
            answer: Field of the answer; where it is missing, the last answer of the turns.
        """
        if options is not None and len(options) < 2:
            raise KDError("options needs at least two answers")
        self.generator = generator
        self.into = into
        self.options = options
        self.prompt = prompt
        self.answer = answer

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        kind = Kind.SCORE if self.options is None else Kind.CHOICES
        return {self.generator: frozenset({kind})}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        complete = self.complete(records, work)
        if self.options is not None:
            return self._among(self.options, complete, work)
        asked = [(record, [(prompt, answer)]) for record, prompt, answer in complete]
        return [
            record.changed(work.name, self.generator, **{self.into: score.mean})
            for record, (score,) in self.told(asked, work)
        ]

    def _among(
        self, options: Sequence[str], complete: Sequence[tuple[Record, Prompt, str]], work: Work
    ) -> list[Record]:
        known = []
        for record, prompt, answer in complete:
            if answer.strip() in options:
                known.append((record, prompt, answer.strip()))
            else:
                work.drop(record, "answer is none of the options")
        requests = [Request(Kind.CHOICES, p, texts=tuple(options)) for _, p, _ in known]
        made = []
        for (record, _, answer), reply in zip(
            known, work.ask(self.generator, requests), strict=True
        ):
            if reply.failure:
                work.drop(record, f"no score: {reply.failure}")
            else:
                share = _share(reply, options.index(answer))
                made.append(record.changed(work.name, self.generator, **{self.into: share}))
        return made


def _share(reply: Reply, place: int) -> float:
    most = max(reply.choices)
    weights = [math.exp(choice - most) for choice in reply.choices]
    return weights[place] / sum(weights)
