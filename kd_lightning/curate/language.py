"""Which language a text is in, by its script and its commonest words."""

from __future__ import annotations

import re
from collections import Counter

from kd_lightning.curate.filter import Filter
from kd_lightning.curate.texts import Names, between, named, text_of, words
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record

COMMON = {
    "en": "the of and to in is that it for was on are as with be this have from or by not but",
    "de": "der die und das ist nicht ein eine mit von zu den auf für im sich dem es wie auch wird",
    "fr": "le la les et des est une un que pour dans qui pas sur au avec ce il sont du nous vous",
    "es": "el la los y que en es una por con para las del se un su como más pero está son no lo",
    "it": "il di che e la per un è non una con del sono della si le dei da come anche questo gli",
    "pt": "o que e do da em um para com não uma os no se na por mais as dos como mas foi são",
    "nl": "de het een en van is dat niet op te voor met zijn aan er ook als maar om die bij wordt",
}
"""Words that a text of some length in these languages can hardly do without."""

SCRIPTS = {
    "zh": r"[\u3400-\u9fff]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]",
    "el": r"[\u0370-\u03ff]",
    "ar": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]",
    "hi": r"[\u0900-\u097f]",
    "th": r"[\u0e00-\u0e7f]",
}
"""Languages that are told by their letters."""

_LETTER = re.compile(r"[^\W\d_]")
_COMMON = {name: frozenset(told.split()) for name, told in COMMON.items()}
_SCRIPTS = {name: re.compile(signs) for name, signs in SCRIPTS.items()}


def language_of(text: str, least: float = 0.05) -> str:
    """A code of `COMMON` or `SCRIPTS`; '' where it cannot be told.

    By script where a third of the letters are in one (kana at a tenth make a text Japanese), else
    the language whose commonest words are the largest share of the text, at least `least`.
    """
    letters = len(_LETTER.findall(text))
    if not letters:
        return ""
    shares = {name: len(signs.findall(text)) / letters for name, signs in _SCRIPTS.items()}
    if shares["ja"] >= 0.1:
        return "ja"
    script = max(shares, key=lambda name: shares[name])
    if shares[script] >= 1 / 3:
        return script
    counts = Counter(words(text))
    total = sum(counts.values())
    found = {name: sum(counts[w] for w in told) / total for name, told in _COMMON.items()}
    best = max(found, key=lambda name: found[name])
    return best if found[best] >= least else ""


class Language(Filter):
    """Keep texts in some languages: a heuristic that needs a sentence or two.

    Texts that are too short to tell, and code, stay unless `unsure` says otherwise.
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        field: Names = "prompt",
        unsure: bool = True,
        min_words: int = 8,
        least: float = 0.05,
    ) -> None:
        """Store the settings.

        Args:
            languages: Codes of those that stay (en, de, fr, es, it, pt, nl, zh, ja, ko, ru, el,
                ar, he, hi, th); None: English.
            field: Field, or several whose texts count together.
            unsure: Whether texts whose language cannot be told stay.
            min_words: Fewer words cannot be told (other than by their script).
            least: Smallest share of common words that tells a language.
        """
        wanted = ["en"] if languages is None else languages
        if odd := sorted(set(wanted) - COMMON.keys() - SCRIPTS.keys()):
            known = ", ".join([*COMMON, *SCRIPTS])
            raise KDError(f"languages holds {odd[0]!r}, which is not known: use {known}")
        between("least", least, 0, 1)
        self.languages = wanted
        self.field = field
        self.unsure = unsure
        self.min_words = min_words
        self.least = least

    def fault(self, record: Record) -> str:
        text = text_of(record, self.field)
        if not text.strip():
            return f"no {named(self.field)}"
        found = language_of(text, self.least)
        if found in COMMON and len(words(text)) < self.min_words:
            found = ""
        if not found:
            return "" if self.unsure else "language not told"
        return "" if found in self.languages else f"language {found}"
