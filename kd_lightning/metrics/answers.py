"""Answers against references: all values lie between 0 and 1, higher is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[-−]?(?:[$€£]\s?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+\b)?")
_ANNOUNCED = re.compile(r"(?:\\boxed\{|answer\s*(?:is|:|=))\s*([^\n}]*)", re.IGNORECASE)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    r"""F-measure of the longest common subsequence of stemmed words, best of the references.

    .. math:: F = 2PR / (P + R), \quad P = LCS / |answer|, \quad R = LCS / |reference|

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; stemmed, best of
    references as in Gu et al. 2024 (MiniLLM), arXiv 2306.08543, appendix.
    """
    from torchmetrics.functional.text.rouge import rouge_score

    scores = rouge_score(
        answer, [list(references)], accumulate="best", use_stemmer=True, rouge_keys="rougeL"
    )
    return float(scores["rougeL_fmeasure"])


def token_f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the bags of words without case, articles and punctuation, best of the references.

    Source: Rajpurkar et al. 2016 (SQuAD), arXiv 1606.05250, section 6.1.
    """
    return _squad(answer, references)["f1"]


def _squad(answer: str, references: Sequence[str]) -> dict[str, float]:
    from torchmetrics.functional.text import squad

    texts = list(references)
    gold = {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": "0"}
    scores = squad([{"prediction_text": answer, "id": "0"}], [gold])
    return {name: float(value) / 100 for name, value in scores.items()}


def final_number(text: str) -> Decimal | None:
    """The number that a written solution ends with.

    What stands after the last `####`; else after the last "answer is" or in the last `boxed`; else
    the last number of the text. Thousands separators, currency signs and a trailing period or `.00`
    do not matter.
    """
    if "####" in text:
        return _first(text.rsplit("####", 1)[1])
    announced = _ANNOUNCED.findall(text)
    if announced and (found := _numbers(announced[-1])):
        return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def number_match(answer: str, reference: str) -> float:
    """1 where both solutions end with the same number.

    Source: Cobbe et al. 2021 (GSM8K), arXiv 2110.14168, section 2.
    """
    got, wanted = final_number(answer), final_number(reference)
    return float(got is not None and got == wanted)


def _first(text: str) -> Decimal | None:
    found = _numbers(text)
    return found[0] if found else None


def _numbers(text: str) -> list[Decimal]:
    return [value for match in _matches(text) if (value := _decimal(match)) is not None]


def _matches(text: str) -> list[str]:
    """Numbers as written; a minus is a sign unless it subtracts (`10 -7`) or joins (`B-12`)."""
    found = []
    for match in _NUMBER.finditer(text):
        written = match.group()
        before = text[: match.start()]
        subtracts = before.rstrip()[-1:].isdigit() or before.rstrip().endswith((")", "%", "]"))
        if written[0] in "-−" and (subtracts or before[-1:].isalpha()):
            written = written[1:]
        found.append(written)
    return found


def _decimal(written: str) -> Decimal | None:
    plain = re.sub(r"[\s,$€£]", "", written).replace("−", "-")
    try:
        return Decimal(plain)
    except InvalidOperation:
        return None
